"""Who watches a model's attention while a scheme is applied: any number at once, told the scores of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from probe.attention.dense import ScoreBlock
from probe.seam.families import unwrapped

Observer = Callable[[ScoreBlock], None]
"""Told of the scores of each layer, some queries at a time and in their order, before the layer's attention is
computed.
"""


class Watching(NamedTuple):
    """Somebody who watches, the first position that interests them, and the period of a sample of queries."""

    observer: Observer
    start: int
    period: int | None = None


_WATCHING: WeakKeyDictionary[nn.Module, list[Watching]] = WeakKeyDictionary()


@contextmanager
def observed(model: Any, observer: Observer, start: int = 0, period: int | None = None) -> Iterator[None]:
    """Tell `observer` of every attention of `model` that runs under a scheme inside the context.

    The scores are computed once more for those who watch, in memory linear in the keys. Rows must be unpadded, and
    positions the usual ones.

    Args:
        model: the causal LM; its scheme may be applied before or inside.
        observer: called with blocks of scores.
        start: first position whose scores are wanted: those of earlier queries are not computed, unless somebody else
            wants them, and a block may begin before it then.
        period: a sample is enough: the first `probe.attention.blocks.RUN` queries of every so many from `start` on.
            More come where somebody else wants them.
    """
    watching, mine = _WATCHING.setdefault(unwrapped(model), []), Watching(observer, start, period)
    watching.append(mine)
    try:
        yield
    finally:
        watching.remove(mine)


def observers_of(model: nn.Module) -> Sequence[Watching]:
    """Those who watch a model now: a list that follows them."""
    return _WATCHING.setdefault(model, [])
