"""The third choice of a scheme: which keys a query sees.

Every kind says it twice: `sees`, the definition, which the dense reference uses, and `intervals`, the key ranges that
pieces are cut to. They share nothing, so that one can be tested against the other. Both take torch tensors and NumPy
arrays alike: nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Int
from typing_extensions import override

from constructions.weave import Positions, Tensor
from probe.errors import ProbeError

Interval = tuple[Int[Tensor, " queries"], Int[Tensor, " queries"]]
"""Half-open key range [lo, hi) of every query; empty where hi <= lo."""


@dataclass(frozen=True)
class Visibility:
    """Causal: query t sees keys 0..t."""

    name: ClassVar[str] = "causal"

    def sees(self, t: Positions, i: Positions) -> Any:
        """Whether query t sees key i: a bool, or an array of them, elementwise and with broadcasting."""
        return i <= t

    def intervals(self, t: Int[Tensor, " queries"]) -> list[Interval]:
        """Disjoint key intervals whose union is what each query sees.

        Among the queries for which an interval is not empty, its bounds do not decrease with t.
        """
        return [(0 * t, t + 1)]

    def borders(self, length: int) -> list[int]:
        """First positions, below `length`, of the blocks that do not depend on each other; none here."""
        return []


def _at_least(kind: str, name: str, value: int, least: int) -> None:
    if value < least:
        raise ProbeError(f"{kind}: {name}: expected an integer >= {least}, got {value}")


@dataclass(frozen=True)
class Lambda(Visibility):
    """Sinks and recent keys: query t sees i < x, and t - i < y (its own key is one of the y)."""

    x: int
    y: int
    name: ClassVar[str] = "lambda"

    def __post_init__(self) -> None:
        _at_least("lambda visibility", "sinks", self.x, 0)
        _at_least("lambda visibility", "recent keys", self.y, 1)

    @override
    def sees(self, t: Positions, i: Positions) -> Any:
        return (i <= t) & ((i < self.x) | (t - i < self.y))

    @override
    def intervals(self, t: Int[Tensor, " queries"]) -> list[Interval]:
        """The sinks that are not recent, then what is recent."""
        recent = (t - self.y + 1).clip(min=0)
        return [(0 * t, recent.clip(max=self.x)), (recent, t + 1)]


@dataclass(frozen=True)
class Blocks(Visibility):
    """An anchor of `anchor` tokens, then blocks of `block`: a query sees the anchor and its own block, causally."""

    anchor: int
    block: int
    name: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        _at_least("block visibility", "anchor", self.anchor, 1)
        _at_least("block visibility", "block", self.block, 1)

    @override
    def sees(self, t: Positions, i: Positions) -> Any:
        same = (t - self.anchor) // self.block == (i - self.anchor) // self.block
        return (i <= t) & ((i < self.anchor) | same)

    @override
    def intervals(self, t: Int[Tensor, " queries"]) -> list[Interval]:
        """The anchor, then the query's own block."""
        own = self.anchor + (t - self.anchor).clip(min=0) // self.block * self.block
        own = own * (t >= self.anchor)
        return [(0 * t, own.clip(max=self.anchor)), (own, t + 1)]

    @override
    def borders(self, length: int) -> list[int]:
        """The blocks after the anchor."""
        return list(range(self.anchor, length, self.block))


@dataclass(frozen=True)
class Bottom(Visibility):
    """Bottom attention: queries from position `start` on see every key, those before it what `base` shows them."""

    base: Visibility
    start: int
    name: ClassVar[str] = "bottom"

    @override
    def sees(self, t: Positions, i: Positions) -> Any:
        return (i <= t) & ((t >= self.start) | self.base.sees(t, i))

    @override
    def intervals(self, t: Int[Tensor, " queries"]) -> list[Interval]:
        """The base's, emptied from `start` on, and one with every key."""
        late = t >= self.start
        early = [(lo, hi + (lo - hi) * late) for lo, hi in self.base.intervals(t)]
        return [*early, (0 * t, (t + 1) * late)]

    @override
    def borders(self, length: int) -> list[int]:
        """The base's before `start`, and `start` as the last."""
        base = [border for border in self.base.borders(length) if border < self.start]
        return [*base, self.start] if base and self.start < length else base
