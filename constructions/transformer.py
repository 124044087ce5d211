"""The toy model: a decoder-only transformer, read top to bottom (paper Eq. 4-8), in float64, float32 or mpmath.

    x   = embedding[token]                                                    [batch, T, d]
    a   = sum over heads of softmax_causal(q_t.k_i - slope * W(t, i)) v_i W_O
    x   = x + a
    x   = x + relu(norm(x) W_in + b_in) W_out + b_out

Nothing in here knows the theorems: positions enter through the causal mask and the PE term, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from constructions.errors import ConstructionError, require
from constructions.multiprecision import mp
from constructions.weave import Weave
from constructions.weights import Construction, Head, LayerWeights, pad_heads
from constructions.weights import Mlp as MlpWeights

DTYPES: dict[str, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}
QUERIES = 512
"""Queries at a time: scores of a whole long sequence would not fit into memory."""
NORMS = (None, "mlp", "pre")
"""Where LayerNorms sit: nowhere; before each MLP, as in Eq. 4; or before each attention too, as in today's LLMs."""


def _cast(array: Any, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.asarray(array, dtype=float)).to(dtype)
    if not bool(torch.isfinite(tensor).all()):
        name = str(dtype).removeprefix("torch.")
        raise ConstructionError(f"weights: a number overflows {name}; use a smaller slope or dtype mpmath")
    return nn.Parameter(tensor, requires_grad=False)


