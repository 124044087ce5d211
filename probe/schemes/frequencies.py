"""The first choice of a scheme: which RoPE angles.

Every kind returns a factor per frequency for the model's *own* inverse frequencies, so that a model that was trained
with a scaled rotary (Llama 3, YaRN) keeps its scaling underneath. Torch is imported where factors are computed, so that
schemes can be named and drawn without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from typing_extensions import override

from constructions.weave import Tensor
from probe.errors import ProbeError

Apart = Callable[[Tensor], Tensor]
"""From positions [n], those of every frequency: [n, half]."""


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
        import torch

        return torch.ones(rotary_dim // 2, dtype=torch.float64)

    def apart(self) -> Apart | None:
        """Where each frequency puts a token, where they do not all put it in the same place; None where they do."""
        return None


def stretch(s: float, length: int, window: int) -> float:
    """How many times the window is stretched: s, or max(1, T/M) where s is 0."""
    return s or max(1.0, length / window)


def check_stretch(what: str, s: float) -> None:
    """Refuse a stretch that would shrink the window.

    Raises:
        ProbeError: s is neither 0 nor at least 1.
    """
    if s != 0 and not s >= 1:
        raise ProbeError(f"{what}: s: expected a number >= 1, or 0 to follow T/M, got {s:g}")


@dataclass(frozen=True)
class Interpolation(Frequencies):
    """Position interpolation: every frequency divided by s (https://arxiv.org/abs/2306.15595).

    The source has one factor L'/L per model, L' being the length it is then fine-tuned for: that is `s`, and it also
    holds inside the window. With s = 0, for models that nobody fine-tunes, it follows the input: max(1, T/M).
    """

    s: float = 0.0
    name: ClassVar[str] = "pi"

    def __post_init__(self) -> None:
        check_stretch(self.name, self.s)

    @override
    def factors(self, rotary_dim: int, base: float, length: int, window: int) -> Float[Tensor, " half"]:
        """1/s."""
        import torch

        return torch.full((rotary_dim // 2,), 1 / stretch(self.s, length, window), dtype=torch.float64)


@dataclass(frozen=True)
class Unrotated(Frequencies):
    """No rotation: every factor is 0, so no score depends on a position (the trained model, as a control)."""

    name: ClassVar[str] = "nope"

    @override
    def factors(self, rotary_dim: int, base: float, length: int, window: int) -> Float[Tensor, " half"]:
        """0."""
        import torch

        return torch.zeros(rotary_dim // 2, dtype=torch.float64)


EVERYWHERE = (Frequencies, Unrotated)
"""Those that fit models without rotary frequencies too, and that no length changes."""


def _base_change(rotary_dim: int, ratio: float) -> Tensor:
    """Factors that turn base b into b * ratio: frequency j is b^(-2j/D)."""
    import torch

    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    return torch.tensor(ratio, dtype=torch.float64) ** -exponents


@dataclass(frozen=True)
class NTK(Frequencies):
    """NTK-aware RoPE with a fixed factor: base * a^(D/(D-2)) at every length, also inside the window.

    So the lowest frequency is interpolated by a, and the highest is left alone (https://arxiv.org/abs/2309.00071,
    Definition 1; first in https://www.reddit.com/r/LocalLLaMA/comments/14lz7j5/, with a = 8).
    """

    a: float = 8.0
    name: ClassVar[str] = "ntk"

    def __post_init__(self) -> None:
        if not self.a >= 1:
            raise ProbeError(f"ntk: a: expected a number >= 1, got {self.a:g}")

    @override
    def factors(self, rotary_dim: int, base: float, length: int, window: int) -> Float[Tensor, " half"]:
        # A head of one frequency has no exponent D/(D-2); as a limit its only frequency is the highest, factor 1.
        exponent = rotary_dim / (rotary_dim - 2) if rotary_dim > 2 else 0.0
        return _base_change(rotary_dim, self.a**exponent)


@dataclass(frozen=True)
class DynamicNTK(Frequencies):
    """Dynamic NTK: base * (a*T/M - (a - 1))^(D/(D-2)) once T > M (paper Sec. 2, table in App. B).

    T is the length of the whole input, so every position of one pass shares the base; in decoding T grows, and the
    cache, which holds keys without position, follows.
    """

    a: float = 1.0
    name: ClassVar[str] = "dynamic-ntk"

    def __post_init__(self) -> None:
        if not self.a >= 0:
            raise ProbeError(f"dynamic-ntk: a: expected a number >= 0, got {self.a:g}")

    @override
    def factors(self, rotary_dim: int, base: float, length: int, window: int) -> Float[Tensor, " half"]:
        """1 up to the window."""
        import torch

        if length <= window or rotary_dim <= 2:
            return torch.ones(rotary_dim // 2, dtype=torch.float64)
        growth = self.a * length / window - (self.a - 1)
        return _base_change(rotary_dim, growth ** (rotary_dim / (rotary_dim - 2)))


@dataclass(frozen=True)
class YaRN(Frequencies):
    """YaRN's frequencies, "NTK by parts": fast ones as trained, slow ones divided by s, a ramp between.

    A frequency counts as fast if it turns more than `beta_fast` times within the window M, as slow if it turns less
    than `beta_slow` times (https://arxiv.org/abs/2309.00071, Sec. 3.2). Between them the paper's ramp function runs
    over the number of turns, but the authors' code, and with it every model released with YaRN and transformers, runs
    over the index of the frequency, between the floor of one bound and the ceiling of the other. We do as the models
    were trained. `s` is fixed, or follows max(1, T/M) where it is 0 (the paper's "dynamic scaling", Sec. 3.3).
    """

    s: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    name: ClassVar[str] = "yarn"

    def __post_init__(self) -> None:
        check_stretch(self.name, self.s)
        if not self.beta_fast > self.beta_slow > 0:
            got = f"{self.beta_fast:g} and {self.beta_slow:g}"
            raise ProbeError(f"yarn: expected beta_fast > beta_slow > 0, got {got}")

    @override
    def factors(self, rotary_dim: int, base: float, length: int, window: int) -> Float[Tensor, " half"]:
        """From 1 at fast frequencies to 1/s at slow ones."""
        import torch

        def index(turns: float) -> float:
            """The (fractional) index of the frequency that turns so often within the window."""
            return rotary_dim * math.log(window / (2 * math.pi * turns)) / (2 * math.log(base))

        low = max(math.floor(index(self.beta_fast)), 0)
        high = min(math.ceil(index(self.beta_slow)), rotary_dim - 1)
        ramp = (torch.arange(rotary_dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)
        slow = ramp.clamp(0, 1)
        return 1 - slow + slow / stretch(self.s, length, window)
