"""Run folders are whole or not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_models import TINY

from probe.commands.main import main
from probe.errors import ProbeError
from probe.models.load import load_model
from probe.recording.folder import Run, list_runs, new_run_folder, write_json
from probe.recording.info import RunInfo
from probe.studies.passes import done_passes
from probe.studies.run import RunSettings, run_probe
from probe.thresholds.verdicts import judge_run, read_verdicts, settings_of

SETTINGS = RunSettings(layers=(1, 3), dims=(4, 0), schemes="origin,rerope", input="token:5", length=200)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_folder_holds_everything_and_reads_back(tiny_folder: Path, tmp_path: Path) -> None:
    run = run_probe(load_model(str(tiny_folder)), SETTINGS, tmp_path / "run")
    assert {path.name for path in run.path.iterdir()} == {
        "run.json", "trace.safetensors", "nll.parquet", "thresholds.parquet", "SHA256SUMS",
        *(["figure.html"] if find_spec("plotly") else []),
    }  # fmt: skip
    written = json.loads((run.path / "run.json").read_text())
    assert written["window"] == 64 and written["input"]["length"] == 200 and written["seed"] == 0
    assert written["provenance"]["versions"]["torch"] and written["schemes"]["rerope"]["parameters"] == {"N": 16}
    assert RunInfo.from_json(written) == run.info and run.info.to_json() == written | {
        "layers": (1, 3),
        "dims": (4, 0),
    } | {key: run.info.to_json()[key] for key in ("sites", "shown", "schemes", "local_layers")}
    assert run.trace["rerope/resid.3"].shape == (200, 2)
    assert np.array_equal(run.series("origin", "resid", 1, 0), run.trace["origin/resid.1"][:, 1])
    assert pq.read_table(run.path / "nll.parquet").column_names == ["scheme", "position", "nll"]
    assert set(run.nll) == {"origin", "rerope"} and np.isnan(run.nll["origin"][0])
    assert [r.path for r in list_runs(tmp_path)] == [run.path]
    with pytest.raises(ProbeError, match="dim 1 was not recorded"):
        run.series("origin", "resid", 1, 1)


def test_the_same_settings_give_the_same_run(tiny_folder: Path, tmp_path: Path) -> None:
    a, b = (run_probe(load_model(str(tiny_folder)), SETTINGS, tmp_path / name) for name in "ab")
    assert all(np.array_equal(a.trace[key], b.trace[key]) for key in a.trace)
    assert read_verdicts(a) == read_verdicts(b) and len(read_verdicts(a)) == 2 * 2 * 2


@pytest.mark.parametrize("chunk_batch", [1, "auto"])
def test_progress_counts_tokens_and_ends_at_one(chunk_batch: int | str, tiny_folder: Path, tmp_path: Path) -> None:
    """In however many calls a prompt goes through a layer: each scheme is its share, and its last call is the end of
    it.
    """
    shares: list[tuple[float, str]] = []
    settings = replace(SETTINGS, schemes="origin,mesa", length=400, chunk_batch=chunk_batch)
    run_probe(load_model(str(tiny_folder)), settings, tmp_path / "run", progress=lambda *told: shares.append(told))
    done = [share for share, _ in shares]
    assert done == sorted(done) and done[-1] == pytest.approx(1) and done[-2] < 0.999
    assert max(share for share, spec in shares if spec == "origin") == pytest.approx(0.5)


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_run_folder(tmp_path / "run") as part:
        (part / "run.json").write_text("{}")
        raise RuntimeError
    assert leftovers(tmp_path) == []


def test_a_run_is_replaced_only_by_force_and_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    with new_run_folder(tmp_path / "run") as part:
        write_json(part / "run.json", {"format": 1, "old": True})
    with pytest.raises(ProbeError, match="a run is there already"), new_run_folder(tmp_path / "run"):
        pass
    with pytest.raises(RuntimeError), new_run_folder(tmp_path / "run", force=True):
        raise RuntimeError
    assert json.loads((tmp_path / "run" / "run.json").read_text())["old"] is True
    with new_run_folder(tmp_path / "run", force=True) as part:
        write_json(part / "run.json", {"format": 1, "old": False})
    assert json.loads((tmp_path / "run" / "run.json").read_text())["old"] is False
    assert leftovers(tmp_path) == ["run"]


def test_places_that_would_lose_something_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProbeError, match="found a file"), new_run_folder(tmp_path / "file"):
        pass
    with pytest.raises(ProbeError, match="found a file"), new_run_folder(Path("/dev/null")):
        pass
    with pytest.raises(ProbeError, match="not empty and holds no run"), new_run_folder(tmp_path / "folder", force=True):
        pass
    with pytest.raises(ProbeError, match="cannot write there"), new_run_folder(tmp_path / "file" / "run"):
        pass
    with new_run_folder(tmp_path / "empty") as part:
        write_json(part / "run.json", {"format": 1})
    assert (tmp_path / "folder" / "thesis.tex").exists() and (tmp_path / "empty" / "run.json").exists()


def test_foreign_and_newer_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "newer").mkdir()
    write_json(tmp_path / "newer" / "run.json", {"format": 99})
    with pytest.raises(ProbeError, match="expected run format 2 or 1, got 99"):
        Run(tmp_path / "newer").info  # noqa: B018
    with pytest.raises(ProbeError, match="expected a run folder"):
        Run(tmp_path / "none").info  # noqa: B018
    assert list_runs(tmp_path / "nowhere") == []


def test_damaged_files_are_told_in_one_line(tmp_path: Path) -> None:
    for name in ("trace.safetensors", "nll.parquet"):
        (tmp_path / name).write_bytes(b"not that")
    (tmp_path / "run.json").write_bytes(b"\xff\xfe")
    for what in ("info", "trace", "nll"):
        with pytest.raises(ProbeError) as caught:
            getattr(Run(tmp_path), what)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_leaves_no_half_written_run_folder(how: signal.Signals, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "victim"
    command = [
        sys.executable, "-m", "probe", "run", "--model", str(tiny_folder), "--input", "token:5", "--length", "6000",
        "--scheme", "origin,rerope,stair,leaky-rerope", "--layer", "1", "--dim", "0", "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A job that a shell started in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (out.parent.is_dir() and any(out.parent.iterdir())) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(60) != 0
    assert not out.exists() and list_runs(out.parent) == []
    if how != signal.SIGKILL:  # what is left, if the signal came late, is passes that can be gone on with
        assert all(done_passes(out.parent / name) for name in leftovers(out.parent))


def test_a_run_of_format_1_is_read_and_judged_alike() -> None:
    """A folder that an earlier version wrote: its verdicts are those that it was written with."""
    run = Run(Path(__file__).parent / "format1")
    info = run.info
    assert (info.model, info.window, info.vocabulary, info.dims) == ("rope", 512, None, (0, 7))
    assert info.provenance.git_commit and info.provenance.versions["torch"] == "2.13.0+cpu"
    assert (info.detection.burn_in_used, info.detection.run_length_used) == (64, 32)
    written = json.loads((run.path / "run.json").read_text())["rows"]
    found = judge_run(run, info.detector, settings_of(info))
    read = read_verdicts(run)
    assert len(written) == len(found) == len(read) == 4
    for old, new, stored in zip(written, found, read, strict=True):
        for name in ("scheme", "site", "layer", "dim", "predicted", "measured", "threshold", "margin"):
            assert getattr(new, name) == getattr(stored, name) == old[name]


def test_layers_that_are_local_by_design_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TINY["gemma3_text"]().save_pretrained(tmp_path / "model")
    command = ["run", "--model", str(tmp_path / "model"), "--input", "token:5", "--length", "200", "--quiet"]
    assert main([*command, "--scheme", "origin,rerope", "--out", str(tmp_path / "run")]) == 0
    assert "local by design, left as trained under every scheme: layers 1 (" in capsys.readouterr().out
    left, woven = Run(tmp_path / "run"), tmp_path / "woven"
    assert left.info.local_layers == (1,)
    assert np.array_equal(left.trace["origin/resid.1"], left.trace["rerope/resid.1"])
    assert main([*command, "--scheme", "origin,rerope", "--weave-local", "--out", str(woven)]) == 0
    assert "local by design" not in capsys.readouterr().out and Run(woven).info.local_layers == ()
    assert not np.array_equal(Run(woven).trace["origin/resid.1"], Run(woven).trace["rerope/resid.1"])
