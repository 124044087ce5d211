"""The `dense` backend: the T x T reference, computed straight from W(t, i) and the mask, with no pieces and no merging.

It shares nothing with the fast path but the definition of a scheme, so that one can be tested against the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from constructions.weave import Weave
from probe.attention.encoding import Encoding
from probe.errors import ProbeError
from probe.schemes.visibility import Visibility

MAX_LENGTH = 8192


def visible_mask(visibility: Visibility, first: int, length: int) -> Bool[Tensor, "queries keys"]:
    """Which keys each of the queries first..length-1 sees, pair by pair from the definition."""
    mask: Tensor = visibility.sees(torch.arange(first, length)[:, None], torch.arange(length)[None])
    return mask


@dataclass(frozen=True)
class Softmax:
    """How a layer makes weights of its scores.

    Attributes:
        softcap: scores are bent to cap * tanh(score / cap) first (Gemma 2); None: they are not.
        sinks: [heads], one more term in the denominator of every row, for no key (gpt-oss); None: there is none.
    """

    softcap: float | None = None
    sinks: Float[Tensor, " heads"] | None = None

    def capped(self, scores: Float[Tensor, "batch heads queries keys"]) -> Float[Tensor, "batch heads queries keys"]:
        """Scores as they enter the softmax; -inf, a key that is not seen, stays."""
        if self.softcap is None:
            return scores
        bent = self.softcap * torch.tanh(scores / self.softcap)
        return bent.masked_fill(torch.isneginf(scores), float("-inf"))

    def weights(self, capped: Float[Tensor, "batch heads queries keys"]) -> Float[Tensor, "batch heads queries keys"]:
        """Weights of capped scores; they sum to less than 1 where there is a sink, and are 0 for a query that sees
        nothing.
        """
        if self.sinks is not None:
            sinks = self.sinks.to(capped.dtype)[None, :, None, None].expand(*capped.shape[:3], 1)
            return torch.cat((capped, sinks), -1).softmax(-1)[..., :-1]
        nothing = torch.isneginf(capped.amax(-1, keepdim=True))
        weights = capped.softmax(-1)
        return weights.masked_fill(nothing, 0.0) if bool(nothing.any()) else weights


PLAIN = Softmax()


@dataclass(frozen=True)
class ScoreBlock:
    """Attention scores of one layer's queries first, first + 1, ...: what those who watch attention are told.

    Attributes:
        layer: 1 is the first.
        first: position of the first query.
        window: trained window M in tokens.
        scores: [batch, heads, queries, keys], with every factor in and soft-capped; -inf where a query does not see a
            key.
        softmax: what the layer makes weights with.
    """

    layer: int
    first: int
    window: int
    scores: Float[Tensor, "batch heads queries keys"]
    softmax: Softmax = PLAIN

    @cached_property
    def weights(self) -> Float[Tensor, "batch heads queries keys"]:
        """The softmax of the scores."""
        return self.softmax.weights(self.scores)

    @cached_property
    def lse(self) -> Float[Tensor, "batch heads queries"]:
        """The log-sum-exp of each query's scores, of keys alone; -inf for a query that sees nothing."""
        if self.softmax.sinks is not None:
            return self.scores.logsumexp(-1)
        # The largest weight is exp(largest score - lse): no other exponential is needed.
        found: Tensor = (self.scores.amax(-1) - self.weights.amax(-1).log()).nan_to_num(nan=float("-inf"))
        return found

    @cached_property
    def seen(self) -> Int[Tensor, "batch heads queries"]:
        """How many keys each query sees."""
        return (self.scores > float("-inf")).to(torch.int32).sum(-1, dtype=torch.int32)

    @cached_property
    def entropy(self) -> Float[Tensor, "batch heads queries"]:
        """Entropy of the weights, nats: what a sink takes is no part of it."""
        if self.softmax.sinks is not None:
            own: Tensor = torch.special.entr(self.weights).sum(-1)
            return own
        # Of w = exp(s - lse) it is lse - sum(w s): no other logarithm is needed. A key that is not seen adds 0 times
        # something finite.
        largest = self.scores.amax(-1).clamp(min=-1e30)
        shifted = (self.scores - largest[..., None]).clamp(min=-1e4)
        found: Tensor = (self.lse - largest) - torch.linalg.vecdot(self.weights, shifted)
        return found.nan_to_num(0.0).clamp(min=0.0)

    @property
    def last(self) -> int:
        """Position after the last query."""
        return self.first + self.scores.shape[2]


def weights_at(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    relative: Float[Tensor, "queries keys"],
    sees: Bool[Tensor, "queries keys"],
    encoding: Encoding,
    scaling: float,
    softmax: Softmax = PLAIN,
) -> Float[Tensor, "batch heads queries keys"]:
    """Weights at relative positions given pair by pair; 0 in the rows of queries that see nothing."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = encoding.scores(query, key, relative, scaling)
    return softmax.weights(softmax.capped(scores.masked_fill(~sees.to(query.device), float("-inf"))))


def attend_dense(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    weave: Weave,
    visibility: Visibility,
    encoding: Encoding,
    scaling: float,
    softmax: Softmax = PLAIN,
) -> Float[Tensor, "batch heads queries dim"]:
    """Attention of a scheme over raw queries and keys, as one dense matrix; key heads may be shared by groups of query
    heads.

    Raises:
        ProbeError: more than `MAX_LENGTH` keys, for which the matrix would not fit.
    """
    length = key.shape[2]
    if length > MAX_LENGTH:
        raise ProbeError(f"backend dense: expected at most {MAX_LENGTH} tokens, got {length}; use the backend 'pieces'")
    t, i = torch.arange(length - query.shape[2], length), torch.arange(length)
    relative = weave(t.double()[:, None], i.double()[None])
    weights = weights_at(query, key, relative, visibility.sees(t[:, None], i[None]), encoding, scaling, softmax)
    return weights.to(value.dtype) @ value.repeat_interleave(query.shape[1] // key.shape[1], 1)
