"""The first layer's MLP: a ReLU network that turns the head's output x = f(t) back into a position.

All three kinds below are one hidden layer of ReLU units that draws a polygon through knots (x_k, y_k), x_1 > x_2 > ...:

    y(x) = y_1 + sum_k c_k relu(x_k - x),    c_k = (slope after knot k) - (slope before it),

constant left of the first and right of the last knot. They differ in their knots alone:

- `mlp`: (f(k), k) for k = 1..K, f being that of the *unwoven* PE. One unit per recoverable position; the weights of
  Theorem 3.2, which Theorem 3.3 keeps. Under a weave x falls between knots and the position drifts.
- `rounded`: the same knots, but steep steps half-way between them, so that the output is an integer. This is
  rounding, as a network. It removes the drift while the drift is below 1/2, and no longer.
- `exact`: (f_W(t), W(t-1) + 1) for t = 1..length, f_W being that of the weave in use. This is what the proof of Theorem
  3.3 needs of the MLP. Its weights depend on W, so they are no longer the weights of Theorem 3.2.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from typing import Any

from constructions.errors import ConstructionError, require
from constructions.multiprecision import mp
from constructions.weave import Linear, Weave
from constructions.weights import RESERVED, STATE, Fillers, Mlp, matrix

KINDS = ("mlp", "exact", "rounded")
STEP = mp.mpf(1) / 64
"""Width of a rounding step, as a part of the gap between two knots. A steeper one would magnify errors more."""


@dataclass(frozen=True)
class Knots:
    """The corners of a polygon, x falling from 1 to 0, y the recovered position there."""

    x: tuple[Any, ...]
    y: tuple[Any, ...]

    def __call__(self, x: Any) -> Any:
        """The recovered position at x (an mpmath number), by interpolation: the MLP without its units."""
        k = bisect_left(self.x, -x, key=lambda v: -v)  # the first knot with x_k <= x
        if k == 0:
            return self.y[0]
        if k == len(self.x):
            return self.y[-1]
        part = (self.x[k - 1] - x) / (self.x[k - 1] - self.x[k])
        return self.y[k - 1] + part * (self.y[k] - self.y[k - 1])


def f_values(weave: Weave, length: int, slope: float) -> list[Any]:
    """f_W(t) = e^{-s W(t-1)} / sum_{j<t} e^{-s W(j)} for t = 1..length: what layer 1's head gives (Theorem 3.2).

    For a weave that is not a function of the distance the sum runs over W(t, i).
    """
    power = cache(lambda w: mp.exp(-mp.mpf(slope) * mp.mpf(w)))
    if weave.by_distance:
        total, out = mp.mpf(0), []
        for d in range(length):
            total += power(weave.of(d))
            out.append(power(weave.of(d)) / total)
        return out
    rows = ([power(weave(t, i)) for i in range(t + 1)] for t in range(length))
    return [row[0] / mp.fsum(row) for row in rows]


def mlp_knots(capacity: int, slope: float) -> Knots:
    """The knots of Theorem 3.2: (f(k), k) for k = 1..capacity."""
    return Knots(tuple(f_values(Linear(), capacity, slope)), tuple(mp.mpf(k) for k in range(1, capacity + 1)))


def rounded_knots(capacity: int, slope: float) -> Knots:
    """Steps from k to k + 1 where the polygon of mlp_knots passes k + 1/2."""
    f = f_values(Linear(), capacity, slope)
    x, y = [f[0]], [mp.mpf(1)]
    for k in range(1, capacity):
        gap, middle = f[k - 1] - f[k], (f[k - 1] + f[k]) / 2
        x += [middle + STEP * gap / 2, middle - STEP * gap / 2]
        y += [mp.mpf(k), mp.mpf(k + 1)]
    return Knots(tuple(x), tuple(y))


def exact_knots(weave: Weave, length: int, slope: float) -> Knots:
    """(f_W(t), W(t-1) + 1) for t = 1..length, without the knots at which the polygon does not turn.

    Raises:
        ConstructionError: f_W does not fall where W rises, so that no MLP can tell the two positions apart.
    """
    x = f_values(weave, length, slope)
    y = [mp.mpf(weave(t, 0)) + 1 for t in range(length)]
    keep = [0]
    for t in range(1, length):
        before, after = y[t] - y[t - 1], y[t + 1] - y[t] if t + 1 < length else 0
        if before != 0 and not x[t] < x[t - 1]:
            raise ConstructionError(f"exact recovery: f_W is the same at t = {t} and {t + 1} under {weave.name}")
        # A knot inside a flat stretch turns nothing, nor does one that 50 digits cannot tell from the last.
        if (before != 0 or after != 0) and x[t] < x[keep[-1]]:
            keep.append(t)
    return Knots(tuple(x[t] for t in keep), tuple(y[t] for t in keep))


def knots(kind: str, weave: Weave, length: int, capacity: int, slope: float) -> Knots:
    """The knots of a recovery kind; `capacity` counts those of mlp and rounded, `length` bounds those of exact.

    Raises:
        ConstructionError: the kind is unknown, or `exact` cannot be built for this weave.
    """
    require(kind in KINDS, "recovery", " | ".join(KINDS), kind)
    if kind == "exact":
        return exact_knots(weave, length, slope)
    return mlp_knots(capacity, slope) if kind == "mlp" else rounded_knots(capacity, slope)


def recovery_mlp(corners: Knots, fillers: Fillers) -> Mlp:
    """The MLP that reads x in STATE and writes y(x) - x there, so that the residual stream is left with y(x)."""
    d = RESERVED + fillers.extra_dims
    x, y = corners.x, corners.y
    tangent = [(y[k + 1] - y[k]) / (x[k] - x[k + 1]) for k in range(len(x) - 1)]  # d y / d(-x) after knot k
    turns = [after - before for before, after in zip([mp.mpf(0), *tangent], [*tangent, mp.mpf(0)], strict=True)]
    units = len(turns) + 1
    w_in, b_in, w_out, b_out = matrix((d, units)), matrix((units,)), matrix((units, d)), matrix((d,))
    for k, turn in enumerate(turns):
        # c_k grows like 1/f(k) ~ e^{sk}: half of it on either side of the ReLU keeps both weights in range for as
        # long as f(k) itself is.
        root = mp.sqrt(abs(turn))
        w_in[STATE, k], b_in[k] = -root, root * x[k]
        w_out[k, STATE] = mp.sign(turn) * root
    # The stream still holds x > 0: one more unit, relu(x), takes it away.
    w_in[STATE, -1], w_out[-1, STATE] = mp.mpf(1), mp.mpf(-1)
    b_out[STATE] = y[0]
    return Mlp(w_in, b_in, w_out, b_out)
