"""Text at the edge: ranges of numbers that people type, tables that they read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from probe.errors import FieldError


def parse_numbers(text: str, what: str, everything: Sequence[int]) -> tuple[int, ...]:
    """Numbers from "1,2", "0-19", "all" or a mix; order kept, repeats dropped.

    Args:
        text: what was typed.
        what: the field that they are for: "layers".
        everything: what "all" means; where it is empty, there is no "all".

    Raises:
        FieldError: anything else.
    """
    numbers: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"(-?\d+)(?:-(\d+))?", part)
        if part == "all" and everything:
            numbers += everything
        elif match and match[2] is not None and int(match[2]) < int(match[1]):
            raise FieldError(what, "a range that ends where it begins or later", repr(part))
        elif match and match[2] is not None and int(match[2]) - int(match[1]) < 1_000_000:
            numbers += range(int(match[1]), int(match[2]) + 1)
        elif match and match[2] is None:
            numbers.append(int(match[1]))
        else:
            raise FieldError(what, f"numbers like 1,2 or 0-19{' or all' if everything else ''}", repr(text))
    return tuple(dict.fromkeys(numbers))


def format_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned text; None is '-', numbers are right-aligned."""
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[at]) for line in cells)) for at, name in enumerate(columns)]
    number = [all(not isinstance(row[name], str) for row in rows) for name in columns]
    lines = [list(columns), ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, number, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
