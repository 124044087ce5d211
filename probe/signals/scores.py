"""From a signal's course to a number that says how far the end of an input is from what the model knew in its window.

A unit's departure is how far its mean over the last blocks lies from its median inside the window, in robust standard
deviations of its blocks there. A signal has many units (heads, layers, dimensions), and models differ in how many: what
can be compared between models is the mean departure, the largest, and the share of units that are past three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import rankdata

Values = Float[np.ndarray, "samples layers units blocks"]
Units = Float[np.ndarray, "layers units"]

MOST = 100.0
"""Departures count as no more than this: a unit that never moved inside the window has no scale of its own."""
FAR = 3.0
AGGREGATES = ("mean", "max", "share")


@dataclass(frozen=True)
class Inside:
    """Where a signal's units lie inside the window.

    Attributes:
        median: [layers, units], over texts and blocks.
        scale: [layers, units], robust standard deviation; kept above rounding noise.
    """

    median: Units
    scale: Units

    def departures(self, values: Values, blocks: slice) -> Units:
        """Of the mean over texts and some blocks, in standard deviations, at least 0; NaN where there is no value."""
        mean = _nanmean(values[..., blocks].astype(np.float64))
        found: Units = np.minimum(np.abs(mean - self.median) / self.scale, MOST)
        return found


def _nanmean(values: NDArray[np.float64]) -> Units:
    """Mean over texts and blocks of what is there."""
    known = np.isfinite(values)
    counts = known.sum((0, 3))
    sums = np.where(known, values, 0.0).sum((0, 3))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def inside_of(values: Values, start: int) -> Inside:
    """What a signal's units are like inside the window.

    Args:
        values: of the model as trained, on texts no longer than its window.
        start: first block that counts.
    """
    flat = values[..., start:].astype(np.float64).transpose(1, 2, 0, 3).reshape(*values.shape[1:3], -1)
    known = np.asarray(np.isfinite(flat).any(-1))
    flat = np.where(known[..., None], flat, 0.0)
    median = np.nanmedian(flat, -1)
    spread = 1.4826 * np.nanmedian(np.abs(flat - median[..., None]), -1)
    scale = np.maximum(np.maximum(spread, 1e-6 * np.nanmax(np.abs(flat), -1)), 1e-12)
    return Inside(np.where(known, median, np.nan), scale)


def aggregated(departures: Units) -> dict[str, float]:
    """The mean departure of all units that have one, the largest, and the share of them past three; empty where none
    has.
    """
    known = departures[np.isfinite(departures)]
    if not known.size:
        return {}
    return {"mean": float(known.mean()), "max": float(known.max()), "share": float((known > FAR).mean())}


def auroc(scores: Float[np.ndarray, pairs * units], fails: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Chance that a failing pair has the higher score than one that holds, ties half (Mann-Whitney), of every unit.

    Args:
        scores: of every pair, and unit; no NaN.
        fails: of every pair.

    Returns:
        [*units]; None where all pairs fail, or none.
    """
    failing = int(fails.sum())
    if failing in (0, len(fails)):
        return None
    ranks = rankdata(scores, axis=0)[fails].sum(0)
    return np.asarray((ranks - failing * (failing + 1) / 2) / (failing * (len(fails) - failing)))


def named(departures: Mapping[str, Units], prefix: str = "") -> dict[str, float]:
    """{"norm.mean": ..., "norm.max": ...} of several signals, to a ten-thousandth."""
    return {
        f"{prefix}{signal}.{name}": round(value, 4)
        for signal, units in departures.items()
        for name, value in aggregated(units).items()
    }
