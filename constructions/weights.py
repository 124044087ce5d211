"""Weights written by hand, before any number type is chosen.

Every array holds mpmath numbers (50 digits), so that one set of weights serves float32, float64 and mpmath evaluation,
and rounding enters once, in the cast. The residual stream has four named dimensions; all others are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from constructions.errors import require
from constructions.multiprecision import mp
from constructions.weave import Linear, Weave

Array = Any
"""A NumPy array of mpmath numbers, or of floats while fillers are drawn."""

ONE, BOS, STATE, READ = range(4)
"""Dimensions 1, 2 and 3 of the paper (1 everywhere; 1 on <bos>; 0, written by the layers), and one more, also 0.

READ is ours: the second layer finds the position still standing in STATE, so its head writes o_t to READ as well, where
the residual stream holds o_t and nothing else.
"""
RESERVED = 4
BOS_TOKEN = 0


@dataclass(frozen=True)
class Head:
    """One attention head: scores (x_t W_Q).(x_i W_K) - slope * W(t, i), values x_i W_V, output times W_O.

    Shapes: q, k [d, d_qk]; v [d, d_v]; o [d_v, d]. Scores are not scaled by sqrt(d_qk), as in the paper.
    """

    q: Array
    k: Array
    v: Array
    o: Array
    slope: Any = 0


@dataclass(frozen=True)
class Mlp:
    """relu(x W_in + b_in) W_out + b_out. Shapes: w_in [d, hidden]; b_in [hidden]; w_out [hidden, d]; b_out [d]."""

    w_in: Array
    b_in: Array
    w_out: Array
    b_out: Array


@dataclass(frozen=True)
class LayerWeights:
    """The heads and the MLP of one decoder layer."""

    heads: tuple[Head, ...]
    mlp: Mlp


@dataclass(frozen=True)
class Weights:
    """A whole model: embedding [vocabulary, d], token 0 being <bos>, and the layers."""

    embedding: Array
    layers: tuple[LayerWeights, ...]


@dataclass(frozen=True)
class Construction:
    """A theorem's model: its weights, the weave that the PE term uses, and what the proof says about it.

    `value` is the number that W_V gives <bos>: M as printed, M + 1 as corrected. `recovery` says how the first
    layer's MLP inverts f: 'mlp' (the weights of Theorem 3.2), 'exact', 'rounded', or None where there is no such MLP.
    `norm_at` and `norm_gain` describe the LayerNorms, if any (see layernorm.py).
    """

    theorem: str
    weights: Weights
    M: int
    H: float
    value: int
    slope: float
    weave: Weave = field(default_factory=Linear)
    recovery: str | None = None
    capacity: int | None = None
    norm_at: str | None = None
    norm_gain: Any = 1

    @property
    def d(self) -> int:
        """Width of the residual stream."""
        return int(self.weights.embedding.shape[1])


@dataclass(frozen=True)
class Fillers:
    """What the proofs leave arbitrary, drawn at random: extra dimensions, heads, MLP units, and the words' vectors.

    They read every dimension and write only free ones: that is all the proofs need of them. `extra_dims` = 0 leaves the
    four named dimensions alone.
    """

    extra_dims: int = 4
    extra_heads: int = 2
    extra_units: int = 4
    words: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.words >= 1, "words", "at least 1 ordinary token", self.words)
        sizes = (self.extra_dims, self.extra_heads, self.extra_units)
        require(self.seed >= 0, "seed", "an integer >= 0", self.seed)
        require(min(sizes) >= 0, "extra dimensions, heads and units", "no negative number", sizes)

    def rng(self) -> np.random.Generator:
        """A generator at the start of this seed's sequence."""
        return np.random.default_rng(self.seed)


def matrix(shape: tuple[int, ...], entries: dict[tuple[int, ...], Any] | None = None) -> Array:
    """Zeros of a shape, but for the entries given by index."""
    out = np.full(shape, mp.mpf(0), dtype=object)
    for index, value in (entries or {}).items():
        out[index] = mp.mpf(value)
    return out


def drawn(rng: np.random.Generator, *shape: int) -> Array:
    """Standard normal numbers."""
    out = np.empty(shape, dtype=object)
    out.reshape(-1)[:] = [mp.mpf(float(x)) for x in rng.standard_normal(int(np.prod(shape)))]
    return out


def embedding(fillers: Fillers, rng: np.random.Generator) -> Array:
    """[words + 1, d]: ONE is 1 for every token, BOS for <bos> alone, STATE and READ are 0, the rest is arbitrary."""
    free = drawn(rng, fillers.words + 1, fillers.extra_dims)
    named = matrix((fillers.words + 1, RESERVED), {(BOS_TOKEN, BOS): 1})
    named[:, ONE] = mp.mpf(1)
    return np.concatenate([named, free], axis=1)


def _writes_free(columns: Array) -> Array:
    columns[..., :RESERVED] = mp.mpf(0)
    return columns


def random_heads(fillers: Fillers, rng: np.random.Generator, with_pe: bool) -> tuple[Head, ...]:
    """Heads that read anything and write only free dimensions; with a PE term each has a slope of its own."""
    d = RESERVED + fillers.extra_dims
    heads = []
    for _ in range(fillers.extra_heads):
        q, k, v = (drawn(rng, d, 2) for _ in range(3))
        slope = abs(float(rng.standard_normal())) if with_pe else 0
        heads.append(Head(q, k, v, _writes_free(drawn(rng, 2, d)), slope))
    return tuple(heads)


def random_mlp(fillers: Fillers, rng: np.random.Generator) -> Mlp:
    """An MLP that reads anything and writes only free dimensions."""
    d, units = RESERVED + fillers.extra_dims, fillers.extra_units
    # Scaled down: its input may hold a position in the hundreds, and nothing here should be near overflow.
    w_out, b_out = _writes_free(drawn(rng, units, d)), _writes_free(drawn(rng, d))
    return Mlp(drawn(rng, d, units) / 8, drawn(rng, units), w_out / 8, b_out)


def beside(first: Mlp, second: Mlp) -> Mlp:
    """One MLP whose output is the sum of the two: their hidden units side by side."""
    return Mlp(
        np.concatenate([first.w_in, second.w_in], axis=1),
        np.concatenate([first.b_in, second.b_in]),
        np.concatenate([first.w_out, second.w_out], axis=0),
        first.b_out + second.b_out,
    )


def pad_heads(heads: Sequence[Head]) -> tuple[Head, ...]:
    """The heads with q, k, v, o filled up by zeros to one size, so that they stack."""
    qk = max(head.q.shape[1] for head in heads)
    vo = max(head.v.shape[1] for head in heads)

    def grown(a: Array, rows: int, columns: int) -> Array:
        out = matrix((rows, columns))
        out[: a.shape[0], : a.shape[1]] = a
        return out

    return tuple(
        Head(
            grown(head.q, len(head.q), qk),
            grown(head.k, len(head.k), qk),
            grown(head.v, len(head.v), vo),
            grown(head.o, vo, head.o.shape[1]),
            head.slope,
        )
        for head in heads
    )
