"""Confidence intervals."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson(right: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927, without continuity correction): (low, high), each 0 to 1."""
    found = binomtest(right, total).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
