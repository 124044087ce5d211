"""What a study has measured so far, a line a sample in one file: one that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probe.errors import FieldError
from probe.studies.pieces import KeptFolder

LINES = "samples.jsonl"


@dataclass
class Journal(KeptFolder):
    """A folder with a file to which lines are added, each whole or not there.

    Attributes:
        folder: it is made; None keeps nothing.
        kept: what is there already, by key and number.
    """

    kept: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def opened(self, made_with: Mapping[str, Any]) -> Iterator[None]:
        """Inside, lines made with this are taken and added, by this process alone.

        Raises:
            FieldError: as `KeptFolder.opened`.
        """
        with super().opened(made_with):
            if self.folder is not None:
                _end_whole(self.folder / LINES)
                self.kept = dict(_lines(self.folder / LINES))
            yield

    def take(self, key: Mapping[str, Any], number: int) -> dict[str, Any] | None:
        """The line of that key and number, if it is there."""
        return self.kept.get((_key(key), number))

    def add(self, key: Mapping[str, Any], numbers: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a line for each row; they are on disk when this returns.

        Raises:
            FieldError: they cannot be written (a full disk). What was there before stays readable.
        """
        for number, row in zip(numbers, rows, strict=True):
            self.kept[_key(key), number] = dict(row)
        if self.folder is None:
            return
        text = "".join(
            json.dumps({"key": key, "number": number, "row": row}, allow_nan=False) + "\n"
            for number, row in zip(numbers, rows, strict=True)
        )
        try:
            _append(self.folder / LINES, text.encode())
        except OSError as error:
            raise FieldError("keep", hint=f"cannot write there ({error.strerror})", value=self.folder) from None


def _end_whole(path: Path) -> None:
    """Take away a last line that a kill left half written, so that the next one begins a line of its own."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _key(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _lines(path: Path) -> Iterable[tuple[tuple[str, int], dict[str, Any]]]:
    """What is in the file; a line that a kill left half written is not."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
            yield (_key(found["key"]), int(found["number"])), dict(found["row"])
        except (ValueError, TypeError, KeyError):
            continue
