"""Pieces: the one form that every scheme compiles to.

A piece is a set of queries, a position for each query and each key, and a contiguous key range per query. Inside that
range the relative position *is* q_pos - k_pos, so the piece is ordinary attention over rotated queries and keys. The
pieces of a scheme are disjoint and together are exactly what the queries see; their outputs are merged by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from constructions.weave import Weave, WeaveError
from probe.errors import ProbeError
from probe.schemes.visibility import Interval, Visibility

T = TypeVar("T")

_FEW = 4
"""Pieces up to which positions are kept in float64 whatever they are."""


@dataclass(frozen=True)
class Piece:
    """Ordinary attention over a part of the (query, key) pairs.

    `queries` are positions, ascending; query queries[n] sees keys lo[n] <= i < hi[n], neither bound decreasing. Every
    key counts `times` times: the piece's log-sum-exp is that much larger.
    """

    queries: Int[Tensor, " queries"]
    q_pos: Float[Tensor, " queries"]
    k_pos: Float[Tensor, " keys"]
    lo: Int[Tensor, " queries"]
    hi: Int[Tensor, " queries"]
    times: int = 1

    def pairs(self) -> int:
        """How many (query, key) pairs it visits."""
        return int((self.hi - self.lo).clamp(min=0).sum())


@dataclass(frozen=True)
class PlanName(Generic[T]):
    """What a plan is called that is kept beside pieces: who made it, and what it depends on beside them."""

    kind: type[T]
    depends_on: tuple[Hashable, ...]


class Compiled(list[Piece]):
    """The pieces of one compilation; whoever runs them keeps what it worked out beside them, for the next layer."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        super().__init__(pieces)
        self._plans: dict[PlanName[Any], Any] = {}

    def planned(self, name: PlanName[T], make: Callable[[], list[T]]) -> list[T]:
        """The plan of that name, which is made at its first use."""
        if name not in self._plans:
            self._plans[name] = make()
        found: list[T] = self._plans[name]
        return found


def pieces_of(weave: Weave, t: Int[Tensor, " queries"], i: Int[Tensor, " keys"]) -> list[Piece]:
    """The pieces of a weave for queries t (ascending) over all keys up to the query's own.

    Raises:
        ProbeError: a weave that says no parts.
    """
    try:
        parts = weave.parts(t, i)
    except WeaveError as error:
        raise ProbeError(str(error)) from None
    # Where pieces are few a look at their keys costs more than the memory is worth: a decoding step has one or two.
    placed = _narrow if len(parts) > _FEW else Tensor.double
    return [
        Piece(part.queries, part.q_pos.double(), placed(part.k_pos), part.lo, part.hi, part.times) for part in parts
    ]


def _narrow(positions: Tensor) -> Tensor:
    """Positions in float32 where that is exact, else in float64: there may be as many pieces as queries, and each has
    one for every key.
    """
    narrow = positions.float()
    return narrow if torch.equal(narrow.to(positions.dtype), positions) else positions.double()


def _clip(piece: Piece, interval: Interval, first: int) -> Piece:
    """The part of a piece inside a visible interval, given per query of the compilation."""
    rows = piece.queries - first
    lo = torch.maximum(piece.lo, interval[0][rows])
    return replace(piece, lo=lo, hi=torch.minimum(piece.hi, interval[1][rows]))


def _without_empty(piece: Piece) -> Piece:
    keep = piece.hi > piece.lo
    if bool(keep.all()):
        return piece
    return replace(piece, queries=piece.queries[keep], q_pos=piece.q_pos[keep], lo=piece.lo[keep], hi=piece.hi[keep])


def compile_pieces(weave: Weave, visibility: Visibility, first: int, length: int) -> Compiled:
    """The pieces for queries first..length-1 over keys 0..length-1.

    Args:
        weave: the weave function, already resolved for this length.
        visibility: which keys a query sees, resolved likewise.
        first: position of the first query; those before it are in the cache already.
        length: tokens T, cached ones included.
    """
    t, i = torch.arange(first, length), torch.arange(length)
    intervals = visibility.intervals(t)
    clipped = [_clip(piece, interval, first) for piece in pieces_of(weave, t, i) for interval in intervals]
    return Compiled(piece for piece in map(_without_empty, clipped) if len(piece.queries))
