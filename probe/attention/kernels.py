"""Attention that also returns the log-sum-exp of its scores, which is what makes pieces mergeable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from probe.attention.placing import placed

Partial = tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch heads queries"]]
"""Attention output and the natural log-sum-exp of the scores behind it."""

_NEGATIVE_INFINITY = float("-inf")
FUSED_TYPES = (torch.bfloat16, torch.float16)
"""Types that CUDA's fused kernels take."""
_BIASED_MASK = 1 << 24
"""Most elements of a mask with a bias per head in it: past this a call is cut by queries."""


@dataclass(frozen=True)
class Mask:
    """Which keys each query of a call sees, kept as what a kernel adds to its scores, once per dtype and device.

    A kernel needs a key in every row, so a query that sees none is shown all and its result thrown away.
    """

    seen: Bool[Tensor, "queries keys"]
    _added: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def empty(self) -> Bool[Tensor, " queries"] | None:
        """Which queries see no key; None where all see one."""
        empty = ~self.seen.any(-1)
        return empty if bool(empty.any()) else None

    def added(self, like: Tensor) -> Float[Tensor, "queries keys"]:
        """0 where seen and -inf elsewhere, in `like`'s dtype and device."""
        key = (like.dtype, like.device)
        if key not in self._added:
            hidden = ~self.seen if self.empty is None else ~self.seen & ~self.empty[:, None]
            zeros = torch.zeros(self.seen.shape, dtype=like.dtype, device=like.device)
            self._added[key] = zeros.masked_fill_(placed(hidden, like), _NEGATIVE_INFINITY)
        return self._added[key]

    def dropped(self, part: Partial) -> Partial:
        """A result with zeros, and a log-sum-exp of -inf, for the queries that see no key."""
        if self.empty is None:
            return part
        empty = placed(self.empty, part[1])
        return part[0].masked_fill(empty[:, None], 0.0), part[1].masked_fill(empty, _NEGATIVE_INFINITY)


@dataclass(frozen=True)
class Tail(Mask):
    """The last keys of a mask in which every query sees one, without a copy of it."""

    whole: Mask | None = None

    @override
    def added(self, like: Tensor) -> Float[Tensor, "queries keys"]:
        assert self.whole is not None
        return self.whole.added(like)[:, self.whole.seen.shape[1] - self.seen.shape[1] :]


def _cpu_flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, added: Tensor | None, causal: bool
) -> Partial:
    """Torch's CPU kernel: fewer key heads than query heads are fine, keys are never expanded.

    It takes what is added in float32 beside half types, which would round a bias by more than it differs between the
    nearest keys.
    """
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=added, scale=scaling
    )
    return out, lse


