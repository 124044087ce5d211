"""The attention of a model under a scheme: what transformers calls in place of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from constructions.weave import Weave
from probe.attention.blocks import attend_piece_blocks, piece_blocks
from probe.attention.dense import PLAIN, ScoreBlock, Softmax, attend_dense, weights_at
from probe.attention.encoding import Encoding
from probe.attention.merged import attend_pieces
from probe.attention.placing import placed
from probe.errors import FieldError, ProbeError
from probe.schemes.pieces import Compiled, compile_pieces
from probe.schemes.scheme import Scheme
from probe.schemes.visibility import Visibility
from probe.seam.given import GivenPositions
from probe.seam.observers import Watching
from probe.seam.padding import Last, left_padding
from probe.seam.positions import Bias, PositionEncoding
from probe.seam.prompt import PromptState

SLOT = "_weavescope_active"
"""Attribute of an attention module under a scheme: its `LayerScheme`."""
K = TypeVar("K")
V = TypeVar("V")


def _kept(store: dict[K, V], name: K, make: Callable[[], V], size: int) -> V:
    """What is in the store by that name, or is made and put there; the oldest go when there are more than `size`."""
    if name not in store:
        value = make()
        while len(store) >= size:
            store.pop(next(iter(store)))
        store[name] = value
    return store[name]


@dataclass
class CompiledScheme:
    """A scheme, with what was worked out for one call kept for its other layers.

    `rows` are the groups of rows, equal in their padding, of the present call: each has its own.
    """

    scheme: Scheme
    rows: int = 1
    _encodings: dict[tuple[PositionEncoding, int], Encoding] = field(default_factory=dict, repr=False)
    _pieces: dict[tuple[int, int, int], Compiled] = field(default_factory=dict, repr=False)

    def resolved(self, length: int, prompt: int) -> tuple[Weave, Visibility]:
        """Weave and visibility at this length."""
        return self.scheme.weave_at(length, prompt), self.scheme.visibility_at(length, prompt)

    def pieces(self, first: int, length: int, prompt: int) -> Compiled:
        """The pieces for queries first..length-1."""

        def made() -> Compiled:
            return compile_pieces(*self.resolved(length, prompt), first, length)

        return _kept(self._pieces, (first, length, prompt), made, self.rows)

    def encoding(self, positions: PositionEncoding, length: int) -> Encoding:
        """The encoding of layers with these positions; they share its tables of angles."""
        size = 2 * self.rows  # layers have one or two kinds of positions
        return _kept(self._encodings, (positions, length), lambda: positions.encoding(self.scheme, length), size)

    def scaled(self, query: Tensor, t: Tensor, length: int) -> Tensor:
        """Queries [batch, heads, queries, dim] at positions t, with the scheme's factor on their scores."""
        factors = self.scheme.scale.factors(t, length, self.scheme.window)
        return query if factors is None else query * placed(factors, query, query.dtype)[:, None]


@dataclass
class ModelScheme:
    """A scheme on one model: what all its layers share.

    Attributes:
        scheme: the scheme.
        backend: "pieces" or "dense".
        prompt: of the calls that go on.
        observers: those who watch, a list that follows them.
    """

    scheme: Scheme
    backend: str
    prompt: PromptState
    observers: Sequence[Watching]
    padding: Last[list[int]] = field(default_factory=lambda: Last(), repr=False)
    last_position: Last[int] = field(default_factory=lambda: Last(), repr=False)


