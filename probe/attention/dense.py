"""The `dense` backend: the T x T reference, computed straight from W(t, i) and the mask, with no pieces and no merging.

It shares nothing with the fast path but the definition of a scheme, so that one can be tested against the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
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


def attention_weights(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    first: int,
    weave: Weave,
    visibility: Visibility,
    encoding: Encoding,
    scaling: float,
) -> Float[Tensor, "batch heads queries keys"]:
    """Softmax weights of the queries first, first + 1, ... over all keys; key heads may be shared by groups of query
    heads.
    """
    stop, length = first + query.shape[2], key.shape[2]
    t, i = torch.arange(first, stop), torch.arange(length)
    relative = weave(t.double()[:, None], i.double()[None])
    return weights_at(query, key, relative, visibility.sees(t[:, None], i[None]), encoding, scaling)


@dataclass(frozen=True)
class ScoreBlock:
    """Attention scores of one layer's queries first, first + 1, ...: what those who watch attention are told.

    Attributes:
        layer: 1 is the first.
        first: position of the first query.
        window: trained window M in tokens.
        scores: [batch, heads, queries, keys], with every factor in; -inf where a query does not see a key.
    """

    layer: int
    first: int
    window: int
    scores: Float[Tensor, "batch heads queries keys"]

    @cached_property
    def weights(self) -> Float[Tensor, "batch heads queries keys"]:
        """The softmax of the scores."""
        return self.scores.softmax(-1)

    @property
    def last(self) -> int:
        """Position after the last query."""
        return self.first + self.scores.shape[2]


def score_blocks(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    weave: Weave,
    visibility: Visibility,
    encoding: Encoding,
    scaling: float,
    block: int = 128,
) -> Iterator[tuple[int, Float[Tensor, "batch heads block keys"]]]:
    """Position of the first query and the scores of `block` queries at a time, so that memory is linear in the keys;
    -inf where a query does not see a key. The queries are the last positions of the keys.
    """
    i, first = torch.arange(key.shape[2]), key.shape[2] - query.shape[2]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    for start in range(0, query.shape[2], block):
        part = query[:, :, start : start + block]
        t = torch.arange(first + start, first + start + part.shape[2])
        scores = encoding.scores(part, key, weave(t.double()[:, None], i.double()[None]), scaling)
        hidden = ~visibility.sees(t[:, None], i[None])
        yield first + start, scores.masked_fill(hidden.to(query.device), float("-inf"))


def weights_at(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    relative: Float[Tensor, "queries keys"],
    sees: Bool[Tensor, "queries keys"],
    encoding: Encoding,
    scaling: float,
) -> Float[Tensor, "batch heads queries keys"]:
    """Softmax weights at relative positions given pair by pair; 0 in the rows of queries that see nothing."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = encoding.scores(query, key, relative, scaling)
    weights = scores.masked_fill(~sees.to(query.device), float("-inf")).softmax(-1)
    blind = ~sees.any(-1)
    return weights.masked_fill(blind.to(query.device)[:, None], 0.0) if bool(blind.any()) else weights


def attend_dense(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    weave: Weave,
    visibility: Visibility,
    encoding: Encoding,
    scaling: float,
) -> Float[Tensor, "batch heads queries dim"]:
    """Attention of a scheme over raw queries and keys, as one dense matrix; key heads may be shared by groups of query
    heads.

    Raises:
        ProbeError: more than `MAX_LENGTH` keys, for which the matrix would not fit.
    """
    length = key.shape[2]
    if length > MAX_LENGTH:
        raise ProbeError(f"backend dense: expected at most {MAX_LENGTH} tokens, got {length}; use the backend 'pieces'")
    first, groups = length - query.shape[2], query.shape[1] // key.shape[1]
    weights = attention_weights(query, key, first, weave, visibility, encoding, scaling)
    return weights @ value.repeat_interleave(groups, 1)
