"""What --keep promises, of every study that has it: one that was stopped goes on, and measures nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from probe.commands.main import main
from probe.errors import FieldError
from probe.models.load import LoadedModel, load_model
from probe.studies.causes import Causes
from probe.studies.frequencies import FrequencyStudy
from probe.studies.pieces import PieceStore
from probe.studies.tune import Tuning


@pytest.fixture(scope="module")
def rope() -> LoadedModel:
    return load_model("rope-b1e3")


def causes(rope: LoadedModel, store: PieceStore) -> Causes:
    return Causes(rope, "origin,rerope", samples=1, lengths=[320, 384], length=384, store=store)


def frequencies(rope: LoadedModel, store: PieceStore) -> FrequencyStudy:
    return FrequencyStudy(rope, length=512, groups=2, samples=1, store=store)


def tune(rope: LoadedModel, store: PieceStore) -> Tuning:
    return Tuning(rope, 384, "rerope,rerope+logn", screened=1, checked=1, documents=1, store=store)


STUDIES = {
    "causes": (causes, "probe.studies.causes.tail_nll"),
    "frequencies": (frequencies, "probe.studies.causes.tail_nll"),
    "tune": (tune, "probe.studies.tune.passkey_answers"),
}


def timeless(rows: list[Any]) -> list[Any]:
    """Rows without what a clock says."""
    return [
        replace(row, screening=0.0, beginning=0.0, checking=0.0) if hasattr(row, "screening") else row for row in rows
    ]


def refused(*_: object, **__: object) -> None:
    raise AssertionError("something was measured again")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_that_was_stopped_goes_on(
    name: str, rope: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Callable[[LoadedModel, PieceStore], Any] = STUDIES[name][0]
    alone = make(rope, PieceStore())
    list(alone.run())
    stopped: Iterator[str] = make(rope, PieceStore(tmp_path / "kept")).run()
    next(stopped), next(stopped)
    stopped.close()
    again = make(rope, PieceStore(tmp_path / "kept"))
    list(again.run())
    assert timeless(again.rows) == timeless(alone.rows)
    monkeypatch.setattr(STUDIES[name][1], refused)
    once_more = make(rope, PieceStore(tmp_path / "kept"))
    list(once_more.run())
    assert once_more.rows == again.rows


def test_a_longer_budget_goes_on_where_the_shorter_ended(rope: LoadedModel, tmp_path: Path) -> None:
    """What a budget left out is no result: it is measured when there is more of it."""
    store = PieceStore(tmp_path / "kept")
    short = Tuning(rope, 384, "rerope", 0.0, 1, 1, 1, store=store)
    list(short.run())
    assert short.rows and not any(row.keys for row in short.rows if row.scheme != "origin")
    whole = Tuning(rope, 384, "rerope", None, 1, 1, 1, store=store)
    list(whole.run())
    assert all(row.left_out is None for row in whole.rows)


def test_another_study_is_refused(rope: LoadedModel, tmp_path: Path) -> None:
    list(frequencies(rope, PieceStore(tmp_path / "kept")).run())
    with pytest.raises(FieldError, match="what is there was made with something else"):
        list(causes(rope, PieceStore(tmp_path / "kept")).run())


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = str(tmp_path / "kept")
    asked = ["frequencies", "--model", "rope-b1e3", "--groups", "1", "--length", "300", "--samples", "1", "--quiet"]
    assert main([*asked, "--keep", kept]) == 0
    first = capsys.readouterr().out
    assert main([*asked, "--keep", kept]) == 0 and capsys.readouterr().out == first
    assert main([*asked[:-1], "--seed", "1", "--quiet", "--keep", kept]) == 2
    assert "what is there was made with something else" in capsys.readouterr().err
