"""A scheme on an input whose middle is left out: tokens lie where they would in a long input, most of which is missing.

It tells what the distances of a long input do to a model at the cost of a short pass: token j of the short input is
token j of the long one before the cut, and j + gap behind it. Whatever follows the length of the input or the place of
a token (frequencies, weave, visibility, temperature) is as it would be there; only the keys in between are missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Real
from typing_extensions import override

from constructions.weave import Clamp, Linear, Part, Positions, Tensor, Weave
from probe.errors import FieldError
from probe.schemes.frequencies import EVERYWHERE, Apart, Frequencies
from probe.schemes.scheme import Extent, Scale, Scheme
from probe.schemes.visibility import Interval, Visibility


@dataclass(frozen=True)
class Cut:
    """Where the middle of an input is left out: `gap` tokens before token `at`."""

    at: int
    gap: int

    def there(self, j: Positions) -> Positions:
        """Where token j of the short input lies in the long one."""
        return j + self.gap * (j >= self.at)

    def before(self, x: Tensor) -> Tensor:
        """How many tokens of the short input lie before place x of the long one."""
        return torch.where(x <= self.at, x, (x - self.gap).clamp(min=self.at))


@dataclass(frozen=True)
class CutOut(Weave):
    """A weave of the long input, on the tokens that are left of it."""

    inner: Weave
    cut: Cut
    name: ClassVar[str] = "cut-out"
    by_distance: ClassVar[bool] = False
    subadditive: ClassVar[bool] = False

    @override
    def __call__(self, t: Positions, i: Positions) -> Positions:
        return self.inner(self.cut.there(t), self.cut.there(i))

    @override
    def parameters(self) -> dict[str, float]:
        """The inner weave's, and the cut."""
        return {"at": self.cut.at, "gap": self.cut.gap, **self.inner.parameters()}

    @override
    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """The inner weave's over the long input, less the keys that are missing."""
        there = self.cut.there(t)
        whole = torch.arange(int(self.cut.there(i).max()) + 1)
        parts = self.inner.parts(there, whole)
        mine = self.cut.there(i)
        return [
            Part(
                self.cut.before(part.queries), part.q_pos, part.k_pos[mine],
                self.cut.before(part.lo), self.cut.before(part.hi),
            )
            for part in parts
        ]  # fmt: skip


@dataclass(frozen=True)
class _Seen(Visibility):
    """A visibility of the long input, on the tokens that are left of it."""

    inner: Visibility
    cut: Cut
    name: ClassVar[str] = "cut-out"

    @override
    def sees(self, t: Positions, i: Positions) -> Any:
        return self.inner.sees(self.cut.there(t), self.cut.there(i))

    @override
    def intervals(self, t: Int[Tensor, " queries"]) -> list[Interval]:
        """The inner one's, less the keys that are missing."""
        return [(self.cut.before(lo), self.cut.before(hi)) for lo, hi in self.inner.intervals(self.cut.there(t))]

    @override
    def borders(self, length: int) -> list[int]:
        """None: the input is short enough for one pass."""
        return []


@dataclass(frozen=True)
class Stretched(Frequencies):
    """Frequencies of the long input."""

    inner: Frequencies
    gap: int
    name: ClassVar[str] = "cut-out"

    @override
    def factors(self, rotary_dim: int, base: float, length: int, window: int) -> Float[Tensor, " half"]:
        return self.inner.factors(rotary_dim, base, length + self.gap, window)


@dataclass(frozen=True)
class OnlySome(Frequencies):
    """Frequencies of the long input of which only some see the gap; the others see the tokens as they stand together.

    Attributes:
        inner: the long input's.
        cut: where the gap is.
        moved: for each frequency, the fastest first, whether it sees it.
    """

    inner: Frequencies
    cut: Cut
    moved: tuple[bool, ...]
    name: ClassVar[str] = "cut-out of some"

    @override
    def factors(self, rotary_dim: int, base: float, length: int, window: int) -> Float[Tensor, " half"]:
        return self.inner.factors(rotary_dim, base, length, window)

    @override
    def apart(self) -> Apart:
        """The positions as they come where the gap is seen, less the gap behind it elsewhere."""

        def at(positions: Tensor) -> Tensor:
            together = positions - self.cut.gap * (positions >= self.cut.at)
            return torch.where(torch.tensor(self.moved), positions[:, None], together[:, None])

        return at


