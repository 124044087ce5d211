"""Prompts that begin alike: what they have in common is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from probe.seam.cache import truncate


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def in_order(rows: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of the rows in the order in which the least is read anew: by length, then by their ids."""
    return sorted(range(len(rows)), key=lambda number: (len(rows[number]), list(rows[number])))


def saving(rows: Sequence[Sequence[int]]) -> float:
    """Share of all tokens, 0 to 1, that need not be read again where rows are read in that order."""
    total = sum(map(len, rows))
    pairs = pairwise(rows[number] for number in in_order(rows))
    return sum(common(one, other) for one, other in pairs if len(one) == len(other)) / total if total else 0.0


@dataclass
class PrefixMemory:
    """The cache of what was read last under one scheme; the next prompt is read from where it differs.

    Exact for every scheme, since only prompts of one length share: what a token sees, and at which position, depends on
    the tokens before it and that length alone.

    Attributes:
        ids: what was read last.
        cache: its keys and values, with more behind them where an answer was written; None before the first.
        read: tokens read so far.
    """

    ids: list[int] = field(default_factory=list)
    cache: DynamicCache | None = None
    read: int = 0

    def resume(self, ids: Sequence[int], config: Any, last: int) -> int:
        """Make the cache hold what these ids have in common with the last ones; how many tokens that is.

        Args:
            ids: of the next prompt.
            config: of the model.
            last: tokens at its end that are to be read in any case, since their logits are wanted.
        """
        kept = min(common(self.ids, ids), len(ids) - last)
        if self.cache is None or kept <= 0 or len(ids) != len(self.ids):
            self.cache, kept = DynamicCache(config=config), 0
        else:
            truncate(self.cache, kept)
        self.ids = list(ids)
        self.read += len(ids) - kept
        return kept

    def forced(self, model: Any, ids: Tensor, last: int) -> Tensor:
        """Logits [1, last, vocabulary] of the last tokens of a row of ids [1, tokens]."""
        kept = self.resume(ids[0].tolist(), model.config, last)
        logits: Tensor = model(
            input_ids=ids[:, kept:], past_key_values=self.cache, use_cache=True, logits_to_keep=last
        ).logits
        return logits
