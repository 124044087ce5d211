"""The third choice of a scheme: which keys a query sees, as intervals of key positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

Interval = tuple[Int[Tensor, " queries"], Int[Tensor, " queries"]]
"""Half-open key range [lo, hi) of every query; empty where hi <= lo."""


@dataclass(frozen=True)
class Visibility:
    """Causal: query t sees keys 0..t."""

    name: ClassVar[str] = "causal"

    def intervals(self, t: Int[Tensor, " queries"]) -> list[Interval]:
        """Disjoint key intervals whose union is what each query sees; bounds do not decrease with t."""
        return [(torch.zeros_like(t), t + 1)]
