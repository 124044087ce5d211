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


_OF_WINDOW = re.compile(r"(\d+(?:\.\d+)?)?M(?:/(\d+))?")


def parse_lengths(text: str) -> tuple[int | str, ...]:
    """Lengths from "128,512", "M/2,M,2M,1.5M" or a mix: tokens as numbers, windows as text for `lengths_at`.

    Raises:
        FieldError: anything else.
    """
    found: list[int | str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found += [part] if _OF_WINDOW.fullmatch(part) else parse_numbers(part, "lengths", ())
    if not found:
        raise FieldError("lengths", "numbers of tokens like 512,1024, or of windows like M/2,M,2M", repr(text))
    return tuple(dict.fromkeys(found))


def lengths_at(window: int, lengths: Sequence[int | str]) -> tuple[int, ...]:
    """Lengths in tokens, for a trained window M.

    Args:
        window: tokens.
        lengths: tokens, or text such as "M", "M/2", "2M" and "1.5M".

    Raises:
        FieldError: a text of another form.

    >>> lengths_at(512, ["M/4", "1.5M", 1000])
    (128, 768, 1000)
    """
    found = []
    for length in lengths:
        if isinstance(length, str):
            match = _OF_WINDOW.fullmatch(length.strip())
            if match is None:
                raise FieldError("lengths", "numbers of tokens, or of windows like M/2, M, 2M", repr(length))
            length = int(float(match[1] or 1) * window / int(match[2] or 1))
        found.append(int(length))
    return tuple(dict.fromkeys(found))


def format_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned text; None is '-', numbers are right-aligned."""
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max([len(name), *(len(line[at]) for line in cells)]) for at, name in enumerate(columns)]
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


def parse_names(text: str | None, between: str = ",") -> list[str] | None:
    """Names with commas, or something else, between them; None stays None."""
    return None if text is None else [name.strip() for name in text.split(between) if name.strip()]
