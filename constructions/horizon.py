"""G(t) and o_t from their formulas, number by number, and where o_t crosses H: what a run is compared with.

No transformer in here. With p(i) the position that layer 1 recovers,

    o_t = value / G(t) - 1 + H,   G(t) = sum_{i=1..t} exp(s[p(1) - p(i) + W(t-1) - W(t-i)]).

Indices: the paper's t is 1-based. Arrays here are indexed by T = t - 1, the number of tokens after <bos>, which is
also the 0-based position; every crossing is reported as such a T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from constructions.errors import require
from constructions.multiprecision import mp
from constructions.recovery import STEP, f_values
from constructions.weave import Weave
from constructions.weights import Construction


def smooth_inverse(x: Any, slope: float) -> Any:
    """The real position tau with f(tau) = x: ln(1 + (e^s - 1)/x) / s, f being that of the unwoven PE."""
    s = mp.mpf(slope)
    return mp.log(1 + mp.expm1(s) / x) / s


def polygon_inverse(x: Any, slope: float, capacity: int | None = None) -> Any:
    """Theorem 3.2's MLP as a formula: between f(k) and f(k+1) linear in x, constant past f(capacity)."""
    s = mp.mpf(slope)

    def f(k: int) -> Any:
        return mp.exp(-s * (k - 1)) * mp.expm1(-s) / mp.expm1(-s * k)

    k = max(1, int(mp.floor(smooth_inverse(x, slope))))
    if capacity is not None and k >= capacity:
        return mp.mpf(capacity)
    return k + (f(k) - x) / (f(k) - f(k + 1))


def capacity_for(weave: Weave, length: int, slope: float) -> int:
    """How many positions the MLP of Theorem 3.2 must recover for `length` positions to stay left of its last knot."""
    return int(mp.ceil(smooth_inverse(min(f_values(weave, length, slope)), slope) - mp.mpf("1e-20"))) + 1


def recovered(weave: Weave, length: int, slope: float, recovery: str, capacity: int | None = None) -> list[Any]:
    """p(t) for t = 1..length, as mpmath numbers: what layer 1 leaves in STATE.

    'exact' is W(t-1) + 1; 'mlp' interpolates f_W(t) between the knots of f; 'rounded' rounds that by steep steps.
    """
    if recovery == "exact":
        return [mp.mpf(weave(t, 0)) + 1 for t in range(length)]
    p = [polygon_inverse(x, slope, capacity) for x in f_values(weave, length, slope)]
    return [_stepped(v) for v in p] if recovery == "rounded" else p


def _stepped(p: Any) -> Any:
    whole = mp.floor(p)
    return whole + min(mp.mpf(1), max(mp.mpf(0), (p - whole - 0.5) / STEP + 0.5))


def growth(weave: Weave, p: list[Any], slope: float) -> np.ndarray:
    """G(t) for t = 1..len(p), float64: by summing the definition."""
    position = np.array([float(v) for v in p])
    i = np.arange(len(p))
    out = np.empty(len(p))
    with np.errstate(over="ignore"):
        for t in i:
            keys = i[: t + 1]
            pe = np.asarray(weave(t, keys), dtype=float)
            out[t] = np.exp(slope * (position[0] - position[: t + 1] + float(weave(t, 0)) - pe)).sum()
    return out


def growth_mp(weave: Weave, p: list[Any], slope: float) -> np.ndarray:
    """G(t) for t = 1..len(p) in mpmath, an object array: for evaluation beyond float64."""
    s = mp.mpf(slope)
    out = []
    for t in range(len(p)):
        start = p[0] + mp.mpf(weave(t, 0))
        out.append(mp.fsum(mp.exp(s * (start - p[i] - mp.mpf(weave(t, i)))) for i in range(t + 1)))
    return np.array(out, dtype=object)


def weight_of_bos(built: Construction, length: int, exactly: bool = False) -> np.ndarray:
    """1/G(t) for t = 1..length from the formulas; mpmath numbers if `exactly`, float64 if not."""
    if built.recovery is None:
        t = np.array([mp.mpf(t) for t in range(1, length + 1)], dtype=object)
        return 1 / t if exactly else (1 / t).astype(float)
    p = recovered(built.weave, length, built.slope, built.recovery, built.capacity)
    return 1 / (growth_mp if exactly else growth)(built.weave, p, built.slope)


def predicted(built: Construction, length: int, exactly: bool = False) -> np.ndarray:
    """o_t for t = 1..length from the formulas."""
    H = mp.mpf(built.H) if exactly else built.H
    return built.value * weight_of_bos(built, length, exactly) - 1 + H


@dataclass(frozen=True)
class Crossing:
    """Where a sequence of o_t stands to H, in T (0-based position).

    `first_failure`: the first T with o_T <= H, None if there is none. `settled`: from this T on o_T <= H for as long
    as was looked; None if the last value is above. They differ where o_t crosses H more than once.
    """

    first_failure: int | None
    settled: int | None


def crossing(above: np.ndarray) -> Crossing:
    """The crossing of a sequence of truth values o_T > H, indexed by T."""
    above = np.asarray(above, dtype=bool)
    require(above.size > 0, "sequence", "at least one position", 0)
    first = None if above.all() else int(np.argmin(above))
    if above[-1]:
        return Crossing(first, None)
    last = np.nonzero(above)[0]
    return Crossing(first, int(last[-1]) + 1 if last.size else 0)


def scan(weave: Weave, value: int, slope: float, length: int, recovery: str = "exact") -> Crossing:
    """The crossing of o_t for T < length, by evaluating G(t) at every t; o > H iff G < value.

    A tie within 1e-9 of value, as every integer G makes it for W(d) = d, counts as o = H.
    """
    G = growth(weave, recovered(weave, length, slope, recovery), slope)
    return crossing(value * (1 - 1e-9) > G)


def is_subadditive(weave: Weave, length: int) -> bool:
    """Whether W(0) = 0 and W(a + b) <= W(a) + W(b) for all a + b < length, by enumeration."""
    w = np.array([float(weave.of(d)) for d in range(length)])
    return w[0] == 0 and all((w[a:] <= w[: length - a] + w[a] + 1e-12).all() for a in range(length))
