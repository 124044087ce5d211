"""Chunk-parallel prefill: a prompt's middle chunks, which see chunk 0 and themselves only, spread over processes.

Every process has the whole model and the whole prompt. Each reads chunk 0 (cheaper than to wait for it) and its share
of the middle chunks; then all hand on the keys and values of their shares, one broadcast each; and each reads the last
chunk, so that all end with the same cache and the same logits. How a prompt is cut into calls changes no result, and
neither does who makes them.

The idea is Star Attention's (https://arxiv.org/abs/2411.17116, phase 1), for Mesa's chunks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import DynamicCache

from probe.errors import ProbeError
from probe.seam.cache import BufferedLayer

Share = tuple[int, int]
"""Tokens first..stop-1 of a prompt."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share prompts.

    Attributes:
        group: torch's process group; None for all processes.
    """

    group: Any = None

    @property
    def count(self) -> int:
        """How many they are."""
        return distributed.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""
        return distributed.get_rank(self.group)

    def exchange(self, cache: DynamicCache, shares: Sequence[Share], stop: int) -> None:
        """Give every process the keys and values of all shares; the cache then holds `stop` tokens."""
        layers = [_buffered(layer) for layer in cache.layers]
        for layer in layers:
            layer.widen(stop)
        for owner, (first, end) in enumerate(shares):
            if first == end:
                continue
            parts = [x[:, :, first:end] for layer in layers for x in (layer.keys, layer.values)]
            if owner == self.rank:
                sent = torch.cat([part.reshape(-1) for part in parts])
            else:
                sent = parts[0].new_empty(sum(part.numel() for part in parts))
            source = owner if self.group is None else distributed.get_global_rank(self.group, owner)
            distributed.broadcast(sent, source, self.group)
            if owner != self.rank:
                _take(parts, sent)


def _take(parts: Sequence[Tensor], sent: Tensor) -> None:
    at = 0
    for part in parts:
        part.copy_(sent[at : at + part.numel()].view(part.shape))
        at += part.numel()


def _buffered(layer: Any) -> BufferedLayer:
    """The layer.

    Raises:
        ProbeError: a cache of the caller's own kind, of which nothing can be left out for others to fill.
    """
    if not isinstance(layer, BufferedLayer):
        raise ProbeError(
            f"chunk-parallel prefill: expected transformers' dynamic cache, got layers of {type(layer).__name__}"
        )
    return layer


def begin_at(cache: DynamicCache, tokens: int) -> None:
    """Let what is written next begin behind so many tokens, those missing left to others."""
    for layer in cache.layers:
        _buffered(layer).widen(tokens)


def shares(borders: Sequence[int], count: int) -> list[Share]:
    """The middle chunks dealt to so many processes, each a run of whole chunks; empty ones where there are too few.

    Args:
        borders: first positions of the middle chunks and, last, of the last chunk; ascending.
        count: processes.
    """
    chunks = len(borders) - 1
    cuts = [borders[chunks * number // count] for number in range(count + 1)]
    return list(pairwise(cuts))


@contextmanager
def joined() -> Iterator[Ranks | None]:
    """The processes that torchrun has started, of which this is one; None where it has not, or started one alone.

    Raises:
        ProbeError: torchrun's variables are there and no connection is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    try:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise ProbeError(f"torchrun: the processes did not find each other ({said}); start with torchrun") from None
    try:
        yield Ranks()
    finally:
        distributed.destroy_process_group()
