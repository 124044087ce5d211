"""The seam: run one model object under a position scheme, and leave no trace afterwards.

The model's rotary is replaced by one that turns nothing, so its attention function receives raw queries and keys
(and the KV cache holds raw keys); that function, registered with transformers, does the scheme (see attend.py). A
module that writes its attention out itself gets a forward of its own, which calls the same function (see
own_attention.py). Everything is undone when the context ends, also on an exception. Nothing is patched on a class.

Layers may sit on several devices: positions and masks of a scheme are made on the CPU, and go to a layer's queries
where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from probe.errors import ProbeError, unknown
from probe.schemes import PRESETS, resolve_schemes
from probe.schemes.scheme import ORIGIN, Scheme
from probe.schemes.visibility import Lambda
from probe.seam.attend import SLOT, CompiledScheme, LayerScheme, ModelScheme, is_own_window, scheme_attention
from probe.seam.attributes import attributes
from probe.seam.chunked_prefill import Feeding, check_chunk_batch, fed
from probe.seam.construction import ProbedModel, ToyModel, weave_construction
from probe.seam.families import Family, family_of, unwrapped
from probe.seam.observers import observers_of
from probe.seam.parallel import Ranks
from probe.seam.positions import PositionEncoding, check_fits
from probe.seam.prompt import PromptState

NAME = "weavescope"
OWN_NAME = "weavescope-own"
"""Names of the attention function, and of the mask function for models with an attention of their own."""
BACKENDS = ("pieces", "dense")


class _Unrotated(nn.Module):
    """Stands in for the model's rotary: cos = 1 and sin = 0 at every position."""

    def __init__(self, rotary_dim: int) -> None:
        super().__init__()
        self.rotary_dim = rotary_dim

    def forward(self, x: Tensor, position_ids: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        shape = (*position_ids.shape, self.rotary_dim)
        return x.new_ones(shape), x.new_zeros(shape)


def _padding_mask(
    *, q_length: int, kv_length: int, q_offset: int | Tensor = 0, kv_offset: int | Tensor = 0, **kwargs: Any
) -> Tensor | None:
    """The (batch, keys) mask, or None where nothing is padded.

    Raises:
        ProbeError: a cache of fixed size, whose keys beyond the last token are not there yet.
    """
    if int(kv_offset) + kv_length > int(q_offset) + q_length:
        raise ProbeError("a static cache does not fit position schemes; expected the dynamic one, which is the default")
    mask: Tensor | None = flash_attention_mask(q_length=q_length, kv_length=kv_length, **kwargs)
    return mask


def _always_a_mask(*, batch_size: int, kv_length: int, **kwargs: Any) -> Tensor:
    """The (batch, keys) mask, all true where nothing is padded: an attention of a model's own expects a tensor."""
    mask = _padding_mask(batch_size=batch_size, kv_length=kv_length, **kwargs)
    return torch.ones(batch_size, kv_length, dtype=torch.bool) if mask is None else mask


AttentionInterface.register(NAME, scheme_attention)
AttentionMaskInterface.register(NAME, _padding_mask)
AttentionMaskInterface.register(OWN_NAME, _always_a_mask)


@contextmanager
def _implementation(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Choose the attention (and mask) function by name; sub-configurations, which follow, get their own back too."""
    parts = {key: getattr(config, key) for key in config.sub_configs if getattr(config, key, None) is not None}
    before = {"": config._attn_implementation} | {key: part._attn_implementation for key, part in parts.items()}
    try:
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _raw_rotary(model: PreTrainedModel, family: Family) -> Iterator[None]:
    """Let the model's rotary turn nothing, so that attention gets, and the cache keeps, raw queries and keys."""
    parent, _, leaf = family.rotary.rpartition(".")
    with attributes(model.get_submodule(parent), **{leaf: _Unrotated(family.rotary_width(model))}):
        yield


def _prompt_of(inputs: Tensor | None, options: dict[str, Any]) -> int | None:
    """Tokens of the prompt that `generate` is given; None where it continues a cache, or begins with nothing."""
    cache = options.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        return None
    given = options.get("inputs_embeds"), inputs, options.get("input_ids")
    return next((tokens.shape[1] for tokens in given if tokens is not None), None)


def _generate(model: PreTrainedModel, prompt: PromptState) -> Callable[..., Any]:
    """The model's `generate`, which knows where its prompt ends, however it is passed on.

    It may come in parts (`prefill_chunk_size`), again and again (without a cache), or with guesses behind it (assisted
    decoding).
    """
    generate = model.generate

    @wraps(generate)
    def told(inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        # A cache may bring positions that were given, and then generate's own continue them by number.
        usual = options.get("position_ids") is None and options.get("past_key_values") is None
        with prompt.generating(_prompt_of(inputs, options), usual):
            return generate(inputs, *args, **options)

    return told


def compiled_by_window(
    scheme: Scheme, windows: Iterable[int | None], weave_local: bool = False
) -> dict[int | None, CompiledScheme]:
    """The scheme, and what becomes of it in layers of each sliding window."""

    def within(window: int | None) -> Scheme:
        if window is None or not is_own_window(window, scheme.window):
            return scheme
        own = Lambda(0, window)
        if weave_local:
            return replace(scheme, visibility=own)
        return Scheme(ORIGIN, scheme.window, visibility=own)

    return {window: CompiledScheme(within(window)) for window in set(windows)}


def _check_fits(
    scheme: Scheme,
    name: str,
    layers: Sequence[PositionEncoding],
    windows: Sequence[int | None],
    weave_local: bool = False,
) -> None:
    """Refuse a scheme that the layers on which it would act have no use for.

    Raises:
        ProbeError: RoPE frequencies where nothing rotates.
    """
    acted = [
        positions
        for positions, window in zip(layers, windows, strict=True)
        if weave_local or not is_own_window(window, scheme.window)
    ]
    if acted:
        check_fits(scheme, acted, name)


def local_layers(model: ProbedModel, window: int) -> list[int]:
    """Layers, 1 is the first, that are local by design for a trained window M: schemes leave them as trained."""
    model = unwrapped(model)
    windows = family_of(model.config).layer_windows(model)
    return [number for number, own in enumerate(windows, 1) if is_own_window(own, window)]


def check_scheme(model: ProbedModel, scheme: Scheme, *, weave_local: bool = False) -> None:
    """Refuse a scheme that the model has no use for, without running anything.

    Raises:
        ProbeError: an unsupported family, or RoPE frequencies on a model without a rotary.
    """
    model = unwrapped(model)
    family = family_of(model.config)
    if not isinstance(model, ToyModel):
        _check_fits(scheme, family.name, family.layer_positions(model), family.layer_windows(model), weave_local)


def fitting(model: ProbedModel, window: int, *more: str) -> list[Scheme]:
    """Every preset that the model takes, the trained one first, and of `more` schemes those that it takes."""
    found = []
    for spec in (*PRESETS, *more):
        [scheme] = resolve_schemes(spec, window)
        try:
            check_scheme(model, scheme)
        except ProbeError:
            continue
        found.append(scheme)
    return found


@contextmanager
def apply_scheme(
    model: ProbedModel,
    scheme: Scheme,
    *,
    backend: str = "pieces",
    exact_angles: bool = False,
    prompt: int | None = None,
    chunk_batch: int | str = "auto",
    weave_local: bool = False,
    ranks: Ranks | None = None,
) -> Iterator[ProbedModel]:
    """Run `model` under `scheme` inside the context.

    Args:
        model: a causal LM of a supported family, or one with PEFT adapters on it.
        scheme: made for the model's window.
        backend: "pieces" (fast) or "dense" (the reference).
        exact_angles: compute RoPE angles in float64; default float32, bitwise what transformers does.
        prompt: tokens of the input that count as its prompt, for schemes that treat its end differently (padding
            included); default: what `generate` is given, else those of the pass that began with an empty cache.
        chunk_batch: middle chunks of a chunked prompt that go through the model together; "auto": as many as 64 MiB of
            activations hold on CPU, 2 GiB on a GPU. It changes memory and speed, not results.
        weave_local: let the scheme's frequencies, weave and scale act on layers too that are local by design (their
            sliding window is at most the trained one, so that no distance in them is unseen); by default these stay as
            trained. What they see is their own window either way.
        ranks: processes, each with this model and about to read the same prompts, that share the middle chunks of a
            chunked prompt between them (`probe.seam.parallel.joined` under torchrun); what hooks see is then this
            process's share alone.

    Raises:
        ProbeError: an unsupported family, an unknown backend, a scheme that the model has no use for, or one applied
            to this model already.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    given, model = model, unwrapped(model)
    family = family_of(model.config)
    if isinstance(model, ToyModel):
        with weave_construction(model, scheme):
            yield given
        return
    attentions = family.attentions(model)
    if any(hasattr(attention, SLOT) for attention in attentions):
        raise ProbeError("a scheme is applied to this model already; leave its context first")
    layers = family.layer_positions(model, torch.float64 if exact_angles else torch.float32)
    windows = family.layer_windows(model)
    _check_fits(scheme, family.name, layers, windows, weave_local)
    state = PromptState(prompt)
    shared = ModelScheme(scheme, backend, state, observers_of(model))
    compiled = compiled_by_window(scheme, windows, weave_local)
    with ExitStack() as undo:
        made = zip(attentions, layers, windows, strict=True)
        for number, (attention, positions, window) in enumerate(made, 1):
            mine = LayerScheme(shared, compiled[window], positions, number, window)
            undo.enter_context(attributes(attention, **{SLOT: mine}))
            if family.own is not None:
                own = family.own.forward(attention, scheme_attention)
                undo.enter_context(attributes(attention, forward=own))
        if family.own is None:
            undo.enter_context(_raw_rotary(model, family))
        undo.enter_context(_implementation(model.config, NAME if family.own is None else OWN_NAME))
        undo.enter_context(fed(model, Feeding(scheme, state, check_chunk_batch(chunk_batch), ranks=ranks)))
        if hasattr(model, "generate"):
            undo.enter_context(attributes(model, generate=_generate(model, state)))
        yield given
