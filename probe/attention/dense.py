"""The `dense` backend: the T x T reference, computed straight from W(t, i) and the mask, with no pieces and no merging.

It shares nothing with the fast path but the definition of a scheme, so that one can be tested against the other.
"""

from __future__ import annotations

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


def attend_dense(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    weave: Weave,
    visibility: Visibility,
    encoding: Encoding,
    scaling: float,
) -> Float[Tensor, "batch heads queries dim"]:
    """Attention of a scheme over raw queries and keys, as one dense matrix; key heads may be shared by groups of query heads.

    Raises:
        ProbeError: more than `MAX_LENGTH` keys, for which the matrix would not fit.
    """
    length = key.shape[2]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if length > MAX_LENGTH:
        raise ProbeError(f"backend dense: expected at most {MAX_LENGTH} tokens, got {length}; use the backend 'pieces'")
    first = length - query.shape[2]
    t, i = torch.arange(first, length).double()[:, None], torch.arange(length).double()[None]
    relative = weave(t, i)
    scores = encoding.scores(query, key, relative, scaling)
    mask = visible_mask(visibility, first, length).to(query.device)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value
