"""Who watches a model's attention while a scheme is applied: any number at once, told the scores of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from probe.attention.dense import ScoreBlock
from probe.seam.families import unwrapped

Observer = Callable[[ScoreBlock], None]
"""Told of the scores of each layer, some queries at a time and in their order, before the layer's attention is
computed.
"""

_WATCHING: WeakKeyDictionary[nn.Module, list[Observer]] = WeakKeyDictionary()


@contextmanager
def observed(model: Any, observer: Observer) -> Iterator[None]:
    """Tell `observer` of every attention of `model` that runs under a scheme inside the context.

    The scores are computed once more for those who watch, in memory linear in the keys. Rows must be unpadded, and
    positions the usual ones.

    Args:
        model: the causal LM; its scheme may be applied before or inside.
        observer: called with blocks of scores.
    """
    watching = _WATCHING.setdefault(unwrapped(model), [])
    watching.append(observer)
    try:
        yield
    finally:
        watching.remove(observer)


def observers_of(model: nn.Module) -> Sequence[Observer]:
    """Those who watch a model now: a list that follows them."""
    return _WATCHING.setdefault(model, [])
