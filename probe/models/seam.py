"""The seam: run one model object under a position scheme, and leave no trace afterwards.

The model's rotary is replaced by one that turns nothing, so its attention function receives raw queries and keys
(and the KV cache holds raw keys); that function, registered with transformers, does the scheme. Everything is
undone when the context ends, also on an exception. Nothing is patched on a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from probe.attention.dense import attend_dense
from probe.attention.merged import attend_pieces
from probe.attention.rotary import Rotary
from probe.errors import ProbeError, unknown
from probe.models.construction import ProbedModel, ToyModel, weave_construction
from probe.models.families import family_of
from probe.schemes.pieces import Piece, compile_pieces
from probe.schemes.scheme import Scheme

NAME = "weavescope"
BACKENDS = ("pieces", "dense")
_SLOT = "_weavescope_active"


class _Unrotated(nn.Module):
    """Stands in for the model's rotary: cos = 1 and sin = 0 at every position."""

    def __init__(self, rotary_dim: int) -> None:
        super().__init__()
        self.rotary_dim = rotary_dim

    def forward(self, x: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        shape = (*position_ids.shape, self.rotary_dim)
        return x.new_ones(shape), x.new_zeros(shape)


@dataclass
class _Active:
    """A scheme on a model: what its attention function needs, with the last compilation kept for the other layers."""

    scheme: Scheme
    inv_freq: Tensor
    amplitude: float
    base: float
    backend: str
    angle_dtype: torch.dtype
    prompt: int | None = None
    _prompt_keys: int | None = field(default=None, repr=False)
    _rotary: tuple[int, Rotary] | None = field(default=None, repr=False)
    _compiled: tuple[tuple[int, int, int], list[Piece]] | None = field(default=None, repr=False)

    def prompt_keys(self, keys: int, queries: int) -> int:
        """How many keys are the prompt's, padding included: those of the last pass that began with an empty cache.

        A cache that was filled elsewhere counts as prompt, and so does what comes with it in the first pass.
        """
        if self.prompt is not None:
            return self.prompt
        if keys == queries or self._prompt_keys is None:
            self._prompt_keys = keys
        return self._prompt_keys

    def rotary(self, length: int) -> Rotary:
        """The scheme's frequencies for `length` tokens."""
        factors = self.scheme.frequencies.factors(2 * len(self.inv_freq), self.base, length, self.scheme.window)
        if bool((factors == 1).all()):
            return Rotary(self.inv_freq, self.amplitude, self.angle_dtype)
        scaled = self.inv_freq.double() * factors.to(self.inv_freq.device)
        return Rotary(scaled, self.amplitude, self.angle_dtype)

    def pieces(self, first: int, length: int, prompt: int) -> list[Piece]:
        """The compiled scheme; layers of one pass share it."""
        if self._compiled is None or self._compiled[0] != (first, length, prompt):
            weave, visibility = self.scheme.weave_at(length, prompt), self.scheme.visibility_at(length, prompt)
            self._compiled = ((first, length, prompt), compile_pieces(weave, visibility, first, length))
        return self._compiled[1]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, prompt: int) -> Tensor:
        """[batch, heads, queries, dim] for unpadded rows; the queries are the last positions of the keys."""
        length = key.shape[2]
        first = length - query.shape[2]
        scale = self.scheme.scale.factors(torch.arange(first, length), length, self.scheme.window)
        if scale is not None:
            query = query * scale.to(query.device, query.dtype)[:, None]
        if self._rotary is None or self._rotary[0] != length:
            self._rotary = (length, self.rotary(length))
        rotary = self._rotary[1]
        if self.backend == "dense":
            weave, visibility = self.scheme.weave_at(length, prompt), self.scheme.visibility_at(length, prompt)
            return attend_dense(query, key, value, weave, visibility, rotary, scaling)
        return attend_pieces(query, key, value, self.pieces(first, length, prompt), rotary, scaling)


