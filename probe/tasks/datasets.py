"""Texts of a file or folder of data: JSON Lines, Parquet, or Arrow as the `datasets` library saves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from probe.errors import FieldError, literal

COLUMN = "text"


def _arrow(path: Path) -> pa.Table:
    """The `datasets` library writes streams, others files."""
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".jsonl": pyarrow.json.read_json,
    ".parquet": pyarrow.parquet.read_table,
    ".arrow": _arrow,
}


def dataset_texts(place: str) -> list[str]:
    """Its texts, the longest first.

    Args:
        place: PATH or PATH#COLUMN: a file, or a folder all of whose files of these kinds are read, in the order of
            their names. Without a column it is "text", or the only one that holds texts.

    Raises:
        FieldError: nothing there can be read, or there is no such column, or none that can only be meant.
    """
    name, _, column = place.partition("#")
    path = Path(name).expanduser()
    texts = [text for table in _tables(path, place) for text in _column(table, column, place) if text]
    if not texts:
        raise FieldError("input", "some texts", "none", value=f"dataset:{place}")
    return sorted(texts, key=len, reverse=True)


def _tables(path: Path, place: str) -> Iterator[pa.Table]:
    kinds = ", ".join(f"*{ending}" for ending in READERS)
    # Hidden files and those of the datasets library's cache are not data.
    inside = [
        one for one in sorted(path.rglob("*")) if one.suffix in READERS and not one.name.startswith((".", "cache-"))
    ]
    files = inside if path.is_dir() else [path]
    if not files or not all(one.suffix in READERS for one in files):
        raise FieldError("input", hint=f"expected {kinds}, or a folder with some", value=f"dataset:{place}")
    for file in files:
        try:
            yield READERS[file.suffix](file)
        except (OSError, ValueError, pa.ArrowException) as error:
            said = f"cannot read {literal(str(file))}: {type(error).__name__}"
            raise FieldError("input", hint=said, value=f"dataset:{place}") from None


def _column(table: pa.Table, column: str, place: str) -> list[str | None]:
    worded = [one.name for one in table.schema if pa.types.is_string(one.type) or pa.types.is_large_string(one.type)]
    if not column:
        column = COLUMN if COLUMN in worded or len(worded) != 1 else worded[0]
    if column not in worded:
        raise FieldError(
            "input", hint=f"no column {literal(column)} of texts; has {', '.join(map(literal, worded)) or 'none'}: "
            "name one, as PATH#COLUMN", value=f"dataset:{place}",
        )  # fmt: skip
    found: list[str | None] = table.column(column).to_pylist()
    return found
