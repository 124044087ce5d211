"""Theorem 3.3: weave the positions of Theorem 3.2's model, W(d) = min(d, N) with N < M, and it no longer fails at M.

Nothing but W changes: `build` takes the weights of Theorem 3.2 and replaces the weave. Then

- layer 1 gives <bos> the weight f_W(t) = e^{-s W(t-1)} / sum_{j<t} e^{-s W(j)}; the MLP makes of it a position p(t);
- layer 2's score of key i is, up to a constant, -s(p(i) + W(t - i)), so <bos> has the weight 1/G(t),
      G(t) = sum_{i=1..t} exp(s[p(1) - p(i) + W(t-1) - W(t-i)]);
- o_t = value/G(t) - 1 + H, above H iff G(t) < value.

If p(i) = W(i-1) + 1 ("exact" recovery) the exponent is s[W(t-1) - W(i-1) - W(t-i)], at most 0 for every subadditive
W: G(t) <= t, with equality for W(d) = d. No subadditive weave can be worse than no weave.

What the printed statement leaves out is the other end: G grows past every bound, so o_t falls below H in the end. For
t >= 2N, G(t) = 2 S(N) + (t - 2N) e^{-sN}, and the horizon is t* = 2N + e^{sN} (value - 2 S(N)).

And it needs a slope: as s goes to 0, G(t) goes to t for every W, and G(M + 2) < M + 1 holds no more.

The weights of Theorem 3.2 do not recover W(i-1) + 1 for i > N + 1: f_W keeps falling, from one knot of f towards the
next, and p drifts up like ln(1 + (e^s - 1) / f_W)/s. Nor does rounding p help for long, since the drift passes 1/2. The
drift works in favour of the theorem: it lowers the weight of every key past N + 1, G then grows like ln t, and the
horizon is exponential in M (see closed_form.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict, Unpack

from constructions import theorem_32
from constructions.errors import require
from constructions.horizon import capacity_for
from constructions.recovery import knots
from constructions.theorem_31 import LONGEST, bos_value
from constructions.theorem_32 import check_capacity, check_slope
from constructions.weave import Clamp, Weave
from constructions.weights import Construction, Fillers


class Woven(TypedDict, total=False):
    """What a woven construction takes beyond M, H and its weave."""

    slope: float
    length: int | None
    capacity: int | None
    recovery: str
    convention: str
    fillers: Fillers | None


def build_woven(theorem: str, weave: Weave, M: int, H: float, **options: Unpack[Woven]) -> Construction:
    """Theorem 3.2's model under any weave.

    `length` is how many positions will be run (default 2M + 8); it bounds the knots of exact recovery and, unless
    `capacity` is given, tells how many positions the MLP must recover to stay clear of its last knot. `recovery` is
    'mlp' (the weights of Theorem 3.2, the default), 'exact' or 'rounded'; `slope` is 1 and `convention` 'corrected'
    by default.

    Raises:
        ConstructionError: a parameter is outside its domain, or exact recovery is impossible for this weave.
    """
    slope, recovery = options.get("slope", 1.0), options.get("recovery", "mlp")
    convention, fillers = options.get("convention", "corrected"), options.get("fillers")
    bos_value(M, convention)
    check_slope(slope)
    length, capacity = options.get("length"), options.get("capacity")
    length = min(2 * M + 8, LONGEST) if length is None else length
    require(2 <= length <= LONGEST, "length", f"from 2 to {LONGEST} positions", length)
    capacity = max(M + 2, capacity_for(weave, length, slope)) if capacity is None else capacity
    check_capacity(capacity, M)
    if recovery == "mlp":
        plain = theorem_32.build(M, H, slope, capacity, convention, fillers)
    else:
        corners = knots(recovery, weave, length, capacity, slope)
        plain = theorem_32.assemble(M, H, slope, corners, convention, fillers)
        capacity = len(corners.x) if recovery == "exact" else capacity
    return replace(plain, theorem=theorem, weave=weave, recovery=recovery, capacity=capacity)


def check_band(N: int, M: int) -> None:
    """Raise ConstructionError unless 1 <= N < M."""
    bos_value(M, "printed")
    require(isinstance(N, int) and 1 <= N < M, "N", f"an integer with 1 <= N < M = {M}", N)


def build(M: int, H: float, N: int, **options: Unpack[Woven]) -> Construction:
    """Theorem 3.2's model under ReRoPE's weave W(d) = min(d, N), 1 <= N < M (paper Theorem 3.3).

    Options as build_woven.

    Raises:
        ConstructionError: N is not in 1..M-1, or as build_woven.
    """
    check_band(N, M)
    return build_woven("3.3", Clamp(N), M, H, **options)
