"""Runs on disk: damage is found, what can be mended is, and nothing of others is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from probe.commands.main import main as cli
from probe.models.load import load_model
from probe.recording.checksums import SUMS, differing, read_sums
from probe.recording.folder import Run
from probe.studies.keeping import check, kept, remove, repair
from probe.studies.run import RunSettings, run_probe
from probe.thresholds.verdicts import read_verdicts

SETTINGS = RunSettings(schemes="origin,rerope", layers=(1, 2), dims=(0, 3), input="token:5", length=160)


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, to copy."""
    root = tmp_path_factory.mktemp("kept") / "runs"
    run_probe(load_model(str(tiny_folder)), SETTINGS, root / "one")
    return root / "one"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(made, tmp_path / "runs" / "one"))


def flip(path: Path, at: int = -200) -> None:
    """One bit of a file, as a failing disk would."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_run_has_checksums_that_the_standard_tool_reads(run: Path) -> None:
    assert set(read_sums(run)) == {path.name for path in run.iterdir()} - {SUMS}
    assert differing(run) == {} and check(run).whole
    done = subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["run.json", "trace.safetensors", "nll.parquet", "thresholds.parquet", "figure.html"])
@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
def test_damage_is_found_and_only_what_is_derived_is_mended(run: Path, name: str, how: str) -> None:
    before = read_verdicts(Run(run)).to_json()
    file = run / name
    if how == "flip":
        flip(file)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.unlink()
    found = check(run)
    assert not found.whole and name in found.problems[0]
    derived = name in ("thresholds.parquet", "figure.html")
    assert found.mendable == derived
    assert found.again is None or found.again.startswith("probe run --model")
    mended = repair(run)
    assert mended.whole == derived
    if derived:
        assert read_verdicts(Run(run)).to_json() == before and differing(run) == {}
    else:
        assert mended.problems == found.problems  # and nothing was touched


def test_a_run_from_before_there_were_checksums_is_looked_at_and_gets_them(run: Path) -> None:
    (run / SUMS).unlink()
    assert check(run).whole
    assert repair(run).whole and set(read_sums(run)) == {path.name for path in run.iterdir()} - {SUMS}
    (run / SUMS).unlink()
    said = json.loads((run / "run.json").read_text())
    said["input"]["length"] += 1
    (run / "run.json").write_text(json.dumps(said))
    found = check(run)
    assert [problem.split(" ")[0] for problem in found.problems] == ["trace.safetensors", "nll.parquet"]
    assert not found.mendable and not repair(run).whole


def test_the_shipped_run_of_format_1_is_whole(tmp_path: Path) -> None:
    old = shutil.copytree(Path(__file__).parents[1] / "recording" / "format1", tmp_path / "old")
    assert check(Path(old)).whole


def test_everything_of_ours_is_listed_and_nothing_else(run: Path, tiny_folder: Path) -> None:
    root = run.parent
    (root / "notes").mkdir()
    (root / "notes" / "mine.txt").write_text("mine")
    (root / "link").symlink_to(run)
    command = [
        sys.executable, "-m", "probe", "run", "--model", str(tiny_folder), "--input", "token:5", "--length", "3000",
        "--scheme", "origin,rerope,stair,pi,ntk", "--backend", "dense", "--out", str(root / "two"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((root / "two.unfinished").glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    found = {one.kind: one for one in kept(root)}
    assert set(found) == {"run", "unfinished", "leftover"} and len(kept(root)) == 3
    assert found["run"].name == "one" and "160 tokens of token:5: origin, rerope" in found["run"].what
    assert "passes are done; probe run --resume" in found["unfinished"].what
    assert found["run"].megabytes == round(sum(path.stat().st_size for path in run.iterdir()) / 1e6, 1)
    gone = remove(root, [found["leftover"].name, "two.unfinished"])
    assert [one.kind for one in gone] == ["leftover", "unfinished"]
    assert sorted(path.name for path in root.iterdir()) == ["link", "notes", "one"]


def test_the_command_tells_and_ends_with_1_where_something_is_wrong(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(run.parent)]
    assert cli(["runs", "list", *root]) == 0 and "one" in capsys.readouterr().out
    assert cli(["runs", "check", *root]) == 0 and capsys.readouterr().out == "one: whole\n"
    flip(run / "thresholds.parquet")
    assert cli(["runs", "check", *root, "one"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "one: thresholds.parquet has changed", "    probe runs repair mends it",
    ]  # fmt: skip
    assert cli(["runs", "repair", *root]) == 0 and capsys.readouterr().out == "one: whole\n"
    flip(run / "trace.safetensors")
    assert cli(["runs", "check", *root, "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert not row["whole"] and row["again"].startswith("probe run --model")
    assert cli(["runs", "check", *root]) == 1
    assert "what was recorded cannot be mended; make it again: probe run" in capsys.readouterr().out
    assert cli(["runs", "rm", *root, "one"]) == 2 and run.exists()
    assert "--yes: deleting cannot be undone" in capsys.readouterr().err
    for arguments in (["check", "two"], ["rm", "../one", "--yes"], ["rm", "one", "two", "--yes"]):
        assert cli(["runs", arguments[0], *root, *arguments[1:]]) == 2
        assert "NAME: there is no" in capsys.readouterr().err and run.exists()
    assert cli(["runs", "rm", *root, "one", "--yes"]) == 0 and not run.exists()
    assert cli(["runs", "list", "--root", str(run.parent / "nowhere")]) == 2
    assert "--root: there is no folder" in capsys.readouterr().err
