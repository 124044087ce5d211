"""A weave given by its values: W(d) = values[d], for weaves that no formula here covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from constructions.weave import Positions, Weave


@dataclass(frozen=True)
class Table(Weave):
    """W(d) = values[d] for d < len(values). Says nothing on subadditivity: ask horizon.is_subadditive."""

    values: tuple[float, ...]
    name: ClassVar[str] = "table"
    subadditive: ClassVar[bool] = False

    def of(self, d: Positions) -> Positions:
        """values[d]; a negative d (a key in the future, masked anyway) gets values[0]."""
        if isinstance(d, torch.Tensor):
            return torch.tensor(self.values, dtype=torch.float64)[d.clamp(min=0)]
        if isinstance(d, np.ndarray):
            return np.array(self.values)[np.maximum(d, 0)]
        return self.values[max(d, 0)]


def subadditive_closure(values: Sequence[float]) -> Table:
    """The largest subadditive W with W(0) = 0 and W(d) <= values[d] for d >= 1: the cheapest split of d."""
    best = [0.0]
    for d in range(1, len(values)):
        best.append(min([float(values[d]), *(best[a] + best[d - a] for a in range(1, d // 2 + 1))]))
    return Table(tuple(best))
