"""Change points: where a series' mean jumps to a level that it never had inside the window.

The series is cut into segments of constant mean by PELT (Killick et al. 2012, https://arxiv.org/abs/1101.1438; the
`ruptures` library's), each no shorter than a run. What a cut costs is calibrated inside the window: as much as the best
single cut gains in the trained model's own window, continued at the level of its end to the length in question; and
`margin` squared times the noise there times the logarithm of the length, which is what chance gives. A segment fails
where its mean lies outside all means of a run inside the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from probe.errors import ProbeError

PER_RUN = 4
"""Points that a run is reduced to, each a mean: the cost of a search grows with the square of the points."""
Points = Float[np.ndarray, " points"]


@dataclass(frozen=True)
class Change:
    """The first segment of a series that lies outside, or the one that comes nearest to it.

    Attributes:
        position: of its first point; None where none lies outside.
        above: whether the bound in question is the upper one.
        bound: the largest mean of a run inside the window, or the least.
        excess: how far the segment that lies outside furthest does so, or (negative) comes to it.
    """

    position: int | None
    above: bool
    bound: float
    excess: float


def points(series: Float[np.ndarray, " positions"], size: int) -> Points:
    """Means of `size` positions each; what is left over at the end is left out."""
    whole = len(series) // size * size
    means: NDArray[np.float64] = series[:whole].reshape(-1, size).mean(1)
    return means


def single_cut(values: Points, least: int) -> float:
    """By how much the best single cut lowers the squared error; 0 where there is no room for one."""
    count = len(values)
    at = np.arange(least, count - least + 1)
    if not len(at):
        return 0.0
    sums = np.cumsum(values)
    before, after = sums[at - 1] / at, (sums[-1] - sums[at - 1]) / (count - at)
    return float((at * (count - at) / count * np.square(after - before)).max())


def _noise(values: Points) -> float:
    """Variance of a point around its level, from differences of neighbours, unmoved by jumps; above rounding noise."""
    steps = np.abs(np.diff(values))
    spread = 1.4826 * float(np.median(steps)) / math.sqrt(2) if len(steps) else 0.0
    return max(spread, 1e-6 * float(np.abs(values).max(initial=0.0)), 1e-12) ** 2


def penalty(known: Points, count: int, least: int, margin: float) -> float:
    """What a cut of `count` points costs, squared error, by what the window itself is like."""
    end = known[-max(1, len(known) // 4) :].mean()
    quiet = np.concatenate([known, np.full(max(0, count - len(known)), end)])
    return single_cut(quiet, least) + max(margin, 1e-3) ** 2 * _noise(known) * math.log(max(count, 3))


def segments(values: Points, cost: float, least: int) -> list[tuple[int, int]]:
    """(first point, one past the last) of every segment, at so much a cut.

    Raises:
        ProbeError: ruptures is not installed.
    """
    if len(values) < 2 * least:
        return [(0, len(values))]
    try:
        from ruptures import KernelCPD
    except ModuleNotFoundError:
        raise ProbeError("detector change needs ruptures: install it, or take another detector") from None

    # In units of the cost and around the mean: a linear kernel of large numbers would round differences away.
    scaled = ((values - values.mean()) / math.sqrt(cost))[:, None]
    ends = [int(end) for end in KernelCPD(kernel="linear", min_size=least).fit(scaled).predict(pen=1.0)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def first_change(
    reference: Float[np.ndarray, " inside"], series: Float[np.ndarray, " positions"], run: int, margin: float
) -> Change:
    """The first segment of a series whose level lies outside those inside the window.

    Args:
        reference: the trained model's series inside its window, past the burn-in.
        series: what is judged, past the burn-in.
        run: positions that a segment has at least.
        margin: robust standard deviations, as everywhere.

    Raises:
        ProbeError: ruptures is not installed.
    """
    size = max(1, min(run // PER_RUN, len(reference)))
    known, values = points(reference, size), points(series, size)
    least = max(1, min(-(-run // size), len(known)))
    levels = np.lib.stride_tricks.sliding_window_view(known, least).mean(1)
    low, high = float(levels.min()), float(levels.max())
    # What rounding alone does to a mean is no change.
    slack = 1e-9 * max(abs(low), abs(high))
    found: list[tuple[float, int, bool]] = []
    for first, end in segments(values, penalty(known, len(values), least, margin), least) if len(values) else ():
        mean = float(values[first:end].mean())
        above = mean - high >= low - mean
        found.append(((mean - high if above else low - mean) - slack, first, above))
    outside = next((one for one in found if one[0] > 0), None)
    excess, _, above = max(found) if outside is None and found else outside or (-math.inf, 0, True)
    return Change(
        None if outside is None else outside[1] * size,
        above,
        high if above else low,
        max((one[0] for one in found), default=excess),
    )
