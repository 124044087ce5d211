"""Files of results: whole or not there, also where showing them fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probe.errors import ProbeError
from probe.results import carry_out, writable, write


class Two:
    """A measurement of two rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def run(self) -> Iterator[str]:
        for n in range(2):
            self.rows.append({"n": n})
            yield str(n)

    def result(self, complete: bool) -> dict[str, Any]:
        return {"complete": complete, "rows": list(self.rows)}


def test_a_closed_pipe_does_not_keep_the_file_from_being_whole(tmp_path: Path) -> None:
    def show(_: object) -> None:
        raise BrokenPipeError

    out = tmp_path / "out.json"
    with pytest.raises(BrokenPipeError):
        carry_out(Two(), out, lambda _: None, show)
    assert json.loads(out.read_text()) == {"complete": True, "rows": [{"n": 0}, {"n": 1}]}


def test_what_cannot_be_written_is_shown_all_the_same(tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []
    with pytest.raises(ProbeError, match="cannot write there"):
        carry_out(Two(), tmp_path / "gone" / "out.json", lambda _: None, shown.append)
    assert shown == [{"complete": False, "rows": [{"n": 0}]}]


def test_a_place_where_nothing_can_be_written_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.json"
    old.write_text("kept")
    writable(old)
    assert old.read_text() == "kept" and list(tmp_path.iterdir()) == [old]

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(ProbeError, match=r"new.json: cannot write there \(Permission denied\)"):
        writable(tmp_path / "new.json")


def test_an_interrupt_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    write({"n": 1}, out)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write({"n": 2}, out)
    assert json.loads(out.read_text()) == {"n": 1} and list(tmp_path.iterdir()) == [out]
