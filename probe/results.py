"""Files of results, written while they come, and Markdown tables of them."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, Generic, Protocol, SupportsIndex, TypeVar, overload, runtime_checkable

from probe.errors import FieldError, ProbeError, literal
from probe.provenance import Provenance

R = TypeVar("R")


class Records(tuple[R, ...], Generic[R]):
    """Rows of one kind, each a frozen dataclass, as a tuple that shows itself as a table.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Score:
    ...     scheme: str
    ...     length: int
    >>> Records([Score("origin", 512), Score("rerope", 512)]).column("scheme")
    ['origin', 'rerope']
    """

    @overload
    def __getitem__(self, at: SupportsIndex) -> R: ...

    @overload
    def __getitem__(self, at: slice) -> Records[R]: ...

    def __getitem__(self, at: Any) -> Any:
        """A row, or some of them as records."""
        found = super().__getitem__(at)
        return Records(found) if isinstance(at, slice) else found

    def to_json(self) -> list[dict[str, Any]]:
        """Each row as a dict, in the order of its fields."""
        return [asdict(row) for row in self]  # type: ignore[call-overload]

    def column(self, name: str) -> list[Any]:
        """One field of every row."""
        return [getattr(row, name) for row in self]

    def to_pandas(self) -> Any:
        """A DataFrame, a column per field; None is NA, and whole numbers stay whole beside it."""
        import pandas as pd

        return pd.DataFrame(self.to_json()).convert_dtypes()

    def _repr_html_(self) -> str:
        html: str = self.to_pandas()._repr_html_()
        return html


@dataclass(frozen=True)
class Result(Generic[R]):
    """What a command or a call of the library found: the one envelope of every kind of result.

    Attributes:
        kind: what made it: "run", "eval", "audit", "bench", "peers", "causes", "generate".
        settings: everything that was chosen, with what was left open filled in.
        provenance: what it was made with.
        rows: what was found.
        complete: False where it was stopped before its last row.
    """

    kind: str
    settings: Mapping[str, Any]
    provenance: Provenance
    rows: Records[R]
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """One JSON object: kind, complete, settings, provenance, rows."""
        return {
            "kind": self.kind, "complete": self.complete, "settings": dict(self.settings),
            "provenance": self.provenance.to_json(), "rows": self.rows.to_json(),
        }  # fmt: skip

    def to_pandas(self) -> Any:
        """The rows as a DataFrame."""
        return self.rows.to_pandas()

    def _repr_html_(self) -> str:
        state = "" if self.complete else " (stopped before its last row)"
        chosen = ", ".join(f"{key} {value}" for key, value in self.settings.items() if value is not None)
        return f"<p><b>{escape(self.kind)}</b>{state}: {escape(chosen)}</p>{self.rows._repr_html_()}"


Show = Callable[[Result[Any]], None]
"""What shows a result to a person."""


class Measurement(Protocol):
    """Rows that come one after another, in the course of `run`."""

    @property
    def rows(self) -> Sequence[Any]:
        """Those that are done."""

    def run(self) -> Iterator[str]:
        """Make the rows; yields lines that say how far it is."""

    def result(self, complete: bool) -> Result[Any]:
        """The rows so far, with what they were made with."""


class Counted(Measurement, Protocol):
    """One that knows how many lines its run will say."""

    @property
    def total(self) -> int:
        """So many, about."""


@runtime_checkable
class Told(Protocol):
    """One that also says how far it is within a row."""

    tell: Callable[[str], None]

    @property
    def share(self) -> float:
        """Of all that there is to do, what is done, 0 to 1."""


def carry_out(work: Measurement, out: Path | None, step: Callable[[str], None], show: Show) -> None:
    """Run a measurement to its end, or as far as it comes, and show what it found.

    The file is written at every step that brought rows, so that even a kill leaves those.

    Args:
        work: what is to be run.
        out: the file for the result, or None.
        step: told every line of the run.
        show: given the result at the end, however it ends, if there is a row.

    Raises:
        ProbeError: bad input to the measurement, or the file cannot be written.
    """
    complete, written = False, 0
    try:
        for line in work.run():
            step(line)
            if out is not None and len(work.rows) > written:
                write(work.result(False), out)
                written = len(work.rows)
        complete = True
    finally:
        if work.rows:
            if not complete:
                print("probe: not all rows were measured; these were", file=sys.stderr)
            deliver(work.result(complete), out, show)


def deliver(result: Result[Any], out: Path | None, show: Show) -> None:
    """Show a result and write it; neither is left out because the other failed (a closed pipe, a full disk).

    Raises:
        ProbeError: the file cannot be written.
    """
    try:
        show(result)
    finally:
        write(result, out)


def writable(path: Path | None) -> None:
    """Check a file to be written before an hour is spent on what goes in.

    Raises:
        ProbeError: it is a folder, or lies in none, or in one where nothing can be written.
    """
    if path is None:
        return
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise FieldError("out", "the name of a file", value=path)
    if not path.absolute().parent.is_dir():
        raise FieldError("out", hint=f"there is no folder {literal(path.absolute().parent)}", value=path)
    try:
        _part(path).touch()
        _part(path).unlink()
    except OSError as error:
        raise _unwritable(path, error) from None


def _part(path: Path) -> Path:
    """Where a file is written before it takes its place: the one that a link leads to, not the link's."""
    path = path.resolve()
    return path.with_name(f".{path.name}.part")


def _unwritable(path: Path, error: OSError) -> ProbeError:
    return FieldError("out", hint=f"cannot write there ({error.strerror})", value=path)


def write(result: Result[Any], path: Path | None) -> None:
    """Write a result as JSON, whole or not at all, packed where the name ends in .gz; nowhere if there is no path.

    Raises:
        ProbeError: the file cannot be written.
    """
    if path is None:
        return
    part = _part(path)
    try:
        text = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
        packed = path.suffix == ".gz"
        part.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())
        part.replace(path.resolve())
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        with suppress(OSError):  # it took its place, or was never there
            part.unlink()


def read(path: Path) -> dict[str, Any]:
    """A result as `Result.to_json` has it, from a file, which may be packed (.gz). JSON lines are the rows of a
    benchmark that was killed.

    Raises:
        ProbeError: it cannot be read, or holds no result.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
            return {"kind": "bench", "complete": False, "settings": {}, "provenance": {}, "rows": rows}
        result = json.loads(text)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ProbeError(f"{path}: expected a JSON file ({error})") from None
    if not isinstance(result, dict):
        raise ProbeError(f"{path}: expected a JSON object")
    for key, kind in (("kind", str), ("settings", dict), ("provenance", dict), ("rows", list)):
        if not isinstance(result.get(key), kind):
            raise ProbeError(f'{path}: expected a result with "kind", "settings", "provenance" and "rows"')
    return result


def pipe_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A Markdown table; columns of numbers are set to the right."""
    rule = ["---:" if number else "---" for number in numbers]
    return "\n".join("| " + " | ".join(line) + " |" for line in (titles, rule, *rows))
