"""A run that is interrupted keeps the schemes that are done, and is gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from probe.commands.main import main as cli
from probe.recording.folder import Run, list_runs
from probe.studies import run as studies
from probe.thresholds.verdicts import read_verdicts

SCHEMES = "origin,rerope,stair,leaky-rerope"


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "run", "--model", str(folder), "--input", "token:5", "--length", "200", "--scheme", SCHEMES, "--layer", "1",
        "--quiet", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture
def stopped(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """What a run leaves that is interrupted in its third scheme."""
    passes, real = [], studies.run_pass

    def third(loaded, scheme, *rest):
        passes.append(scheme.spec)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return real(loaded, scheme, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(studies, "run_pass", third)
        assert cli(command(tiny_folder, tmp_path / "run")) == 130
    left = tmp_path / "run.unfinished"
    assert f"2 passes are kept; go on with: probe run --resume {left}" in capsys.readouterr().err
    assert list_runs(tmp_path) == []
    return left


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Schemes that are run from now on."""
    passes, real = [], studies.run_pass

    def count(loaded, scheme, *rest):
        passes.append(scheme.spec)
        return real(loaded, scheme, *rest)

    monkeypatch.setattr(studies, "run_pass", count)
    return passes


def test_what_is_done_is_not_done_again_and_the_run_is_the_same(
    stopped: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    passes = counted(monkeypatch)
    assert cli(["run", "--resume", str(stopped), "--json"]) == 0
    assert passes == ["stair", "leaky-rerope"] and not stopped.exists()
    assert json.loads(capsys.readouterr().out)["rows"]
    assert cli(command(tiny_folder, tmp_path / "whole")) == 0
    mine, whole = Run(tmp_path / "run"), Run(tmp_path / "whole")
    assert (
        all(np.array_equal(mine.trace[key], whole.trace[key]) for key in whole.trace)
        and mine.trace.keys() == whole.trace.keys()
    )
    assert all(np.array_equal(mine.nll[key], whole.nll[key], equal_nan=True) for key in whole.nll)
    assert read_verdicts(mine) == read_verdicts(whole) and mine.info.shown == whole.info.shown


def test_it_is_not_begun_anew_over_what_is_done(
    stopped: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(command(tiny_folder, tmp_path / "run")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "an unfinished run is there; go on with --resume" in line and stopped.exists()


def test_what_was_made_with_something_else_is_not_taken(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads((stopped / "unfinished.json").read_text())
    about["made_with"]["input"] = "0" * 64
    (stopped / "unfinished.json").write_text(json.dumps(about))
    assert cli(["run", "--resume", str(stopped)]) == 2
    assert "what is done was made with something else: input 0000" in capsys.readouterr().err and stopped.exists()


def test_a_damaged_pass_is_run_again(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (damaged,) = [path for path in stopped.glob("*.safetensors") if bytes.fromhex(path.stem).decode() == "rerope"]
    damaged.write_bytes(damaged.read_bytes()[:100])
    passes = counted(monkeypatch)
    assert cli(["run", "--resume", str(stopped), "--quiet"]) == 0
    assert passes == ["rerope", "stair", "leaky-rerope"]


def test_two_runs_do_not_share_what_they_keep(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While one is on its way to a folder, another that names it is refused before it computes."""
    passes, real, codes = [], studies.run_pass, []

    def and_another(loaded, scheme, *rest):
        passes.append(scheme.spec)
        if len(passes) == 2:
            codes.append(cli(command(tiny_folder, tmp_path / "run")))
        return real(loaded, scheme, *rest)

    monkeypatch.setattr(studies, "run_pass", and_another)
    assert cli(command(tiny_folder, tmp_path / "run")) == 0
    assert codes == [2] and len(passes) == 4
    assert "--out run: another run is on its way there" in capsys.readouterr().err
    assert len(Run(tmp_path / "run").trace) == 4 and not (tmp_path / "run.unfinished").exists()


@pytest.mark.parametrize("content", [None, "not json", "[]", '{"format": 99}'])
def test_anything_else_is_no_unfinished_run(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "unfinished.json").write_text(content)
    assert cli(["run", "--resume", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_real_signal_leaves_what_is_done(
    how: signal.Signals, tiny_folder: Path, tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "run"
    slow = [part if part != "200" else "9000" for part in command(tiny_folder, out)]
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(
        [sys.executable, "-m", "probe", *slow], stderr=subprocess.PIPE, text=True, preexec_fn=listening
    )
    store, deadline = tmp_path / "run.unfinished", time.monotonic() + 120
    while not list(store.glob("*.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.02)
    process.send_signal(how)
    said = process.communicate(timeout=60)[1]
    assert process.returncode not in (0, None) and not out.exists()
    assert how == signal.SIGKILL or "go on with: probe run --resume" in said
    done = cli("run", "--resume", str(store), "--quiet")
    assert done.returncode == 0, done.stderr
    assert len(Run(out).trace) == 4 and not store.exists()
