"""Theorem 3.2: with a relative PE, <q_t, k_i> = q.k - s(t - i), two layers cross H at position M, and only there.

The paper has s = 1. A slope s per head, as ALiBi has, changes nothing in the proof and moves the limits of the number
type (see precision.py).

Layer 1 finds t. With W_K = 0 the scores are -s(t - i), so <bos> gets the weight
    f(t) = e^{-s(t-1)} / S(t),   S(t) = sum_{j<t} e^{-sj},
strictly decreasing in t; the MLP inverts f. Layer 2 uses t to cancel the PE and repeats Theorem 3.1.

How many positions need the MLP recover? M + 2 (t = 1..M + 2) are enough for every T, however long: past its last knot K
the recovered position stays at K, so a key i > K scores (i - K)s more than the cancelled PE would give it. That can
only take weight from <bos>: o_t falls further below H, on the side the statement wants.
"""

from __future__ import annotations

from dataclasses import replace

from constructions.errors import require
from constructions.recovery import Knots, mlp_knots, recovery_mlp
from constructions.theorem_31 import bos_value, check_threshold, threshold_values
from constructions.weights import (
    BOS,
    ONE,
    RESERVED,
    STATE,
    Construction,
    Fillers,
    Head,
    LayerWeights,
    Weights,
    beside,
    drawn,
    embedding,
    matrix,
    random_heads,
    random_mlp,
)

SLOPES = (1e-9, 1e3)


def assemble(
    M: int, H: float, slope: float, corners: Knots, convention: str = "corrected", fillers: Fillers | None = None
) -> Construction:
    """The two layers around a given recovery polygon; Theorems 3.2 and 3.3 differ in the polygon and the weave alone.

    Raises:
        ConstructionError: M, H, the slope or the convention is outside its domain.
    """
    value = bos_value(M, convention)
    check_threshold(H)
    check_slope(slope)
    fillers = fillers or Fillers()
    rng = fillers.rng()
    d = RESERVED + fillers.extra_dims

    # Layer 1. W_K = 0: the content scores vanish whatever W_Q is, and softmax sees the PE term alone.
    # v = [is <bos>], so the head's output is the weight of <bos>, f(t).
    w_v, w_o = matrix((d, 1), {(BOS, 0): 1}), matrix((1, d), {(0, STATE): 1})
    finder = Head(drawn(rng, d, 2), matrix((d, 2)), w_v, w_o, slope)
    # Its MLP replaces f(t) in STATE by the position t (see recovery.py).
    inverse = beside(recovery_mlp(corners, fillers), random_mlp(fillers, rng))
    first = LayerWeights((finder, *random_heads(fillers, rng, with_pe=True)), inverse)

    # Layer 2. With q_t = (s t, 1) and k_i = (1, -s i) the content score is s(t - i): it cancels the PE term -s(t - i),
    # the attention is uniform, and the values of Theorem 3.1 do the rest. (The query's own s t is the same for every
    # key, so softmax would cancel it anyway: W_Q need not read STATE. It does, as in the proof.)
    w_q = matrix((d, 2), {(STATE, 0): slope, (ONE, 1): 1})
    w_k = matrix((d, 2), {(ONE, 0): 1, (STATE, 1): -slope})
    w_v, w_o = threshold_values(value, H, d)
    cross = Head(w_q, w_k, w_v, w_o, slope)
    second = LayerWeights((cross, *random_heads(fillers, rng, with_pe=True)), random_mlp(fillers, rng))
    return Construction("3.2", Weights(embedding(fillers, rng), (first, second)), M, H, value, slope, recovery="mlp")


def check_slope(slope: float) -> None:
    """Raise ConstructionError unless the slope is positive and 50 digits tell its powers apart."""
    require(SLOPES[0] <= slope <= SLOPES[1], "slope", f"a number from {SLOPES[0]:g} to {SLOPES[1]:g}", slope)


def check_capacity(capacity: int, M: int) -> None:
    """Raise ConstructionError unless the MLP can tell M + 2 positions apart."""
    require(capacity >= M + 2, "capacity", f"at least M + 2 = {M + 2} recoverable positions", capacity)


def build(
    M: int,
    H: float,
    slope: float = 1.0,
    capacity: int | None = None,
    convention: str = "corrected",
    fillers: Fillers | None = None,
) -> Construction:
    """Two layers with PE (paper Theorem 3.2, App. E). `capacity` positions are recovered, by default M + 2.

    Raises:
        ConstructionError: M, H, the slope, the capacity or the convention is outside its domain.
    """
    bos_value(M, convention)
    check_slope(slope)
    capacity = M + 2 if capacity is None else capacity
    check_capacity(capacity, M)
    built = assemble(M, H, slope, mlp_knots(capacity, slope), convention, fillers)
    return replace(built, capacity=capacity)
