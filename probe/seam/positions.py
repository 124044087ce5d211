"""How positions enter the scores of a layer, and what a scheme makes of that: RoPE, ALiBi, or not at all."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from typing_extensions import override

from probe.attention.encoding import Alibi, Encoding
from probe.attention.rotary import Rotary
from probe.errors import ProbeError
from probe.schemes.frequencies import EVERYWHERE, Unrotated
from probe.schemes.scheme import Scheme


class PositionEncoding(ABC):
    """How positions entered a layer as it was trained. One object per kind of layer: encodings are kept by it."""

    name: ClassVar[str]

    @abstractmethod
    def encoding(self, scheme: Scheme, length: int) -> Encoding:
        """The layer's encoding at a scheme's frequencies, for an input of `length` tokens."""


@dataclass(frozen=True, eq=False)
class Rope(PositionEncoding):
    """A rotary: inverse frequencies (on the CPU, where plans are made), the amplitude of cos and sin, the RoPE base,
    and the precision of angles.

    `at` gives the inverse frequencies for a length in tokens, where the model's own follow it (`follows`).
    """

    inv_freq: Float[Tensor, " half"]
    amplitude: float
    base: float
    angle_dtype: torch.dtype
    at: Callable[[int], Tensor] | None = None
    interleaved: bool = False
    name: ClassVar[str] = "RoPE"

    @override
    def encoding(self, scheme: Scheme, length: int) -> Rotary:
        """The model's own frequencies times the scheme's factors."""
        factors = scheme.frequencies.factors(2 * len(self.inv_freq), self.base, length, scheme.window)
        inv_freq = self.inv_freq if self.at is None else self.at(length)
        if not bool((factors == 1).all()):
            inv_freq = inv_freq.double() * factors
        return Rotary(inv_freq, self.amplitude, self.angle_dtype, self.interleaved, scheme.frequencies.apart())


FOLLOWING = ("dynamic", "longrope")
"""Kinds of rotary whose frequencies depend on the length of the input."""


def follows(config: Any, device: torch.device) -> Callable[[int], Tensor] | None:
    """The inverse frequencies by length of a rotary that follows it, or None for one that does not. They are computed
    on the device.

    transformers' rotary module keeps those of an earlier, longer input, so what it holds is not asked: they are
    computed afresh for each length, by the same function.
    """
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in FOLLOWING:
        return None

    @lru_cache(maxsize=8)
    def at(length: int) -> Tensor:
        inv_freq: Tensor = ROPE_INIT_FUNCTIONS[kind](config, device, seq_len=torch.tensor(length, device=device))[0]
        return inv_freq.cpu()

    return at


@dataclass(frozen=True, eq=False)
class Bias(PositionEncoding):
    """ALiBi: a slope per head, in scaled scores."""

    slopes: Float[Tensor, " heads"]
    name: ClassVar[str] = "ALiBi"

    @override
    def encoding(self, scheme: Scheme, length: int) -> Alibi:
        """The slopes, or none at all under `nope`."""
        return Alibi(torch.zeros_like(self.slopes) if isinstance(scheme.frequencies, Unrotated) else self.slopes)


@dataclass(frozen=True, eq=False)
class Nowhere(PositionEncoding):
    """No position in the scores (NoPE): only the order that the causal mask makes."""

    name: ClassVar[str] = "none"

    @override
    def encoding(self, scheme: Scheme, length: int) -> Rotary:
        """A rotary of no dimensions."""
        return Rotary(torch.zeros(0))


def check_fits(scheme: Scheme, layers: Iterable[PositionEncoding], model_type: str) -> None:
    """Refuse RoPE frequencies where nothing rotates; `nope`, which takes positions away, fits everything.

    Raises:
        ProbeError: the scheme changes frequencies, and no layer has any.
    """
    found = dict.fromkeys(positions.name for positions in layers)
    if Rope.name in found or type(scheme.frequencies) in EVERYWHERE:
        return
    how = f"positions enter as {Bias.name}" if Bias.name in found else "no positions enter its scores"
    raise ProbeError(
        f"scheme {scheme.spec}: it changes RoPE frequencies ({scheme.frequencies.name}), and this {model_type} model "
        f"has no rotary frequencies ({how}); schemes fit that choose a weave, a visibility or a scale: origin, rerope, "
        "stair, self-extend, streaming-llm, ..., and nope"
    )


def geometric_slopes(heads: int) -> Float[Tensor, " heads"]:
    """ALiBi's slopes as its authors define them: 2^(-8k/n) for the n heads, k = 1..n, n a power of two.

    Otherwise those of the power of two below, then every other one of the power of two above
    (https://arxiv.org/abs/2108.12409, Sec. 3 and the authors' code). float32, as Bloom and Falcon compute them.
    """

    def powers(count: int, exponents: Tensor) -> Tensor:
        return torch.tensor(2 ** (-8 / count), dtype=torch.float32) ** exponents

    whole = 2 ** math.floor(math.log2(heads))
    between = 2 * torch.arange(heads - whole) + 1
    return torch.cat([powers(whole, torch.arange(1, whole + 1)), powers(2 * whole, between)])


def mpt_slopes(heads: int, bias_max: float) -> Float[Tensor, " heads"]:
    """MPT's slopes: 2^(-bias_max*k/n) for k = 1..n, n the power of two at or above the number of heads, float32.

    Of more than are needed, those with even k come first (https://github.com/mosaicml/llm-foundry, `gen_slopes`).
    """
    count = 2 ** math.ceil(math.log2(heads))
    slopes = torch.pow(2, torch.arange(1, count + 1).float() * (bias_max / count)).reciprocal()
    if count == heads:
        return slopes
    return torch.cat([slopes[1::2], slopes[::2]])[:heads]


def falcon_slopes(heads: int, head_dim: int) -> Float[Tensor, " heads"]:
    """Falcon's slopes in scaled scores: rounded to bfloat16, and divided by sqrt(head_dim), since Falcon scales q.k +
    bias.
    """
    return geometric_slopes(heads).bfloat16().double() / math.sqrt(head_dim)
