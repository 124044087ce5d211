"""The seam: run one model object under a position scheme, and leave no trace afterwards.

The model's rotary is replaced by one that turns nothing, so its attention function receives raw queries and keys
(and the KV cache holds raw keys); that function, registered with transformers, does the scheme. A module that writes its
attention out itself gets a forward of its own, which calls the same function (see own_attention.py). Everything is
undone when the context ends, also on an exception. Nothing is patched on a class.

Layers may sit on several devices: positions and masks of a scheme are made on the CPU, and go to a layer's queries where they
are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from constructions.weave import Weave
from probe.attention.dense import attend_dense, weights_at
from probe.attention.encoding import Encoding
from probe.attention.merged import attend_pieces
from probe.attention.placing import placed
from probe.errors import FieldError, ProbeError, unknown
from probe.schemes.pieces import Piece, compile_pieces
from probe.schemes.scheme import Scheme
from probe.schemes.visibility import Visibility
from probe.seam.attributes import attributes
from probe.seam.chunked_prefill import Feeding, check_chunk_batch, fed
from probe.seam.construction import ProbedModel, ToyModel, weave_construction
from probe.seam.families import family_of, unwrapped
from probe.seam.given import GivenPositions
from probe.seam.positions import Bias, Positions, check_fits

NAME = "weavescope"
OWN_NAME = "weavescope-own"
"""Names of the attention function, and of the mask function for models with an attention of their own."""
BACKENDS = ("pieces", "dense")
_SLOT = "_weavescope_active"
K = TypeVar("K")
V = TypeVar("V")

Observer = Callable[[int, Tensor, Tensor, Encoding, float], None]
"""Told of every attention: the 1-based layer, raw queries [batch, heads, queries, dim], the last positions of the raw keys
[batch, kv_heads, keys, dim], the encoding, and the factor on the scores."""


class _Unrotated(nn.Module):
    """Stands in for the model's rotary: cos = 1 and sin = 0 at every position."""

    def __init__(self, rotary_dim: int) -> None:
        super().__init__()
        self.rotary_dim = rotary_dim

    def forward(self, x: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        shape = (*position_ids.shape, self.rotary_dim)
        return x.new_ones(shape), x.new_zeros(shape)


def _kept(store: dict[K, V], name: K, make: Callable[[], V], size: int) -> V:
    """What is in the store by that name, or is made and put there; the oldest go when there are more than `size`."""
    if name not in store:
        value = make()
        while len(store) >= size:
            store.pop(next(iter(store)))
        store[name] = value
    return store[name]


@dataclass
class _Active:
    """A scheme on a model: what all layers share, with what was compiled for a call kept for the other layers.

    `prompt` is the prompt's length where it was told, `continuing` what the cache of the present call says of it. `rows` are the
    groups of rows, equal in their padding, of the present call.
    """

    scheme: Scheme
    backend: str
    prompt: int | None = None
    observe: Observer | None = None
    given: GivenPositions | None = None
    usual: bool = False
    continuing: int | None = None
    rows: int = 1
    padding: _Last[list[int]] = field(default_factory=lambda: _Last(), repr=False)
    last_position: _Last[int] = field(default_factory=lambda: _Last(), repr=False)
    _encodings: dict[tuple[int, int], Encoding] = field(default_factory=dict, repr=False)
    _compiled: dict[tuple[int, int, int], list[Piece]] = field(default_factory=dict, repr=False)

    def prompt_keys(self, keys: int) -> int:
        """How many of so many keys, or of those to come, are the prompt's, padding included."""
        return self.whole(keys if self.continuing is None else self.continuing)

    def begin(self, prompt: int | None) -> None:
        """From now on calls are parts of one prompt of so many tokens, or continue it; None: no longer."""
        self.continuing = prompt

    def place(self, given: GivenPositions | None) -> None:
        """From now on calls have the positions that their caller gave; None: those that every call has."""
        self.given = given

    def whole(self, total: int) -> int:
        """Tokens of the prompt, padding included, that a pass of `total` tokens begins."""
        return total if self.prompt is None else self.prompt

    @contextmanager
    def generating(self, prompt: int | None, usual: bool) -> Iterator[None]:
        """Passes are parts of a prompt of so many tokens and what follows it, unless the user said so of another; `usual`
        says that nobody gave them positions.
        """
        before = self.prompt, self.usual
        self.prompt, self.usual = prompt if before[0] is None else before[0], usual
        try:
            yield
        finally:
            self.prompt, self.usual = before

    def borders(self, total: int) -> list[int]:
        """Where a prompt of `total` tokens, padding included, may be cut so that its parts do not depend on each other."""
        return self.scheme.borders_at(total)

    def pieces(self, first: int, length: int, prompt: int) -> list[Piece]:
        """The compiled scheme; layers of one pass share it."""

        def compiled() -> list[Piece]:
            return compile_pieces(*self._resolved(length, prompt), first, length)

        return _kept(self._compiled, (first, length, prompt), compiled, self.rows)

    def _encoding(self, positions: Positions, length: int) -> Encoding:
        """The encoding of layers with these positions, which the layers keep alive; they share its tables of angles."""
        name, rows = (id(positions), length), 2 * self.rows  # layers have one or two kinds of positions
        return _kept(self._encodings, name, lambda: positions.encoding(self.scheme, length), rows)

    def _resolved(self, length: int, prompt: int) -> tuple[Weave, Visibility]:
        """Weave and visibility at this length."""
        return self.scheme.weave_at(length, prompt), self.scheme.visibility_at(length, prompt)

    def attend_given(
        self, layer: _Layer, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None
    ) -> Tensor:
        """[batch, heads, queries, dim] at the positions that the caller gave, row by row by the dense definition.

        Raises:
            FieldError: positions that the scheme, or the model, cannot honour.
        """
        given, keys, queries = self.given, key.shape[2], query.shape[2]
        assert given is not None
        if isinstance(layer.positions, Bias):
            raise FieldError("position_ids", "none", hint="ALiBi takes distances from the order of the tokens alone")
        if self.observe is not None:
            raise FieldError("position_ids", "none while attention is observed, which goes by the order of the tokens")
        weave, visibility = self._resolved(given.length, given.length)
        encoding = self._encoding(layer.positions, given.length)
        rows = []
        for number, (q, k, v) in enumerate(zip(query.split(1), key.split(1), value.split(1), strict=True)):
            positions, _ = given.row(number, keys)
            t = positions[keys - queries :]
            real = torch.ones(keys, dtype=torch.bool) if mask is None else mask[number].cpu().bool()
            sees = given.mask(number, keys, queries, weave, visibility, real)
            scale = self.scheme.scale.factors(t, given.length, self.scheme.window)
            q = q if scale is None else q * placed(scale, q, q.dtype)[:, None]
            relative = weave(t.double()[:, None], positions.double()[None])
            weights = weights_at(q, k, relative, sees, encoding, scaling)
            rows.append(weights @ v.repeat_interleave(q.shape[1] // k.shape[1], 1))
        return torch.cat(rows)

    def attend(self, layer: _Layer, query: Tensor, key: Tensor, value: Tensor, scaling: float, prompt: int) -> Tensor:
        """[batch, heads, queries, dim] for unpadded rows; the queries are the last positions of the keys."""
        length = key.shape[2]
        first = length - query.shape[2]
        # While a prompt is fed in parts, parameters that follow the length are those of the whole.
        reached = max(length, prompt)
        scale = self.scheme.scale.factors(torch.arange(first, length), reached, self.scheme.window)
        if scale is not None:
            query = query * placed(scale, query, query.dtype)[:, None]
        encoding = self._encoding(layer.positions, reached)
        if self.observe is not None:
            self.observe(layer.number, query, key, encoding, scaling)
        if self.backend == "dense":
            weave, visibility = self._resolved(length, prompt)
            return attend_dense(query, key, value, weave, visibility, encoding, scaling)
        return attend_pieces(query, key, value, self.pieces(first, length, prompt), encoding, scaling)


@dataclass(frozen=True)
class _Layer:
    """A scheme on one layer: what the layer's attention module carries while the scheme is on."""

    active: _Active
    positions: Positions
    number: int


class _Last(Generic[V]):
    """The last value made from a tensor, for the other layers, which are given the same one: on a GPU every look at it is a wait."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, V] | None = None

    def of(self, x: Tensor, make: Callable[[Tensor], V]) -> V:
        """`make(x)`, or what it was."""
        if self.kept is None or self.kept[0] is not x:
            self.kept = x, make(x)
        return self.kept[1]


def _left_padding(mask: Tensor | None, batch: int, keys: int, seen: _Last[list[int]]) -> list[int]:
    """Padded keys at the left of each row.

    Raises:
        ProbeError: a mask that is not a plain (batch, keys) one, or with holes.
    """
    if mask is None:
        return [0] * batch
    if mask.ndim != 2 or mask.shape[1] != keys:
        raise ProbeError(f"attention_mask: expected shape (batch, {keys}), got {tuple(mask.shape)}")
    return seen.of(mask, _pads_of)


def _pads_of(mask: Bool[Tensor, "batch keys"]) -> list[int]:
    real = mask.cpu().bool()
    pads = real.int().argmax(-1)
    # After its first real token a row may only end (right padding, which no real token sees), never resume.
    resumes = ((~real[:, :-1]) & real[:, 1:]).sum(-1)
    if bool((resumes > (pads > 0)).any()):
        raise ProbeError("attention_mask: expected padding at the ends only, got a hole between real tokens")
    found: list[int] = pads.tolist()
    return found


def _check_options(keys: int, options: dict[str, Any], seen: _Last[int]) -> None:
    """Refuse what a model asks of its attention and a scheme does not compute.

    A sliding cache drops keys, so that past the window there may be no more keys than it holds: position_ids tell.

    Raises:
        ProbeError: soft-capped scores, or an input longer than the model's sliding window.
    """
    if options.get("softcap") is not None:
        raise ProbeError(f"the model soft-caps attention scores at {options['softcap']}, which no scheme computes")
    window, position_ids = options.get("sliding_window"), options.get("position_ids")
    if window is None:
        return
    length = keys if position_ids is None else max(keys, seen.of(position_ids, lambda ids: int(ids.max())) + 1)
    if length > window:
        raise ProbeError(
            f"the model's sliding attention window is {window} tokens: expected at most that many, got {length}"
        )


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
    layer: _Layer = getattr(module, _SLOT)
    active = layer.active
    keys, queries = key.shape[2], query.shape[2]
    _check_options(keys, kwargs, active.last_position)
    if active.given is not None:
        out = active.attend_given(layer, query, key, value, scaling, attention_mask)
        return out.transpose(1, 2), None
    pads = _left_padding(attention_mask, query.shape[0], keys, active.padding)
    prompt = active.prompt_keys(keys)
    active.rows = len(set(pads))
    if not any(pads):
        return active.attend(layer, query, key, value, scaling, prompt).transpose(1, 2), None
    out = torch.zeros_like(query)
    for pad in sorted(set(pads)):
        rows = placed(torch.tensor([row for row, count in enumerate(pads) if count == pad]), query)
        # Queries inside the padding come out as zero: nothing reads them.
        skip = max(0, pad - (keys - queries))
        q, k, v = (x.index_select(0, rows) for x in (query[:, :, skip:], key[:, :, pad:], value[:, :, pad:]))
        part = active.attend(layer, q, k, v, scaling, max(0, prompt - pad))
        out[:, :, skip:].index_copy_(0, rows, part)
    return out.transpose(1, 2), None


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
    """As `_padding_mask`, all true where nothing is padded: models with an attention of their own expect a tensor."""
    mask = _padding_mask(batch_size=batch_size, kv_length=kv_length, **kwargs)
    return torch.ones(batch_size, kv_length, dtype=torch.bool) if mask is None else mask


AttentionInterface.register(NAME, _scheme_attention)
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
def _raw_rotary(model: PreTrainedModel, path: str) -> Iterator[None]:
    """Let the model's rotary turn nothing, so that attention gets, and the cache keeps, raw queries and keys."""
    parent, _, leaf = path.rpartition(".")
    inv_freq = model.get_submodule(path).inv_freq
    assert isinstance(inv_freq, Tensor)
    with attributes(model.get_submodule(parent), **{leaf: _Unrotated(2 * inv_freq.shape[0])}):
        yield


def _prompt_of(inputs: Tensor | None, options: dict[str, Any]) -> int | None:
    """Tokens of the prompt that `generate` is given; None where it continues a cache, or begins with nothing."""
    cache = options.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        return None
    given = options.get("inputs_embeds"), inputs, options.get("input_ids")
    return next((tokens.shape[1] for tokens in given if tokens is not None), None)


def _generate(model: PreTrainedModel, active: _Active) -> Callable[..., Any]:
    """The model's `generate`, which knows where its prompt ends, however it is passed on.

    It may come in parts (`prefill_chunk_size`), again and again (without a cache), or with guesses behind it (assisted decoding).
    """
    generate = model.generate

    @wraps(generate)
    def told(inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        # A cache may bring positions that were given, and then generate's own continue them by number.
        usual = options.get("position_ids") is None and options.get("past_key_values") is None
        with active.generating(_prompt_of(inputs, options), usual):
            return generate(inputs, *args, **options)

    return told


def check_scheme(model: ProbedModel, scheme: Scheme) -> None:
    """Refuse a scheme that the model has no use for, without running anything.

    Raises:
        ProbeError: an unsupported family, or RoPE frequencies on a model without a rotary.
    """
    model = unwrapped(model)
    family = family_of(model.config)
    if not isinstance(model, ToyModel):
        check_fits(scheme, family.layer_positions(model), family.model_type)


@contextmanager
def apply_scheme(
    model: ProbedModel,
    scheme: Scheme,
    *,
    backend: str = "pieces",
    exact_angles: bool = False,
    prompt: int | None = None,
    chunk_batch: int | str = "auto",
    observe: Observer | None = None,
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
        observe: called in every attention, before it, with what it works on.

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
    if any(hasattr(attention, _SLOT) for attention in attentions):
        raise ProbeError("a scheme is applied to this model already; leave its context first")
    layers = family.layer_positions(model, torch.float64 if exact_angles else torch.float32)
    check_fits(scheme, layers, family.model_type)
    active = _Active(scheme, backend, prompt, observe)
    with ExitStack() as undo:
        for number, (attention, positions) in enumerate(zip(attentions, layers, strict=True), 1):
            undo.enter_context(attributes(attention, **{_SLOT: _Layer(active, positions, number)}))
            if family.own is not None:
                own = family.own.forward(attention, _scheme_attention)
                undo.enter_context(attributes(attention, forward=own))
        if family.own is None:
            undo.enter_context(_raw_rotary(model, family.rotary))
        undo.enter_context(_implementation(model.config, NAME if family.own is None else OWN_NAME))
        feeding = Feeding(
            active.borders,
            active.whole,
            active.begin,
            active.place,
            lambda: active.usual,
            scheme.spec,
            check_chunk_batch(chunk_batch),
        )
        undo.enter_context(fed(model, feeding))
        if hasattr(model, "generate"):
            undo.enter_context(attributes(model, generate=_generate(model, active)))
        yield given
