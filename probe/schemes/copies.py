"""A scheme on an input that stands for one with more keys: the first tokens count several times.

It tells what the number of keys does to a model at the cost of a short pass, apart from any distance. Keys that are
visited c times are exactly c equal keys at one position: their weight in every softmax is c-fold. The very first key
counts once: a long input has one beginning, by which models without positions tell how far they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from typing_extensions import override

from constructions.weave import Part, Positions, Tensor, Weave, WeaveError
from probe.errors import FieldError
from probe.schemes.cut_out import Cut, Stretched, Tempered
from probe.schemes.frequencies import EVERYWHERE
from probe.schemes.scheme import Extent, Scale, Scheme
from probe.schemes.visibility import Visibility


@dataclass(frozen=True)
class Copied(Weave):
    """A weave under which the keys before `at`, the first one excepted, are there `copies` times.

    It runs as parts only: no matrix of relative positions has a key several times.
    """

    inner: Weave
    at: int
    copies: int
    name: ClassVar[str] = "copied"
    by_distance: ClassVar[bool] = False
    subadditive: ClassVar[bool] = False

    @override
    def __call__(self, t: Positions, i: Positions) -> Positions:
        """Nothing.

        Raises:
            WeaveError: always.
        """
        raise WeaveError("copied: expected backend pieces, got one that asks for a position of every pair")

    @override
    def parameters(self) -> dict[str, float]:
        """The inner weave's, and the copies."""
        return {"at": self.at, "copies": self.copies, **self.inner.parameters()}

    @override
    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """The inner weave's behind `at`, and those before it as often as there are copies."""
        found = []
        for part in self.inner.parts(t, i):
            found.append(replace(part, hi=part.hi.clamp(max=1)))
            found.append(replace(part, lo=part.lo.clamp(min=self.at)))
            found.append(replace(part, lo=part.lo.clamp(min=1), hi=part.hi.clamp(max=self.at), times=self.copies))
        return found


def with_copies(scheme: Scheme, at: int, copies: int) -> Scheme | None:
    """The scheme with the keys 1 to `at` - 1 there `copies` times, all at their own positions.

    What follows the length (frequencies, weave, temperature) is as with so many keys. None for a scheme under which a
    query does not see all that came before it: the number of its keys does not grow like that.

    Raises:
        FieldError: no token between the first and `at`, or no copy.
    """
    if at < 2 or copies < 1:
        raise FieldError("copies", "at least 1, of at least 2 tokens", f"{copies} of {at}")
    if type(scheme.visibility) is not Visibility:
        return None
    as_trained, plain = scheme.frequencies, scheme.scale
    more = Cut(at, (at - 1) * (copies - 1))

    def of(extent: Extent) -> Weave:
        return Copied(scheme.weave_at(extent.length + more.gap, extent.prompt + more.gap), at, copies)

    return replace(
        scheme,
        spec=f"{scheme.spec} with {copies} of {at}",
        frequencies=as_trained if type(as_trained) in EVERYWHERE else Stretched(as_trained, more.gap),
        weave=of,
        scale=plain if type(plain) is Scale else Tempered(plain, more),
    )
