"""How far each number type carries the constructions: the largest M for a dtype and a slope.

Two things give out.

1. Underflow. Layer 1 hands on f(t) ~ e^{-s(t-1)}, and the MLP must tell f(M+1) from f(M+2). Below the smallest normal
   number a float loses its digits one by one; we stop there, since with every digit lost p(t) is off by more. So
   s(M+1) must stay under about 87 in float32 and 708 in float64. (At s = 1 f is 0 from t = 105 and t = 747 on.)
2. Resolution. Near the threshold neighbouring values of o_t differ by 1/M, and scores of size s t carry a rounding
   error eps * s * t, which softmax turns into a relative error of the weights; summing t of them adds eps * sqrt(t).

A smaller slope moves the first limit to 1/s times as many positions; the second then sets the largest M of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from constructions.errors import ConstructionError, require
from constructions.multiprecision import mp
from constructions.recovery import f_values
from constructions.weave import Linear
from constructions.weights import Construction


@dataclass(frozen=True)
class NumberType:
    """The spacing of numbers near 1, and -ln of the smallest normal number."""

    eps: float
    depth: float


NUMBERS = {
    "float32": NumberType(2.0**-23, 126 * math.log(2)),
    "float64": NumberType(2.0**-52, 1022 * math.log(2)),
    "mpmath": NumberType(1e-48, math.inf),
}
ERROR = 8
"""Rounding error of a weight, in units of eps * (1 + s t + sqrt(t)); what tests measure stays below."""


def tolerance(dtype: str, slope: float, length: float) -> float:
    """The rounding error allowed to o_t, relative to |value a_1(t)| + |1 - H|, over `length` positions."""
    return ERROR * NUMBERS[dtype].eps * (1 + slope * length + math.sqrt(length))


def depth(slope: float, t: float) -> float:
    """-ln f(t) for the unwoven PE: s(t-1) + ln S(t)."""
    if slope == 0:
        return math.log(t)
    return slope * (t - 1) + math.log(math.expm1(-slope * t) / math.expm1(-slope))


def _fits(M: int, dtype: str, slope: float, H: float) -> bool:
    number = NUMBERS[dtype]
    resolved = tolerance(dtype, slope, M + 2) * (1 + abs(1 - H)) < 0.5 / (M + 2)
    return resolved and (slope == 0 or depth(slope, M + 2) <= number.depth)


def largest_m(dtype: str, slope: float, H: float = 0.0) -> int | None:
    """The largest M for which Theorem 3.2 can be realized (slope 0: Theorem 3.1); None: no limit.

    Raises:
        ConstructionError: an unknown dtype, a slope below 0, or nothing fits because |H| is too large.
    """
    require(dtype in NUMBERS, "dtype", " | ".join(NUMBERS), dtype)
    require(math.isfinite(slope) and slope >= 0, "slope", "a finite number >= 0", slope)
    if dtype == "mpmath":
        return None
    low, high = 1, 2
    while _fits(high, dtype, slope, H):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(middle, dtype, slope, H) else (low, middle)
    if not _fits(2, dtype, 0.0, H):
        raise ConstructionError(f"H: {dtype} cannot tell o_t from H = {H} at any M; use a smaller |H| or mpmath")
    return low


def _rounded_down(x: float) -> float:
    """x to two significant digits, towards 0."""
    unit: float = 10.0 ** (math.floor(math.log10(x)) - 1)
    return float(f"{math.floor(x / unit * (1 + 1e-12)) * unit:.2g}")


def largest_slope(dtype: str, M: int) -> float | None:
    """The largest slope at which M fits, to two significant digits, rounded down; None if no slope would do."""
    if dtype == "mpmath":
        return math.inf
    slope = NUMBERS[dtype].depth / (M + 1)
    for _ in range(200):
        if _fits(M, dtype, _rounded_down(slope), 0.0):
            return _rounded_down(slope)
        slope *= 0.95
    return None


def longest(built: Construction, dtype: str, length: int) -> int:
    """The longest run up to `length` over which f_W stays above the smallest normal number of dtype."""
    if dtype == "mpmath" or built.recovery is None or isinstance(built.weave, Linear):
        return length
    values = f_values(built.weave, length, built.slope)
    floor = mp.exp(-mp.mpf(NUMBERS[dtype].depth))
    return next((t for t, value in enumerate(values) if value < floor), length)


def _remedies(M: int, dtype: str, slope: float) -> str:
    would_do = largest_slope(dtype, M)
    options = [f"slope {would_do:g} or less"] if would_do is not None and would_do < slope else []
    if dtype == "float32" and _fits(M, "float64", slope, 0.0):
        options.append("dtype float64")
    return ", ".join([*options, "or dtype mpmath" if options else "dtype mpmath"])


def check_precision(built: Construction, dtype: str, length: int) -> None:
    """Raise ConstructionError, naming what would do, if `dtype` cannot carry this construction over `length`."""
    require(dtype in NUMBERS, "dtype", " | ".join(NUMBERS), dtype)
    number, M, slope = NUMBERS[dtype], built.M, built.slope
    # Exact recovery has knots for the woven positions alone: only the resolution, as without a PE, limits M.
    limit = largest_m(dtype, 0.0 if built.recovery == "exact" else slope, built.H)
    if limit is not None and limit < M:
        raise ConstructionError(
            f"M = {M} is past the precision of {dtype} at slope {slope:g} (largest M: {limit}); "
            f"use {_remedies(M, dtype, slope)}"
        )
    if dtype == "mpmath" or built.recovery is None or isinstance(built.weave, Linear):
        return  # without a weave the MLP is constant past t = M + 2: there f(t) may underflow
    reached = float(-mp.log(min(f_values(built.weave, length, slope))))
    if reached > number.depth:
        would_do = _rounded_down(slope * number.depth / reached)
        raise ConstructionError(
            f"length = {length} is past the precision of {dtype} at slope {slope:g}: f falls to e^-{reached:.0f}, "
            f"the limit is e^-{number.depth:.0f}; use slope {would_do:g} or less, or dtype mpmath"
        )
