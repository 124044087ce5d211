"""Attention that a transformers module writes out itself, without the attention interface: MPT, Bloom, Falcon.

Such a module's forward is replaced on the instance. What differs between families is how q, k and v come out of the
fused projection, and the names of the projections: a row each. Shapes are [batch, heads, tokens, head_dim]; keys and
values may have fewer heads than queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Heads = tuple[
    Float[Tensor, "batch heads tokens dim"],
    Float[Tensor, "batch kv_heads tokens dim"],
    Float[Tensor, "batch kv_heads tokens dim"],
]
"""Queries, keys and values."""
Attend = Callable[..., tuple[Tensor, None]]
"""Called with module, query, key, value, mask and scaling; gives [batch, tokens, heads, dim]."""


@dataclass(frozen=True)
class OwnAttention:
    """One row: the fused projection and how it splits, the output projection, and the factor on q.k."""

    split: Callable[[Any, Tensor], Heads]
    scaling: Callable[[Any], float]
    output: str

    def forward(self, module: nn.Module, attend: Attend) -> Callable[..., tuple[Tensor, None]]:
        """A forward for `module` that computes everything but the attention itself as the module does.

        A cache comes as `layer_past` or `past_key_values` and is given raw keys. Bloom also hands in the residual, and
        expects it added.
        """

        def run(
            hidden_states: Float[Tensor, "batch tokens width"],
            residual: Float[Tensor, "batch tokens width"] | None = None,
            attention_mask: Tensor | None = None,
            layer_past: Any = None,
            past_key_values: Any = None,
            **_: Any,
        ) -> tuple[Float[Tensor, "batch tokens width"], None]:
            query, key, value = self.split(module, hidden_states)
            cache = layer_past if past_key_values is None else past_key_values
            if cache is not None:
                key, value = cache.update(key, value, module.layer_idx)
            heads, _weights = attend(module, query, key, value, attention_mask, self.scaling(module))
            out: Tensor = module.get_submodule(self.output)(heads.flatten(2))
            if residual is not None:
                out = residual + functional.dropout(out, float(module.hidden_dropout), module.training)  # type: ignore[arg-type]
            return out, None

        return run


def _mpt(module: Any, x: Tensor) -> Heads:
    """All queries, then all keys, then all values; clipped where the model was trained so."""
    fused = module.Wqkv(x)
    if module.clip_qkv:
        fused = fused.clamp(-module.clip_qkv, module.clip_qkv)
    query, key, value = fused.unflatten(-1, (3, module.n_heads, module.head_dim)).permute(2, 0, 3, 1, 4)
    return query, key, value


def _per_head(module: Any, x: Tensor) -> Heads:
    """Query, key and value of one head beside each other."""
    fused = module.query_key_value(x).unflatten(-1, (module.num_heads, 3, module.head_dim))
    query, key, value = fused.permute(3, 0, 2, 1, 4)
    return query, key, value


def _falcon(module: Any, x: Tensor) -> Heads:
    """Per group of heads its queries, then one key and one value; one group (multi-query), several, or one per head."""
    if not (module.new_decoder_architecture or module.multi_query):
        return _per_head(module, x)
    groups = module.num_kv_heads
    fused = module.query_key_value(x).unflatten(-1, (groups, module.num_heads // groups + 2, module.head_dim))
    query, key, value = fused[..., :-2, :].flatten(2, 3), fused[..., -2, :], fused[..., -1, :]
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _inverse_root(module: Any) -> float:
    return 1 / math.sqrt(module.head_dim)


MPT = OwnAttention(_mpt, lambda module: float(module.softmax_scale), "out_proj")
BLOOM = OwnAttention(_per_head, _inverse_root, "dense")
FALCON = OwnAttention(_falcon, _inverse_root, "dense")