def _left_padding(mask: Tensor | None, batch: int, keys: int) -> list[int]:
    """Padded keys at the left of each row.

    Raises:
        ProbeError: a mask that is not a plain (batch, keys) one, or with holes.
    """
    if mask is None:
        return [0] * batch
    if mask.ndim != 2 or mask.shape[1] != keys:
        raise ProbeError(f"attention_mask: expected shape (batch, {keys}), got {tuple(mask.shape)}")
    real = mask.bool()
    pads = real.int().argmax(-1)
    # After its first real token a row may only end (right padding, which no real token sees), never resume.
    resumes = ((~real[:, :-1]) & real[:, 1:]).sum(-1)
    if bool((resumes > (pads > 0)).any()):
        raise ProbeError("attention_mask: expected padding at the ends only, got a hole between real tokens")
    return [int(pad) for pad in pads]


def _scheme_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch queries heads dim"], None]:
    """The function that transformers calls in place of its own attention."""
    active: _Active = getattr(module, _SLOT)
    keys, queries = key.shape[2], query.shape[2]
    window = kwargs.get("sliding_window")
    if window is not None and keys > window:
        raise ProbeError(
            f"the model's sliding attention window is {window} tokens: expected at most that many, got {keys}"
        )
    pads = _left_padding(attention_mask, query.shape[0], keys)
    prompt = active.prompt_keys(keys, queries)
    if not any(pads):
        return active.attend(query, key, value, scaling, prompt).transpose(1, 2), None
    out = torch.zeros_like(query)
    for pad in sorted(set(pads)):
        rows = [row for row, count in enumerate(pads) if count == pad]
        # Queries inside the padding come out as zero: nothing reads them.
        skip = max(0, pad - (keys - queries))
        real = query[rows, :, skip:], key[rows, :, pad:], value[rows, :, pad:]
        out[rows, :, skip:] = active.attend(*real, scaling, max(0, prompt - pad))
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, _scheme_attention)
AttentionMaskInterface.register(NAME, flash_attention_mask)


@contextmanager
def apply_scheme(
    model: ProbedModel,
    scheme: Scheme,
    *,
    backend: str = "pieces",
    exact_angles: bool = False,
    prompt: int | None = None,
) -> Iterator[ProbedModel]:
    """Run `model` under `scheme` inside the context.

    Args:
        model: a causal LM of a supported family.
        scheme: made for the model's window.
        backend: "pieces" (fast) or "dense" (the reference).
        exact_angles: compute RoPE angles in float64; default float32, bitwise what transformers does.
        prompt: tokens of the input that count as its prompt, for schemes that treat its end differently (padding
            included); default: those of the last pass that began with an empty cache.

    Raises:
        ProbeError: an unsupported family, an unknown backend, or a scheme already applied to this model.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    family = family_of(model.config)
    if isinstance(model, ToyModel):
        with weave_construction(model, scheme):
            yield model
        return
    attentions = [layer.get_submodule(family.attn) for layer in family.layer_list(model)]
    if any(hasattr(attention, _SLOT) for attention in attentions):
        raise ProbeError("a scheme is applied to this model already; leave its context first")
    parent_path, _, leaf = family.rotary.rpartition(".")
    parent, rotary = model.get_submodule(parent_path), model.get_submodule(family.rotary)
    inv_freq = rotary.inv_freq
    assert isinstance(inv_freq, Tensor)
    active = _Active(
        scheme, inv_freq, float(getattr(rotary, "attention_scaling", 1.0)), rope_base(model), backend,
        torch.float64 if exact_angles else torch.float32, prompt,
    )  # fmt: skip
    before = model.config._attn_implementation
    try:
        setattr(parent, leaf, _Unrotated(2 * inv_freq.shape[0]))
        for attention in attentions:
            setattr(attention, _SLOT, active)
        model.config._attn_implementation = NAME
        yield model
    finally:
        model.config._attn_implementation = before
        setattr(parent, leaf, rotary)
        for attention in attentions:
            if hasattr(attention, _SLOT):
                delattr(attention, _SLOT)


def rope_base(model: PreTrainedModel) -> float:
    """The RoPE base that the model was trained with."""
    parameters = getattr(model.config, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta", 10000.0))
