"""A scheme: the four choices together, at a trained window M."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from constructions.weave import Leaky, Linear, Weave
from probe.schemes.frequencies import Frequencies
from probe.schemes.visibility import Visibility


@dataclass(frozen=True)
class Scale:
    """The fourth choice: a factor on the queries. None here."""

    name: ClassVar[str] = "none"

    def factors(self, t: Int[Tensor, " queries"], window: int) -> Float[Tensor, " queries"] | None:
        """Factor of each query, float64, or None for 1 everywhere."""
        return None


@dataclass(frozen=True)
class LogN(Scale):
    """Log-n: queries times max(1, ln(t + 1)/ln M), for 0-based t (https://kexue.fm/archives/8823)."""

    name: ClassVar[str] = "logn"

    def factors(self, t: Int[Tensor, " queries"], window: int) -> Float[Tensor, " queries"] | None:
        """As `Scale.factors`; 1 inside the window."""
        return (torch.log(t.double() + 1) / math.log(window)).clamp(min=1.0)


WeaveAt = Callable[[int, int], Weave]
"""A weave whose parameters depend on (length T, window M)."""


def leaky_to_length(w: int) -> WeaveAt:
    """Leaky ReRoPE with 1/k = (M - w)/(T - w), so that the farthest key sits at M (paper Sec. 2)."""

    def at(length: int, window: int) -> Weave:
        return Leaky(w, max(1.0, (length - w) / max(1, window - w)))

    return at


@dataclass(frozen=True)
class Scheme:
    """Frequencies, weave, visibility and scale for a model of window M.

    `spec` is the text that makes this scheme again; `parameters` are the preset's, after overrides.
    """

    spec: str
    window: int
    frequencies: Frequencies = Frequencies()
    weave: Weave | WeaveAt = Linear()
    visibility: Visibility = Visibility()
    scale: Scale = Scale()
    parameters: dict[str, float] = field(default_factory=dict)

    def weave_at(self, length: int) -> Weave:
        """The weave for an input of `length` tokens."""
        return self.weave if isinstance(self.weave, Weave) else self.weave(length, self.window)
