"""Theorem 3.1: without position encoding, one layer already crosses the threshold H at position M, and only there.

Statement. For every M >= 2 and real H there are weights such that, on <bos> followed by any T tokens, the head output
o_T (in the stream's dimension STATE, at the last token) is above H if T < M and below H if T > M.

Positions. t = 1 is <bos>; the last of T + 1 tokens is t = T + 1. In 0-based counting the last position *is* T.

As printed, W_V holds M and o_t = M/t - 1 + H: equal to H at t = M, which is T = M - 1, where the statement wants o > H.
With M + 1 in its place o_T = (M + 1)/(T + 1) - 1 + H, and o_T > H iff T < M. Both are built here; `corrected` is
the default.
"""

from __future__ import annotations

import math
from typing import Any

from constructions.errors import require
from constructions.multiprecision import mp
from constructions.weights import (
    BOS,
    ONE,
    READ,
    RESERVED,
    STATE,
    Construction,
    Fillers,
    Head,
    LayerWeights,
    Weights,
    drawn,
    embedding,
    matrix,
    random_heads,
    random_mlp,
)

LONGEST = 100_000
"""The most positions that weights are built for: every one that is recovered is a unit of an MLP."""
CONVENTIONS = ("corrected", "printed")


def bos_value(M: int, convention: str) -> int:
    """What W_V gives <bos>: M + 1 (corrected) or M (printed).

    Raises:
        ConstructionError: M < 2, or the convention is unknown.
    """
    require(isinstance(M, int) and not isinstance(M, bool) and M >= 2, "M", "an integer >= 2", M)
    require(M <= LONGEST, "M", f"at most {LONGEST}", M)
    require(convention in CONVENTIONS, "convention", " or ".join(CONVENTIONS), convention)
    return M + 1 if convention == "corrected" else M


def check_threshold(H: float) -> None:
    """Raise ConstructionError unless H is a finite number."""
    require(math.isfinite(H), "H", "a finite number", H)


def threshold_values(value: int, H: float, d: int) -> tuple[Any, Any]:
    """W_V [d, 2] and W_O [2, d] of the head that, given uniform attention, writes value/t - 1 + H."""
    # v = (value * [is <bos>], 1 - H). Uniform attention averages over t tokens of which one is <bos>: (value/t, 1 - H).
    w_v = matrix((d, 2), {(BOS, 0): value, (ONE, 1): 1 - mp.mpf(H)})
    # First minus second: value/t - (1 - H) = value/t - 1 + H, into STATE as the proof has it, and into READ, where the
    # second layer of Theorem 3.2 can be read without the position that STATE then also holds.
    w_o = matrix((2, d), {(0, STATE): 1, (1, STATE): -1, (0, READ): 1, (1, READ): -1})
    return w_v, w_o


def build(M: int, H: float, convention: str = "corrected", fillers: Fillers | None = None) -> Construction:
    """One layer without position encoding (paper Theorem 3.1, App. E).

    Raises:
        ConstructionError: M is not an integer >= 2, H is not finite, or the convention is unknown.
    """
    value = bos_value(M, convention)
    check_threshold(H)
    fillers = fillers or Fillers()
    rng = fillers.rng()
    d = RESERVED + fillers.extra_dims
    # W_K copies dimension ONE, which is 1 for every token: all keys are the same vector, every query (W_Q is
    # arbitrary, so it is drawn) gives all of them one score, and softmax over t equal scores is 1/t.
    w_k = matrix((d, 2), {(ONE, 0): 1})
    w_v, w_o = threshold_values(value, H, d)
    head = Head(drawn(rng, d, 2), w_k, w_v, w_o)
    layer = LayerWeights((head, *random_heads(fillers, rng, with_pe=False)), random_mlp(fillers, rng))
    return Construction("3.1", Weights(embedding(fillers, rng), (layer,)), M, H, value, slope=0.0)
