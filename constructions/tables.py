"""The horizon table and the precision map, as text that is also Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from constructions.closed_form import drifting_horizon_clamp, exact_crossing
from constructions.horizon import scan
from constructions.multiprecision import mp
from constructions.precision import NUMBERS, largest_m
from constructions.theorem_32 import check_slope
from constructions.theorem_33 import check_band
from constructions.weave import Clamp, Grouped, Leaky, Linear, Stair, Weave

REACH = 1700
"""How far the horizon with Theorem 3.2's weights is looked for by evaluating G at every t."""


def _markdown(rows: Sequence[Sequence[object]]) -> str:
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _compact(number: int | None) -> str:
    if number is None:
        return "-"
    return f"{number:,}" if number < 10**7 else f"{mp.nstr(mp.mpf(number), 3)}"


def _drifting(weave: Weave, value: int, slope: float) -> str:
    """The horizon with Theorem 3.2's weights: first failing T and the T from which it fails for good."""
    if isinstance(weave, Clamp):
        bound = drifting_horizon_clamp(weave.N, value, slope)
        if bound > REACH:
            return f"> {mp.nstr(bound, 2)}"
    found = scan(weave, value, slope, REACH, "mlp")
    if found.first_failure is None:
        return f"> {REACH - 1}"
    settled = f"> {REACH - 1}" if found.settled is None else f"{found.settled}"
    return f"{found.first_failure} / {settled}"


def horizon_table(M: int, N: int, E: int, slope: float) -> str:
    """First failing T / T from which o_T <= H for good, per weave, printed (M) and corrected (M + 1).

    Raises:
        ConstructionError: N is not in 1..M-1, the slope is not positive.
        WeaveError: E < 1.
    """
    check_band(N, M)
    check_slope(slope)
    weaves: list[tuple[str, Weave]] = [
        ("none (NoPE, PE)", Linear()),
        (f"ReRoPE, N = {N}", Clamp(N)),
        (f"Leaky ReRoPE, w = {N}, k = 8", Leaky(N, 8.0)),
        (f"Stair, N = {N}, E = {E}", Stair(N, E)),
        (f"Self-Extend, W = {2 * N}, G = 2", Grouped(2 * N, 2)),
    ]
    rows: list[tuple[object, ...]] = [("weave", "exact, M in W_V", "exact, M + 1 in W_V", "weights of 3.2, M + 1")]
    for name, weave in weaves:
        ends = []
        for value in (M, M + 1):
            known = exact_crossing(weave, value, slope)
            ends.append("-" if known is None else f"{_compact(known.first_failure)} / {_compact(known.settled)}")
        rows.append((name, *ends, _drifting(weave, M + 1, slope)))
    return _markdown(rows)


def precision_table(slopes: Sequence[float] = (0.0, 1.0, 0.5, 0.1, 0.01, 0.001)) -> str:
    """The largest M per slope and number type; slope 0 is NoPE, mpmath has no limit."""
    rows: list[tuple[object, ...]] = [("slope", *NUMBERS)]
    for slope in slopes:
        limits = [largest_m(dtype, slope) for dtype in NUMBERS]
        cells = ["no limit" if limit is None else _compact(limit) for limit in limits]
        rows.append(("0 (NoPE)" if slope == 0 else f"{slope:g}", *cells))
    return _markdown(rows)
