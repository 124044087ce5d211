"""The first choice of a scheme: which RoPE angles.

Every kind returns a factor per frequency for the model's *own* inverse frequencies, so that a model that was trained with a
scaled rotary (Llama 3, YaRN) keeps its scaling underneath.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Frequencies:
    """The frequencies as trained: every factor is 1."""

    name: ClassVar[str] = "trained"

    def factors(self, rotary_dim: int, base: float, length: int, window: int) -> Float[Tensor, " half"]:
        """Factor for each of the rotary_dim/2 inverse frequencies, float64.

        Args:
            rotary_dim: rotated dimensions D of a head.
            base: RoPE base the model was trained with.
            length: tokens T in the sequence.
            window: trained window M.
        """
        return torch.ones(rotary_dim // 2, dtype=torch.float64)


def _base_change(rotary_dim: int, ratio: float) -> Tensor:
    """Factors that turn base b into b * ratio: frequency j is b^(-2j/D)."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    return torch.tensor(ratio, dtype=torch.float64) ** -exponents


@dataclass(frozen=True)
class DynamicNTK(Frequencies):
    """Dynamic NTK: base * (a*T/M - (a - 1))^(D/(D-2)) once T > M (paper Sec. 2, table in App. B).

    T is the length of the whole input, so every position of one pass shares the base; in decoding T grows, and the
    cache, which holds keys without position, follows.
    """

    a: float = 1.0
    name: ClassVar[str] = "dynamic-ntk"

    def factors(self, rotary_dim: int, base: float, length: int, window: int) -> Float[Tensor, " half"]:
        """As `Frequencies.factors`; 1 up to the window."""
        if length <= window or rotary_dim <= 2:
            return torch.ones(rotary_dim // 2, dtype=torch.float64)
        growth = self.a * length / window - (self.a - 1)
        return _base_change(rotary_dim, growth ** (rotary_dim / (rotary_dim - 2)))
