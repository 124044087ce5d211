"""What `probe eval` finds is what the table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from probe.commands.main import main as cli


def test_a_row_per_scheme_and_a_column_per_length(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"scheme": spec, "length": length, "accuracy": accuracy}
        for spec, length, accuracy in (("origin", 512, 1.0), ("mesa(N=64)", 512, 0.987), ("origin", 1024, 0.0))
    ]
    settings = {"model": "rope", "window": 512, "task": "passkey", "samples": 100, "seed": 1, "tail": None}
    result = {"kind": "eval", "complete": True, "settings": settings, "provenance": {}, "rows": rows}
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(result))
    assert cli(["tables", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "`rope`, M = 512, passkey, 100 samples, seed 1", "",
        "| scheme | 512 (1M) | 1024 (2M) |", "| --- | ---: | ---: |", "| `origin` | 100% | 0% |",
        "| `mesa(N=64)` | 99% |  |", "",
    ]  # fmt: skip


def test_an_audit_is_a_row_per_chunk_width_and_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["audit", "--model", "rope", "--input", "token:5", "--length", "128", "--chunk", "40", "--json"]) == 0
    said = capsys.readouterr().out
    (tmp_path / "audit.json").write_text(said)
    assert cli(["tables", str(tmp_path / "audit.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    lost = [row["lost"] for row in json.loads(said)["rows"] if row["layer"] == 3]
    (mine,) = [line for line in lines if line.startswith("| 40 | 3 |")]
    shown = [float(cell) for cell in mine.split("|")[3:6]]
    assert shown == pytest.approx([100 * min(lost), 100 * sum(lost) / len(lost), 100 * max(lost)], abs=0.051)
    assert sum(line.startswith("| 40 |") for line in lines) == 4


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"kind": "eval", "settings": {"window": 3}, "provenance": {}, "rows": [{}]}',
        "not json",
    ],
)
def test_anything_else_is_refused_in_a_line(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    assert cli(["tables", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("probe: error:") and error.count("\n") == 1


def test_a_tail_that_does_not_fit_is_refused(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--model", str(tiny_folder), "--task", "nll", "--lengths", "64,128", "--quiet"]
    assert cli([*command, "--tail", "64"]) == 2
    assert "--tail: expected 1 to 63" in capsys.readouterr().err


def test_a_scheme_that_does_not_reach_a_length_is_refused_before_any_is_run(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probe.tasks import table

    def run(*_: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(table, "heldout_nll", run)
    command = ["eval", "--model", str(tiny_folder), "--task", "nll", "--lengths", "32,1000", "--quiet"]
    assert cli([*command, "--scheme", "mesa(N=16,E=2)"]) == 2
    assert "E = 2 leaves the trained range at 1000 tokens: expected E >= 21" in capsys.readouterr().err


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_an_evaluation_that_is_stopped_keeps_its_finished_rows(
    stop: BaseException, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probe.tasks import table

    out = tmp_path / "eval.json"
    scored, kept = [], []

    def run(_loaded: object, _scheme: object, ids: Tensor) -> Tensor:
        if len(scored) == 2:
            kept.append(out.read_text())  # what a kill that cannot be caught would leave
            raise stop
        scored.append(len(ids))
        return torch.ones(ids.shape)

    monkeypatch.setattr(table, "heldout_nll", run)
    command = ["eval", "--task", "nll", "--lengths", "32,64", "--scheme", "origin,rerope", "--samples", "2", "--quiet"]
    try:
        assert cli([*command, "--json", "--out", str(out)]) == code
    except SystemExit as error:
        assert error.code == code
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result == json.loads(out.read_text()) and json.loads(kept[0])["rows"] == result["rows"]
    assert not result["complete"] and [row["length"] for row in result["rows"]] == [32, 32]
    assert "not all rows were measured" in printed.err and "Traceback" not in printed.err


def test_an_evaluation_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "eval.json"
    command = ["eval", "--task", "nll", "--lengths", "16,32", "--samples", "2", "--quiet", "--json", "--out", str(out)]
    assert cli(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(out.read_text()) and result["complete"] and len(result["rows"]) == 2
    assert list(tmp_path.iterdir()) == [out]
    assert cli(["tables", str(out)]) == 0 and capsys.readouterr().out.count("\n| `origin` |") == 1


def test_a_length_that_the_task_cannot_have_is_refused_before_any_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval.json"
    assert cli(["eval", "--lengths", "512,9", "--quiet", "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "a pass key needs at least" in printed.err and printed.err.count("\n") == 1
    assert cli(["eval", "--out", str(tmp_path), "--quiet"]) == 2
    assert "expected the name of a file" in capsys.readouterr().err


def test_a_likelihood_that_is_not_finite_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probe.tasks import table

    out = tmp_path / "eval.json"
    monkeypatch.setattr(
        table,
        "heldout_nll",
        lambda _loaded, scheme, ids: torch.full(ids.shape, 1.0 if scheme.spec == "origin" else torch.nan),
    )
    command = ["eval", "--task", "nll", "--lengths", "32", "--scheme", "origin,rerope", "--samples", "2", "--quiet"]
    assert cli([*command, "--out", str(out)]) == 2
    assert "the likelihood under rerope is NaN or infinite" in capsys.readouterr().err
    assert [row["scheme"] for row in json.loads(out.read_text())["rows"]] == ["origin"]
