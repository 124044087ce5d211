"""A KV cache in one buffer per layer: a step writes its keys in place, and nothing that is there is copied.

The cache of transformers concatenates: every decoded token copies all keys and values of every layer. Here they are
views of a buffer with room at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from typing_extensions import override

from probe.errors import ProbeError

_writers = threading.local()


@contextmanager
def written_by_a_scheme() -> Iterator[None]:
    """Inside, this thread's calls of a model are a scheme's, and write raw keys."""
    _writers.count = getattr(_writers, "count", 0) + 1
    try:
        yield
    finally:
        _writers.count -= 1


ROOM = 512
"""Tokens of free room that a buffer is allocated with, beside what is known to come."""


class BufferedLayer(DynamicLayer):
    """One layer's keys and values [batch, kv_heads, tokens, dim] as views of buffers.

    Cropping keeps the views on their buffer; what makes new tensors (beam reordering, selection) is noticed by their
    address, and the next update moves them into a fresh buffer. So it does with a buffer made in inference mode, which
    nobody may write outside it. A view taken before a crop shows what is written after it.

    Args:
        expected: tokens that the first allocation must hold.
        raw: its keys carry no positions: only calls inside `written_by_a_scheme` may update it.
    """

    def __init__(self, expected: int = 0, raw: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.expected = expected
        self.raw = raw
        self._buffers: tuple[Tensor, Tensor] | None = None

    def _fits(self, tokens: int) -> bool:
        """Whether the views lie at the start of buffers with room for `tokens`."""
        if self._buffers is None or self.keys is None or self.keys.numel() == 0:
            return False
        if self._buffers[0].is_inference() and not torch.is_inference_mode_enabled():
            return False
        held = zip((self.keys, self.values), self._buffers, strict=True)
        same = all(now.data_ptr() == buffer.data_ptr() and len(now) == len(buffer) for now, buffer in held)
        return same and self._buffers[0].shape[-2] >= tokens

    def _allocate(self, states: Tensor, tokens: int) -> Tensor:
        size = max(tokens, self.expected) + ROOM
        return torch.empty(*states.shape[:2], size, states.shape[-1], dtype=states.dtype, device=states.device)

    def update(
        self,
        key_states: Float[Tensor, "batch kv_heads new dim"],
        value_states: Float[Tensor, "batch kv_heads new dim"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch kv_heads tokens dim"], Float[Tensor, "batch kv_heads tokens dim"]]:
        """Write the new keys and values behind those there, and return views of all.

        Raises:
            ProbeError: a model outside every scheme continues it: its keys would be rotated, those here are raw.
        """
        if self.raw and not getattr(_writers, "count", 0):
            raise ProbeError(
                "past_key_values: this cache was filled under a scheme and holds keys without positions; continue it "
                "inside the scheme's context, or start from an empty cache"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        tokens = held + key_states.shape[-2]
        if not self._fits(tokens):
            self._move(key_states, value_states, held, tokens)
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, held:tokens] = new
        self.keys, self.values = (buffer[:, :, :tokens] for buffer in self._buffers)
        return self.keys, self.values

    def _move(self, key_states: Tensor, value_states: Tensor, held: int, tokens: int) -> None:
        """New buffers, with what is held so far at their start."""
        self._buffers = self._allocate(key_states, tokens), self._allocate(value_states, tokens)
        if held:
            for buffer, old in zip(self._buffers, (self.keys, self.values), strict=True):
                buffer[:, :, :held] = old

    def widen(self, tokens: int) -> None:
        """Let the views hold so many tokens; those that are new are zeros, for somebody to fill.

        Raises:
            ProbeError: nothing was written yet, so that nobody knows what a token's keys look like.
        """
        if not self.is_initialized or self.keys is None or self.values is None:
            raise ProbeError("cache: expected some keys before room is made behind them")
        held = self.get_seq_length()
        if tokens <= held:
            return
        if not self._fits(tokens):
            self._move(self.keys, self.values, held, tokens)
        assert self._buffers is not None
        for buffer in self._buffers:
            buffer[:, :, held:tokens] = 0
        self.keys, self.values = (buffer[:, :, :tokens] for buffer in self._buffers)

    @override
    def reset(self) -> None:
        """The buffers go too."""
        super().reset()
        self._buffers = None


_REPLACED = (DynamicLayer, DynamicSlidingWindowLayer)


def buffered(cache: DynamicCache, expected: int, raw: bool = False) -> DynamicCache:
    """Make an empty cache hold buffers of `expected` tokens and some room; any other stays as it is.

    `raw` ones take keys from a scheme only, which carry no positions.

    Sliding-window layers are replaced too: a scheme needs every key at its own position, and refuses inputs past that
    window.
    """
    if type(cache) is not DynamicCache or cache.get_seq_length() > 0 or getattr(cache, "offloading", False):
        return cache
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = partial(BufferedLayer, expected, raw)
    cache.layers = [BufferedLayer(expected, raw) if type(layer) in _REPLACED else layer for layer in cache.layers]
    return cache


def truncate(cache: DynamicCache, tokens: int) -> None:
    """Keep the first `tokens` of every layer."""
    for layer in cache.layers:
        if layer.is_initialized and layer.keys is not None and layer.keys.numel() and layer.keys.shape[-2] > tokens:
            layer.keys, layer.values = layer.keys[:, :, :tokens], layer.values[:, :, :tokens]
