"""Files of results: whole or not there, also where showing them fails."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from probe.errors import ProbeError
from probe.provenance import Provenance, _git
from probe.results import Records, Result, carry_out, read, writable, write


@dataclass(frozen=True)
class Row:
    n: int


def result(*rows: int, complete: bool = True) -> Result[Row]:
    return Result("test", {"chosen": 1}, Provenance.now(cpu="A CPU"), Records(map(Row, rows)), complete)


class Two:
    """A measurement of two rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def run(self) -> Iterator[str]:
        for n in range(2):
            self.rows.append(n)
            yield str(n)

    def result(self, complete: bool) -> Result[Row]:
        return result(*self.rows, complete=complete)


def test_a_closed_pipe_does_not_keep_the_file_from_being_whole(tmp_path: Path) -> None:
    def show(_: object) -> None:
        raise BrokenPipeError

    out = tmp_path / "out.json"
    with pytest.raises(BrokenPipeError):
        carry_out(Two(), out, lambda _: None, show)
    written = json.loads(out.read_text())
    assert written["complete"] and written["rows"] == [{"n": 0}, {"n": 1}]
    assert written == read(out) and list(written) == ["kind", "complete", "settings", "provenance", "rows"]
    assert written["settings"] == {"chosen": 1} and written["provenance"]["machine"] == {"cpu": "A CPU"}


def test_what_cannot_be_written_is_shown_all_the_same(tmp_path: Path) -> None:
    shown: list[Result[Row]] = []
    with pytest.raises(ProbeError, match="cannot write there"):
        carry_out(Two(), tmp_path / "gone" / "out.json", lambda _: None, shown.append)
    assert [(one.complete, one.rows) for one in shown] == [(False, (Row(0),))]


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
    write(result(1), out)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(result(2), out)
    assert json.loads(out.read_text())["rows"] == [{"n": 1}] and list(tmp_path.iterdir()) == [out]


def test_asking_for_the_commit_writes_nothing_into_a_checkout(tmp_path: Path) -> None:
    """A file whose time has changed makes `git status` write the index anew, under a lock that a kill would leave."""
    for command in (("init", "-q"), ("add", "."), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a")):
        (tmp_path / "file").write_text("text")
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    os.utime(tmp_path / "file", (1, 1))
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    assert _git("status", "--porcelain", where=tmp_path) == ""
    assert index.read_bytes() == before
    subprocess.run(["git", "-C", str(tmp_path), "status", "--porcelain"], check=True)
    assert index.read_bytes() != before  # what it would have written
