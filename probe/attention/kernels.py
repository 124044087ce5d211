"""Attention that also returns the log-sum-exp of its scores, which is what makes pieces mergeable."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Partial = tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch heads queries"]]
"""Attention output and the natural log-sum-exp of the scores behind it."""

_NEGATIVE_INFINITY = float("-inf")


def _additive(seen: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Mask and bias as one tensor to add to the scores: [1, heads or 1, queries or 1, keys]."""
    if seen is None:
        return None if bias is None else bias[None, :, None].to(dtype)
    if bias is None:
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, _NEGATIVE_INFINITY)
    return bias[None, :, None].to(dtype).masked_fill(~seen, _NEGATIVE_INFINITY)


def _cpu_flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, seen: Tensor | None, bias: Tensor | None
) -> Partial:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=_additive(seen, bias, query.dtype), scale=scaling
    )
    return out, lse


def _plain(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, seen: Tensor | None, bias: Tensor | None
) -> Partial:
    scores = (query @ key.transpose(-1, -2)).float() if query.dtype != torch.float64 else query @ key.transpose(-1, -2)
    scores = scores * scaling
    if bias is not None:
        scores = scores + bias[None, :, None]
    if seen is not None:
        scores = scores.masked_fill(~seen, _NEGATIVE_INFINITY)
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
    scaling: float,
    seen: Bool[Tensor, "queries keys"] | None = None,
    bias: Float[Tensor, "heads keys"] | None = None,
) -> Partial:
    """Softmax attention with its log-sum-exp (base e); every query must see a key.

    `seen` hides keys, `bias` is added to the scaled scores of a key for every query. On CPU this is torch's flash kernel; elsewhere a matrix product with a float32 softmax.
    """
    kernel = _cpu_flash if query.device.type == "cpu" else _plain
    return kernel(query, key, value, scaling, seen, bias)


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the union of two disjoint key sets; exact. A side that saw nothing has log-sum-exp -inf."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    # Weights in the log-sum-exp's precision (float32 for half types), from the larger side: never an overflow.
    share = torch.sigmoid(lse_b - lse_a).nan_to_num_(0.0)[..., None]
    out = out_a + (out_b - out_a) * share.to(out_a.dtype)
    return out, torch.logaddexp(lse_a, lse_b)