@dataclass(frozen=True)
class Tempered(Scale):
    """A temperature of the long input."""

    inner: Scale
    cut: Cut
    name: ClassVar[str] = "cut-out"

    @override
    def factors(self, t: Real[Tensor, " queries"], length: int, window: int) -> Float[Tensor, " queries"] | None:
        return self.inner.factors(self.cut.there(t), length + self.cut.gap, window)


def without_middle(scheme: Scheme, at: int, gap: int) -> Scheme:
    """The scheme for an input of a long one of which `gap` tokens before token `at` are left out.

    Args:
        scheme: on the long input.
        at: first token behind the gap.
        gap: tokens that are missing; 0 changes nothing.

    Raises:
        FieldError: no token before the gap, or less than none missing.
    """
    if at < 1:
        raise FieldError("at", "at least 1", at)
    if gap < 0:
        raise FieldError("gap", "at least 0", gap)
    cut, as_trained, plain = Cut(at, gap), scheme.frequencies, scheme.scale

    def longer(extent: Extent) -> tuple[int, int]:
        return extent.length + gap, extent.prompt + gap

    return replace(
        scheme,
        spec=f"{scheme.spec} without {gap} before {at}",
        frequencies=as_trained if type(as_trained) in EVERYWHERE else Stretched(as_trained, gap),
        weave=lambda extent: CutOut(scheme.weave_at(*longer(extent)), cut),
        visibility=lambda extent: _Seen(scheme.visibility_at(*longer(extent)), cut),
        scale=plain if type(plain) is Scale else Tempered(plain, cut),
    )


def gap_for_some(scheme: Scheme, at: int, gap: int, moved: tuple[bool, ...]) -> Scheme:
    """`without_middle`, where only some frequencies see the gap: what a single frequency's unseen angles do.

    Args:
        scheme: on the long input; its weave leaves distances as they are.
        at: first token behind the gap.
        gap: tokens that are missing.
        moved: for each frequency of the model's rotary, the fastest first, whether it sees the gap.

    Raises:
        FieldError: as `without_middle`, or a weave, which puts all frequencies of a key in one place.
    """
    weave = scheme.weave_at(max(at, 1) + gap + 1)
    if not isinstance(weave, Linear):
        expected = f"one that leaves distances as they are (origin, pi, ntk, ...), not one that weaves ({weave.name})"
        raise FieldError("schemes", expected, scheme.spec)
    whole = without_middle(scheme, at, gap)
    return replace(
        whole, spec=f"{whole.spec} for {sum(moved)} frequencies",
        frequencies=OnlySome(whole.frequencies, Cut(at, gap), moved),
    )  # fmt: skip


def largest_position(weave: Weave, length: int, visibility: Visibility | None = None) -> float:
    """The largest relative position that the last query of an input gives to a key that it sees."""
    t, i = torch.tensor(length - 1), torch.arange(length)
    sees = (visibility or Visibility()).sees(t, i)
    return float(weave(t, i)[sees].max())


def folded(scheme: Scheme, length: int) -> Scheme | None:
    """The scheme with no distance beyond the trained window, at an input of `length` tokens: what is left of a failure
    then has another cause.

    Positions as trained are clamped at M - 1, as ReRoPE's with the widest band. A weave that stays within M by itself
    (LM-Infinite's reaches M, one more than was trained) is left as it is. None for one that goes past it: there is no
    telling how it would have been folded.
    """
    weave = scheme.weave_at(length)
    if isinstance(weave, Linear):
        return replace(scheme, spec=f"{scheme.spec} folded", weave=Clamp(scheme.window - 1))
    largest = largest_position(weave, length, scheme.visibility_at(length))
    return scheme if largest <= scheme.window else None
