"""A scheme: the four choices together, at a trained window M."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from html import escape
from typing import ClassVar

from jaxtyping import Float, Real
from typing_extensions import override

from constructions.weave import Leaky, Linear, Tensor, Weave
from probe.errors import FieldError
from probe.schemes.frequencies import Frequencies, check_stretch, stretch
from probe.schemes.visibility import Visibility

ORIGIN = "origin"
"""The scheme that changes nothing: the model as trained, on which every threshold is calibrated."""

Value = float | str
"""Of a parameter: a number, or one of a few names."""


@dataclass(frozen=True)
class Scale:
    """The fourth choice: a factor on the queries. None here."""

    name: ClassVar[str] = "none"

    def factors(self, t: Real[Tensor, " queries"], length: int, window: int) -> Float[Tensor, " queries"] | None:
        """Factor of each query t in an input of `length` tokens, float64, or None for 1 everywhere."""
        return None


@dataclass(frozen=True)
class LogN(Scale):
    """Log-n: queries times max(1, ln(t + 1)/ln M), for 0-based t (https://kexue.fm/archives/8823)."""

    name: ClassVar[str] = "logn"

    @override
    def factors(self, t: Real[Tensor, " queries"], length: int, window: int) -> Float[Tensor, " queries"] | None:
        """1 inside the window."""
        return ((t.double() + 1).log() / math.log(window)).clamp(min=1.0)


@dataclass(frozen=True)
class MScale(Scale):
    """YaRN's temperature: logits times (0.1 ln s + 1)^2 (https://arxiv.org/abs/2309.00071, Sec. 3.4).

    `s` is fixed, or follows max(1, T/M) where it is 0. The paper tempers the whole logit; transformers scales cos and
    sin, which is the same, except that a partial rotary leaves its unrotated dimensions untempered. We follow the
    paper.
    """

    s: float = 0.0
    name: ClassVar[str] = "mscale"

    def __post_init__(self) -> None:
        check_stretch(self.name, self.s)

    @override
    def factors(self, t: Real[Tensor, " queries"], length: int, window: int) -> Float[Tensor, " queries"] | None:
        """The same for every query."""
        import torch

        mscale = 0.1 * math.log(stretch(self.s, length, window)) + 1
        return None if mscale == 1 else torch.full(t.shape, mscale**2, dtype=torch.float64)


@dataclass(frozen=True)
class Product(Scale):
    """Two scales, multiplied."""

    first: Scale
    second: Scale
    name: ClassVar[str] = "product"

    @override
    def factors(self, t: Real[Tensor, " queries"], length: int, window: int) -> Float[Tensor, " queries"] | None:
        first, second = (part.factors(t, length, window) for part in (self.first, self.second))
        if first is None or second is None:
            return second if first is None else first
        return first * second


@dataclass(frozen=True)
class Extent:
    """What parts of a scheme may depend on, besides positions.

    Attributes:
        length: tokens T so far, generated ones included; those still to come of the prompt too.
        prompt: how many of them are the prompt, whose end some schemes treat differently; decoding leaves it alone.
        window: trained window M.
    """

    length: int
    prompt: int
    window: int


WeaveAt = Callable[[Extent], Weave]
"""A weave whose parameters depend on the input."""
VisibilityAt = Callable[[Extent], Visibility]
"""A visibility that depends on the input."""


def published(value: int) -> Callable[[int], int]:
    """A default published for M >= 2048, in proportion (at least 1) below."""
    return lambda window: value if window >= 2048 else max(1, value * window // 2048)


def dual_chunk_sizes(window: int) -> tuple[int, int]:
    """Dual Chunk Attention's tokens in a chunk and largest position: 3/4 - 1/16 of the window, and 3/4."""
    largest = window * 3 // 4
    return max(1, largest - window // 16), max(1, largest)


def leaky_to_length(w: int) -> WeaveAt:
    """Leaky ReRoPE with 1/k = (M - w)/(T - w), so that the farthest key sits at M (paper Sec. 2)."""

    def at(extent: Extent) -> Weave:
        return Leaky(w, max(1.0, (extent.length - w) / max(1, extent.window - w)))

    return at


def _in_words(part: Weave | Visibility | WeaveAt | VisibilityAt) -> str:
    """A weave or a visibility with its parameters; one that follows the input is said to."""
    if not isinstance(part, Weave | Visibility):
        return "follows the input"
    given = ", ".join(f"{one.name}={getattr(part, one.name)}" for one in fields(part))
    return f"{part.name}({given})" if given else part.name


@dataclass(frozen=True)
class Scheme:
    """Frequencies, weave, visibility and scale for a model of window M.

    `spec` is the text that makes this scheme again; `parameters` are the preset's, after overrides.
    """

    spec: str
    window: int
    frequencies: Frequencies = Frequencies()
    weave: Weave | WeaveAt = Linear()
    visibility: Visibility | VisibilityAt = Visibility()
    scale: Scale = Scale()
    parameters: dict[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a name that cannot name rows and arrays.

        Raises:
            FieldError: it is empty, or has a slash or something that is not printed.
        """
        if not self.spec.strip() or "/" in self.spec or not self.spec.isprintable():
            raise FieldError("spec", "a printable name without a slash", repr(self.spec))

    def __str__(self) -> str:
        return self.spec

    def choices(self) -> dict[str, str]:
        """The four choices in words."""
        return {
            "frequencies": self.frequencies.name,
            "weave": _in_words(self.weave),
            "visibility": _in_words(self.visibility),
            "scale": self.scale.name,
        }

    def _repr_html_(self) -> str:
        rows = self.choices() | {name: f"{value}" for name, value in self.parameters.items()}
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(said)}</td></tr>" for name, said in rows.items())
        return f"<p><b>{escape(self.spec)}</b>, window M = {self.window}</p><table>{cells}</table>"

    def weave_at(self, length: int, prompt: int | None = None) -> Weave:
        """The weave for an input of `length` tokens, of which the first `prompt` (default: all) are the prompt.

        A prompt may be longer than the input: while one is fed in parts, parameters are those of the whole.
        """
        return self.weave if isinstance(self.weave, Weave) else self.weave(self._extent(length, prompt))

    def visibility_at(self, length: int, prompt: int | None = None) -> Visibility:
        """The visibility for an input, as `weave_at`."""
        if isinstance(self.visibility, Visibility):
            return self.visibility
        return self.visibility(self._extent(length, prompt))

    def _extent(self, length: int, prompt: int | None) -> Extent:
        prompt = length if prompt is None else prompt
        return Extent(max(length, prompt), prompt, self.window)

    def borders_at(self, prompt: int) -> list[int]:
        """Chunk borders of a prompt: first positions of all its blocks but the first one; empty where nothing is in
        blocks.
        """
        return self.visibility_at(prompt).borders(prompt)