class Norm(nn.Module):
    """LayerNorm with one gain for all dimensions, no bias and no epsilon."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = gain

    def forward(self, x: Float[Tensor, "batch T d"]) -> Float[Tensor, "batch T d"]:
        """(x - mean) / std * gain over the last dimension."""
        x = x - x.mean(-1, keepdim=True)
        return self.gain * x / x.square().mean(-1, keepdim=True).sqrt()


class Attention(nn.Module):
    """Causal attention with an additive PE term (paper Eq. 5-7, Theorem 3.2): score = q.k - slope * W(t, i)."""

    def __init__(self, heads: Sequence[Head], weave: Weave, dtype: torch.dtype):
        super().__init__()
        heads = pad_heads(heads)
        self.q = _cast(np.stack([head.q for head in heads]), dtype)  # [heads, d, d_qk]
        self.k = _cast(np.stack([head.k for head in heads]), dtype)
        self.v = _cast(np.stack([head.v for head in heads]), dtype)  # [heads, d, d_v]
        self.o = _cast(np.stack([head.o for head in heads]), dtype)  # [heads, d_v, d]
        self.slope = _cast([head.slope for head in heads], dtype)
        self.weave = weave

    def forward(self, x: Float[Tensor, "batch T d"]) -> Float[Tensor, "batch T d"]:
        """What the heads write to the residual stream."""
        position = torch.arange(x.shape[1], device=x.device)
        return torch.cat([self._of_queries(x, queries, position) for queries in position.split(QUERIES)], dim=1)

    def _of_queries(self, x: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        distance = self.weave(queries[:, None], keys[None, :]).to(x.dtype)  # [query, key]
        future = keys[None, :] > queries[:, None]
        out = torch.zeros_like(x[:, queries])
        for q, k, v, o, slope in zip(self.q, self.k, self.v, self.o, self.slope, strict=True):
            score = (x[:, queries] @ q) @ (x @ k).transpose(-1, -2) - slope * distance  # [batch, query, key]
            weight = score.masked_fill(future, -torch.inf).softmax(-1)
            out = out + weight @ (x @ v) @ o
        return out


class Mlp(nn.Module):
    """relu(x W_in + b_in) W_out + b_out."""

    def __init__(self, weights: MlpWeights, dtype: torch.dtype):
        super().__init__()
        self.w_in, self.b_in = _cast(weights.w_in, dtype), _cast(weights.b_in, dtype)
        self.w_out, self.b_out = _cast(weights.w_out, dtype), _cast(weights.b_out, dtype)

    def forward(self, x: Float[Tensor, "batch T d"]) -> Float[Tensor, "batch T d"]:
        """What the MLP writes to the residual stream."""
        return torch.relu(x @ self.w_in + self.b_in) @ self.w_out + self.b_out


class Layer(nn.Module):
    """One decoder layer (paper Eq. 4): the residual stream in and out, [batch, T, d]."""

    def __init__(self, weights: LayerWeights, built: Construction, dtype: torch.dtype):
        super().__init__()
        norm = Norm(float(built.norm_gain))
        self.attn_norm = norm if built.norm_at == "pre" else nn.Identity()
        self.attn = Attention(weights.heads, built.weave, dtype)
        self.mlp_norm = norm if built.norm_at is not None else nn.Identity()
        self.mlp = Mlp(weights.mlp, dtype)

    def forward(self, x: Float[Tensor, "batch T d"]) -> Float[Tensor, "batch T d"]:
        """The residual stream after this layer."""
        x = x + self.attn(self.attn_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x


class Transformer(nn.Module):
    """A construction as a torch model; forward hooks go on `layers[n]`, `layers[n].attn` and `layers[n].mlp`.

    Raises ConstructionError when the dtype is unknown or a weight overflows it.
    """

    def __init__(self, built: Construction, dtype: str = "float64"):
        super().__init__()
        require(dtype in DTYPES, "dtype", " or ".join(DTYPES), dtype)
        self.built = built
        self.embedding = _cast(built.weights.embedding, DTYPES[dtype])
        self.layers = nn.ModuleList(Layer(layer, built, DTYPES[dtype]) for layer in built.weights.layers)

    def forward(self, tokens: Int[Tensor, "batch T"]) -> Float[Tensor, "batch T d"]:
        """The residual stream after the last layer."""
        x = self.embedding[tokens]
        for layer in self.layers:
            x = layer(x)
        return x


def _softmax_row(scores: Any) -> Any:
    top = max(scores)
    powers = np.array([mp.exp(score - top) for score in scores], dtype=object)
    return powers / mp.fsum(powers)


def _norm_mp(x: Any, gain: Any) -> Any:
    rows = []
    for row in x:
        centred = row - mp.fsum(row) / len(row)
        rows.append(gain * centred / mp.sqrt(mp.fsum(centred * centred) / len(row)))
    return np.array(rows, dtype=object)


def _attention_mp(x: Any, heads: Sequence[Head], weave: Weave) -> Any:
    out = np.full(x.shape, mp.mpf(0), dtype=object)
    for head in heads:
        q, k, v = x @ head.q, x @ head.k, x @ head.v
        for t in range(len(x)):
            pe = np.array([mp.mpf(head.slope) * mp.mpf(weave(t, i)) for i in range(t + 1)], dtype=object)
            weight = _softmax_row(k[: t + 1] @ q[t] - pe)
            out[t] += (weight @ v[: t + 1]) @ head.o
    return out


def run_mpmath(built: Construction, tokens: Sequence[int]) -> list[tuple[Any, Any]]:
    """The same model in mpmath: per layer (what attention wrote, the residual stream after), each [T, d].

    A second implementation on purpose: it shares no code with the torch modules, so the two check each other.
    """
    x = built.weights.embedding[list(tokens)]
    outputs = []
    for layer in built.weights.layers:
        wrote = _attention_mp(_norm_mp(x, built.norm_gain) if built.norm_at == "pre" else x, layer.heads, built.weave)
        x = x + wrote
        seen = _norm_mp(x, built.norm_gain) if built.norm_at else x
        hidden = np.maximum(seen @ layer.mlp.w_in + layer.mlp.b_in, mp.mpf(0))
        x = x + hidden @ layer.mlp.w_out + layer.mlp.b_out
        outputs.append((wrote, x))
    return outputs
