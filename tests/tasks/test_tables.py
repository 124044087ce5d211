"""What `probe eval` finds is what the table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probe.cli import main as cli
from probe.tasks.tables import main


def test_a_row_per_scheme_and_a_column_per_length(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"scheme": spec, "length": length, "accuracy": accuracy}
        for spec, length, accuracy in (("origin", 512, 1.0), ("mesa(N=64)", 512, 0.987), ("origin", 1024, 0.0))
    ]
    result = {"model": "rope", "window": 512, "task": "passkey", "samples": 100, "seed": 1, "tail": None, "rows": rows}
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(result))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "`rope`, M = 512, passkey, 100 samples, seed 1", "",
        "| scheme | 512 (1M) | 1024 (2M) |", "| --- | ---: | ---: |", "| `origin` | 100% | 0% |", "| `mesa(N=64)` | 99% |  |", "",
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["[]", "{}", '{"rows": [{}], "window": 3}', "not json"])
def test_anything_else_is_refused_in_a_line(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("probe: error:") and error.count("\n") == 1


def test_a_tail_that_does_not_fit_is_refused(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--model", str(tiny_folder), "--task", "nll", "--lengths", "64,128", "--quiet"]
    assert cli([*command, "--tail", "64"]) == 2
    assert "--tail: expected 1 to 63" in capsys.readouterr().err


def test_a_scheme_that_does_not_reach_a_length_is_refused_before_any_is_run(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probe.tasks import evaluate

    def run(*_: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(evaluate, "heldout_nll", run)
    command = ["eval", "--model", str(tiny_folder), "--task", "nll", "--lengths", "32,1000", "--quiet"]
    assert cli([*command, "--scheme", "mesa(N=16,E=2)"]) == 2
    assert "E = 2 leaves the trained range at 1000 tokens: expected E >= 21" in capsys.readouterr().err