@dataclass(frozen=True)
class LayerScheme:
    """A scheme on one layer: what the layer's attention module carries while the scheme is on.

    Attributes:
        model: what it shares with the other layers.
        compiled: the scheme, shared with layers of the same sliding window; where that is the layer's own design, what
            it was trained with, within that window.
        positions: how they entered the layer as it was trained.
        number: 1 is the first.
        window: its sliding window, None where it has none.
    """

    model: ModelScheme
    compiled: CompiledScheme
    positions: PositionEncoding
    number: int
    window: int | None = None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, prompt: int, softmax: Softmax = PLAIN
    ) -> Tensor:
        """[batch, heads, queries, dim] for unpadded rows; the queries are the last positions of the keys."""
        compiled, length = self.compiled, key.shape[2]
        first = length - query.shape[2]
        # While a prompt is fed in parts, parameters that follow the length are those of the whole.
        reached = max(length, prompt)
        query = compiled.scaled(query, torch.arange(first, length), reached)
        encoding = compiled.encoding(self.positions, reached)
        if self.model.observers:
            self._tell(query, key, encoding, scaling, prompt, softmax)
        if self.model.backend == "dense":
            return attend_dense(query, key, value, *compiled.resolved(length, prompt), encoding, scaling, softmax)
        pieces = compiled.pieces(first, length, prompt)
        if softmax.softcap is not None:  # no fused kernel bends scores
            return attend_piece_blocks(query, key, value, pieces, encoding, scaling, softmax)
        return attend_pieces(query, key, value, pieces, encoding, scaling, sinks=softmax.sinks)

    def _tell(
        self, query: Tensor, key: Tensor, encoding: Encoding, scaling: float, prompt: int, softmax: Softmax
    ) -> None:
        """Let those who watch see the scores, which are computed once for all of them."""
        length, window = key.shape[2], self.model.scheme.window
        pieces = self.compiled.pieces(length - query.shape[2], length, prompt)
        since = min(one.start for one in self.model.observers)
        samples = {(one.start, one.period) for one in self.model.observers}
        period = next(iter(samples))[1] if len(samples) == 1 else None  # else one needs what another leaves out
        for first, scores in piece_blocks(query, key, pieces, encoding, scaling, since=since, period=period):
            block = ScoreBlock(self.number, first, window, softmax.capped(scores), softmax)
            for one in self.model.observers:
                if block.last > one.start:
                    one.observer(block)

    def attend_at(
        self,
        given: GivenPositions,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        mask: Tensor | None,
        softmax: Softmax = PLAIN,
    ) -> Tensor:
        """[batch, heads, queries, dim] at the positions that the caller gave, row by row by the dense definition.

        Raises:
            FieldError: positions that the scheme, or the model, cannot honour.
        """
        if isinstance(self.positions, Bias):
            raise FieldError("position_ids", "none", hint="ALiBi takes distances from the order of the tokens alone")
        if self.model.observers:
            raise FieldError("position_ids", "none while attention is observed, which goes by the order of the tokens")
        compiled, keys, queries = self.compiled, key.shape[2], query.shape[2]
        weave, visibility = compiled.resolved(given.length, given.length)
        encoding = compiled.encoding(self.positions, given.length)
        rows = []
        for number, (q, k, v) in enumerate(zip(query.split(1), key.split(1), value.split(1), strict=True)):
            positions, _ = given.row(number, keys)
            t = positions[keys - queries :]
            real = torch.ones(keys, dtype=torch.bool) if mask is None else mask[number].cpu().bool()
            by_order = is_own_window(self.window, self.model.scheme.window)
            sees = given.mask(number, keys, queries, weave, visibility, real, by_order)
            relative = weave(t.double()[:, None], positions.double()[None])
            weights = weights_at(compiled.scaled(q, t, given.length), k, relative, sees, encoding, scaling, softmax)
            rows.append(weights.to(v.dtype) @ v.repeat_interleave(q.shape[1] // k.shape[1], 1))
        return torch.cat(rows)

    def attend_padded(
        self,
        pads: Sequence[int],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        prompt: int,
        softmax: Softmax = PLAIN,
    ) -> Tensor:
        """[batch, heads, queries, dim] for rows padded at the left, those of equal padding together.

        Raises:
            ProbeError: someone watches, who could not tell rows apart.
        """
        if self.model.observers:
            raise ProbeError("attention_mask: expected no padding while attention is observed")
        keys, queries = key.shape[2], query.shape[2]
        out = torch.zeros_like(query)
        for pad in sorted(set(pads)):
            rows = placed(torch.tensor([row for row, count in enumerate(pads) if count == pad]), query)
            # Queries inside the padding come out as zero: nothing reads them.
            skip = max(0, pad - (keys - queries))
            q, k, v = (x.index_select(0, rows) for x in (query[:, :, skip:], key[:, :, pad:], value[:, :, pad:]))
            part = self.attend(q, k, v, scaling, max(0, prompt - pad), softmax)
            out[:, :, skip:].index_copy_(0, rows, part)
        return out


def is_own_window(window: int | None, trained: int) -> bool:
    """Whether a layer with this sliding window is local by design: no distance in it is one that was not trained."""
    return window is not None and window <= trained


def _check_window(keys: int, window: int | None, trained: int, options: dict[str, Any], seen: Last[int]) -> None:
    """Refuse an input that a sliding window cuts, where the scheme acts on the layer.

    A sliding cache drops keys, so that past the window there may be no more keys than it holds: position_ids tell.

    Raises:
        ProbeError: an input longer than a sliding window that is wider than the trained one.
    """
    position_ids = options.get("position_ids")
    if window is None or is_own_window(window, trained):
        return
    length = keys if position_ids is None else max(keys, seen.of(position_ids, lambda ids: int(ids.max())) + 1)
    if length > window:
        raise ProbeError(
            f"the model's sliding attention window is {window} tokens: expected at most that many, got {length}"
        )


def scheme_attention(
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
    layer: LayerScheme = getattr(module, SLOT)
    mine, keys = layer.model, key.shape[2]
    _check_window(keys, layer.window, mine.scheme.window, kwargs, mine.last_position)
    softmax = Softmax(kwargs.get("softcap"), kwargs.get("s_aux"))
    given = mine.prompt.given
    if given is not None:
        out = layer.attend_at(given, query, key, value, scaling, attention_mask, softmax)
    else:
        pads = left_padding(attention_mask, query.shape[0], keys, mine.padding)
        layer.compiled.rows = len(set(pads))
        prompt = mine.prompt.keys(keys)
        if any(pads):
            out = layer.attend_padded(pads, query, key, value, scaling, prompt, softmax)
        else:
            out = layer.attend(query, key, value, scaling, prompt, softmax)
    return out.transpose(1, 2), None
