"""How a position enters a score: the one interface that rotations, biases and 'not at all' share.

Inside a piece the relative position is q_pos - k_pos, and every encoding here splits accordingly: something done to a
query at q_pos, something to a key at k_pos, and, for a bias, a term for the key beside one that is constant per query.
Softmax does not see the latter, but the log-sum-exp by which pieces are merged does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from probe.attention.placing import placed


class Encoding(ABC):
    """A position encoding, at one scheme's frequencies.

    `biased` says whether positions add a bias to the scores.
    """

    biased: ClassVar[bool] = False

    @abstractmethod
    def turned(
        self,
        x: Float[Tensor, "batch heads n dim"],
        positions: Float[Tensor, " n"],
        out: Float[Tensor, "batch heads n dim"] | None = None,
    ) -> Float[Tensor, "batch heads n dim"]:
        """Queries or keys with their positions in; without `out` and where `turns` is false, x itself.

        Args:
            x: raw queries or keys.
            positions: one per query or key.
            out: memory for the result.
        """

    @abstractmethod
    def turns(self, positions: Float[Tensor, " n"]) -> bool:
        """Whether `turned` does anything at these positions."""

    @abstractmethod
    def scores(
        self,
        query: Float[Tensor, "batch heads queries dim"],
        key: Float[Tensor, "batch heads keys dim"],
        relative: Float[Tensor, "queries keys"],
        scaling: float,
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Scores of raw queries and keys straight from the relative positions: the reference, one matrix."""

    def bias(self, k_pos: Float[Tensor, " keys"], reference: float, like: Tensor) -> Float[Tensor, "heads keys"] | None:
        """What is added to every scaled score of a key for a query at position `reference`; None for nothing."""
        return None

    def offset(
        self, q_pos: Float[Tensor, " queries"], reference: float, like: Tensor
    ) -> Float[Tensor, "heads queries"] | None:
        """What a query's scores have beside `bias`, the same for every key: it belongs in the log-sum-exp."""
        return None


@dataclass(frozen=True)
class Alibi(Encoding):
    """ALiBi: score - slope * relative, one slope per head (https://arxiv.org/abs/2108.12409).

    `bias` is taken relative to a query near by (`reference`), so that near keys, which matter, have small biases: a
    bias of slope * k_pos would round by 1e-3 at position 16k in float32.
    """

    slopes: Float[Tensor, " heads"]
    biased: ClassVar[bool] = True

    @override
    def turned(
        self,
        x: Float[Tensor, "batch heads n dim"],
        positions: Float[Tensor, " n"],
        out: Float[Tensor, "batch heads n dim"] | None = None,
    ) -> Float[Tensor, "batch heads n dim"]:
        """x."""
        return x if out is None else out.copy_(x)

    @override
    def turns(self, positions: Float[Tensor, " n"]) -> bool:
        """Never."""
        return False

    @override
    def scores(
        self,
        query: Float[Tensor, "batch heads queries dim"],
        key: Float[Tensor, "batch heads keys dim"],
        relative: Float[Tensor, "queries keys"],
        scaling: float,
    ) -> Float[Tensor, "batch heads queries keys"]:
        slopes = placed(self.slopes, query, torch.float64)
        bias = -slopes[:, None, None] * placed(relative, query, torch.float64)
        return query @ key.transpose(-1, -2) * scaling + bias.to(query.dtype)

    @override
    def bias(self, k_pos: Float[Tensor, " keys"], reference: float, like: Tensor) -> Float[Tensor, "heads keys"]:
        """-slope * (reference - k_pos), in float32 at least."""
        slopes = placed(self.slopes, like, torch.float64)
        value = slopes[:, None] * (placed(k_pos, like, torch.float64) - reference)
        return value.to(torch.promote_types(like.dtype, torch.float32))

    @override
    def offset(
        self, q_pos: Float[Tensor, " queries"], reference: float, like: Tensor
    ) -> Float[Tensor, "heads queries"]:
        """-slope * (q_pos - reference)."""
        slopes = placed(self.slopes, like, torch.float64)
        value = slopes[:, None] * (reference - placed(q_pos, like, torch.float64))
        return value.to(torch.promote_types(like.dtype, torch.float32))