def _cuda_flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, added: Tensor | None, causal: bool
) -> Partial:
    """FlashAttention, which takes no mask; it shares key heads between query heads itself."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scaling
    )
    return out, lse[..., : query.shape[2]]


def aligned(added: Float[Tensor, "*lead keys"]) -> Float[Tensor, "*lead keys"]:
    """The same values in rows that begin at multiples of 8 elements, as the memory-efficient kernel wants them."""
    keys = added.shape[-1]
    return torch.nn.functional.pad(added, (0, -keys % 8))[..., :keys]


def _cuda_efficient(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, added: Tensor | None, causal: bool
) -> Partial:
    """The memory-efficient kernel: a mask, as many key heads as query heads, and a log-sum-exp padded to 32 queries.

    A key head that several query heads share becomes a batch entry of its own, of which each of them has a view: no key
    is copied.
    """
    batch, heads, queries, _ = query.shape
    lead = (batch, key.shape[1], heads // key.shape[1])
    bias = None if added is None else _spread(added.to(query.dtype), *lead, queries)
    query = query.unflatten(1, lead[1:]).flatten(0, 1)
    key, value = (x.flatten(0, 1)[:, None].expand(-1, lead[2], -1, -1) for x in (key, value))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, causal, scale=scaling
    )
    return out.reshape(batch, heads, queries, -1), lse[..., :queries].reshape(batch, heads, queries)


def _spread(
    added: Tensor, batch: int, key_heads: int, group: int, queries: int
) -> Float[Tensor, "lead group queries keys"]:
    """What is added to the scores, per key head of each row of the batch; one mask for all stays one in memory."""
    if added.ndim > 2:
        added = added.unflatten(1, (key_heads, group)).expand(batch, -1, -1, -1, -1).flatten(0, 1)
    return aligned(added).expand(batch * key_heads, group, queries, -1)


def grouped(query: Float[Tensor, "batch heads n dim"], key_heads: int) -> Float[Tensor, "batch kv_heads group n dim"]:
    """Query heads beside the key head they share."""
    batch, heads, n, dim = query.shape
    return query.reshape(batch, key_heads, heads // key_heads, n, dim)


def _plain(query: Tensor, key: Tensor, value: Tensor, scaling: float, added: Tensor | None, causal: bool) -> Partial:
    """A matrix product with a float32 softmax (float64 for float64)."""
    scores = grouped(query, key.shape[1]) @ key.unsqueeze(2).transpose(-1, -2)
    scores = scores.to(torch.promote_types(query.dtype, torch.float32)) * scaling
    scores = scores.flatten(1, 2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, _NEGATIVE_INFINITY)
    if added is not None:
        scores = scores + added
    lse = scores.logsumexp(-1)
    weights = grouped((scores - lse[..., None]).exp().to(value.dtype), key.shape[1])
    return (weights @ value.unsqueeze(2)).flatten(1, 2), lse


def _kernel(query: Tensor, masked: bool) -> Callable[..., Partial]:
    """The kernel for these queries. CUDA's fused ones are for half types and head sizes that are multiples of 8."""
    if query.device.type == "cpu":
        return _cpu_flash
    fused = query.dtype in FUSED_TYPES and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    if query.device.type != "cuda" or not fused:
        return _plain
    return _cuda_efficient if masked else _cuda_flash


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    scaling: float,
    mask: Mask | None = None,
    bias: Float[Tensor, "heads keys"] | None = None,
    causal: bool = False,
) -> Partial:
    """Softmax attention with its log-sum-exp (base e): zeros and -inf for a query that sees no key.

    Args:
        query: queries; their heads are a multiple of the keys' heads, and neighbours share one.
        key: keys with their positions in.
        value: values.
        scaling: factor on the scores.
        mask: which keys a query sees; None for all.
        bias: added to the scaled scores of a key for every query.
        causal: query n sees keys 0..n (as many keys as queries; no mask beside it).
    """
    part = _attend(query, key, value, scaling, mask, bias, causal)
    return part if mask is None else mask.dropped(part)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Mask | None, bias: Tensor | None, causal: bool
) -> Partial:
    if bias is None:
        added = None if mask is None else mask.added(query)
        return _kernel(query, mask is not None)(query, key, value, scaling, added, causal)
    kernel, row = _kernel(query, True), bias[None, :, None]
    if kernel is _cuda_efficient:
        # It takes what is added in the queries' type; a half type rounds a bias by more than it differs between the
        # nearest keys.
        wide = query.float(), key.float(), value.float()
        out, lse = _biased(kernel, *wide, scaling, mask, row, causal)
        return out.to(query.dtype), lse
    return _biased(kernel, query, key, value, scaling, mask, row, causal)


def _biased(
    kernel: Callable[..., Partial],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    mask: Mask | None,
    row: Float[Tensor, "1 heads 1 keys"],
    causal: bool,
) -> Partial:
    """Calls of a kernel with a bias per head and key."""
    if mask is None:
        return kernel(query, key, value, scaling, row, causal)
    # Only here is the mask a matrix per head: few queries at a time.
    rows = max(1, _BIASED_MASK // row.numel())
    parts = [
        kernel(query[:, :, mine], key, value, scaling, row + mask.added(row)[mine], causal)
        for mine in (slice(at, at + rows) for at in range(0, query.shape[2], rows))
    ]
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def merge_(a: Partial, b: Partial) -> Partial:
    """Attention over the union of two disjoint key sets, in the memory of a, which may be views; exact.

    A side that saw nothing has log-sum-exp -inf.
    """
    (out_a, lse_a), (out_b, lse_b) = a, b
    # Weights in the log-sum-exp's precision (float32 for half types), from the larger side: never an overflow.
    share = torch.sigmoid(lse_b - lse_a).nan_to_num_(0.0)[..., None]
    return out_a.lerp_(out_b, share.to(out_a.dtype)), lse_a.copy_(torch.logaddexp(lse_a, lse_b))
