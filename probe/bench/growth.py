"""How time and memory grow with the length: the exponent of a power law, with its interval (the paper's Table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEAST = 3
"""Lengths from which on there is an interval."""


@dataclass(frozen=True)
class Growth:
    """A measured quantity of a scheme goes like length to this power.

    Attributes:
        what: the benchmark, and "time" or "memory".
        scheme: its text, or "stock".
        exponent: 1 is linear, 2 quadratic.
        low: lower end of its 95% interval (least squares on logarithms, Student's t).
        high: upper end.
        shortest: first of the lengths, tokens.
        longest: last of them.
    """

    what: str
    scheme: str
    exponent: float
    low: float
    high: float
    shortest: int
    longest: int


def growths(rows: Sequence[Mapping[str, Any]]) -> list[Growth]:
    """The growth of every scheme that was measured at `LEAST` lengths or more, of seconds and of peak bytes.

    Args:
        rows: of a benchmark, as `Result.to_json` has them.
    """
    found = []
    for key, name in (("seconds", "time"), ("peak_bytes", "memory")):
        groups: dict[tuple[str, str], dict[int, float]] = {}
        for row in rows:
            if row.get(key):
                mine = groups.setdefault((str(row.get("what", "")), str(row["scheme"])), {})
                mine[int(row["length"])] = float(row[key])
        found += [
            _fit(what if what == name else f"{what} {name}".strip(), scheme, mine)
            for (what, scheme), mine in groups.items()
            if len(mine) >= LEAST
        ]
    return found


def _fit(what: str, scheme: str, values: Mapping[int, float]) -> Growth:
    lengths = sorted(values)
    line = stats.linregress(np.log(lengths), np.log([values[length] for length in lengths]))
    half = float(stats.t.ppf(0.975, len(lengths) - 2) * line.stderr)
    slope = float(line.slope)
    return Growth(what, scheme, slope, slope - half, slope + half, lengths[0], lengths[-1])
