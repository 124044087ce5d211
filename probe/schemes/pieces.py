"""Pieces: the one form that every scheme compiles to.

A piece is a set of queries, a position for each query and each key, and a contiguous key range per query. Inside that range the
relative position *is* q_pos - k_pos, so the piece is ordinary attention over rotated queries and keys. The pieces of a
scheme are disjoint and together are exactly what the queries see; their outputs are merged by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from constructions.weave import (
    Anchored,
    CacheIndex,
    Chunked,
    Clamp,
    DualChunk,
    Folded,
    Grouped,
    Leaky,
    Linear,
    Stair,
    Switched,
    Weave,
)
from probe.errors import ProbeError
from probe.schemes.visibility import Interval, Visibility


@dataclass(frozen=True)
class Piece:
    """Ordinary attention over a part of the (query, key) pairs.

    `queries` are positions, ascending; query queries[n] sees keys lo[n] <= i < hi[n], neither bound decreasing.
    """

    queries: Int[Tensor, " queries"]
    q_pos: Float[Tensor, " queries"]
    k_pos: Float[Tensor, " keys"]
    lo: Int[Tensor, " queries"]
    hi: Int[Tensor, " queries"]

    def pairs(self) -> int:
        """How many (query, key) pairs it visits."""
        return int((self.hi - self.lo).clamp(min=0).sum())


class Compiled(list[Piece]):
    """The pieces of one compilation; whoever runs them may keep what it worked out beside them, for the next layer."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        super().__init__(pieces)
        self.plans: dict[Hashable, Any] = {}


def _piece(t: Tensor, q_pos: Tensor, k_pos: Tensor, lo: Tensor, hi: Tensor) -> Piece:
    return Piece(t, q_pos.double(), k_pos.double(), lo, hi)


def _linear(weave: Weave, t: Tensor, i: Tensor) -> list[Piece]:
    return [_piece(t, t, i, torch.zeros_like(t), t + 1)]


def _band(t: Tensor, i: Tensor, width: int) -> Piece:
    """The exact part: the `width` nearest keys, the query's own included."""
    return _piece(t, t, i, (t - width + 1).clamp(min=0), t + 1)


def _far(t: Tensor, q_pos: Tensor, k_pos: Tensor, width: int) -> Piece:
    """Everything farther back than the band of `width` keys."""
    return _piece(t, q_pos, k_pos, torch.zeros_like(t), (t - width + 1).clamp(min=0))


def _clamp(weave: Clamp, t: Tensor, i: Tensor) -> list[Piece]:
    width = weave.N + 1
    return [_band(t, i, width), _far(t, torch.full_like(t, weave.N), torch.zeros_like(i), width)]


def _leaky(weave: Leaky, t: Tensor, i: Tensor) -> list[Piece]:
    width = weave.w + 1
    return [_band(t, i, width), _far(t, weave.w + (t - weave.w).double() / weave.k, i.double() / weave.k, width)]


def _grouped(weave: Grouped, t: Tensor, i: Tensor) -> list[Piece]:
    shift = weave.W - weave.W // weave.G
    return [_band(t, i, weave.W), _far(t, t // weave.G + shift, i // weave.G, weave.W)]


def _stair(weave: Stair, t: Tensor, i: Tensor) -> list[Piece]:
    """The far part splits by the residue of t - N modulo E.

    Write t - N = a*E + r. Then N + ceil((t - N - i)/E) = (N + a) - floor((i - r)/E): for the queries of one residue the
    keys have one position each, so no pair is visited twice.
    """
    width = weave.N + 1
    pieces = [_band(t, i, width)]
    for residue in range(weave.E):
        mine = t[(t > weave.N) & ((t - weave.N) % weave.E == residue)]
        if len(mine):
            steps = weave.N + (mine - weave.N) // weave.E
            pieces.append(_far(mine, steps, (i - residue) // weave.E, width))
    return pieces


def _dual_chunk(weave: DualChunk, t: Tensor, i: Tensor) -> list[Piece]:
    """The query's own chunk, the one before it, and the rest."""
    within, own, k_pos = t % weave.s, t // weave.s * weave.s, i % weave.s
    previous = (own - weave.s).clamp(min=0)
    return [
        _piece(t, within, k_pos, own, t + 1),
        _piece(t, (within + weave.s).clamp(max=weave.c), k_pos, previous, own),
        _piece(t, torch.full_like(t, weave.c), k_pos, torch.zeros_like(t), previous),
    ]


def _cache_index(weave: CacheIndex, t: Tensor, i: Tensor) -> list[Piece]:
    """Sinks, seen from the end of the cache, and the rest."""
    last = t.clamp(max=weave.x + weave.y - 1)
    after_sinks = torch.full_like(t, weave.x)
    return [
        _piece(t, last, i, torch.zeros_like(t), torch.minimum(t + 1, after_sinks)),
        _piece(t, t, i, after_sinks, t + 1),
    ]


def _switched(weave: Switched, t: Tensor, i: Tensor) -> list[Piece]:
    """Each weave's pieces, for its own queries."""
    early = t < weave.start
    parts = ((weave.before, t[early]), (weave.after, t[~early]))
    return [piece for part, mine in parts if len(mine) for piece in split(part, mine, i)]


def _placed(weave: Chunked | Folded, t: Tensor, i: Tensor) -> list[Piece]:
    """Every token has one position: ordinary attention."""
    return [_piece(t, weave.positions(t), weave.positions(i), torch.zeros_like(t), t + 1)]


def _anchored(weave: Anchored, t: Tensor, i: Tensor) -> list[Piece]:
    """One position per token up to the last one, then the inner weave."""
    early, inner = t[t <= weave.end], weave.inner
    q_pos, k_pos = (-inner(torch.full_like(x, weave.end), x.clamp(max=weave.end)) for x in (early, i))
    pieces = [_piece(early, q_pos, k_pos, torch.zeros_like(early), early + 1)] if len(early) else []
    return pieces + (split(inner, t[t > weave.end], i) if len(early) < len(t) else [])


SPLITS: dict[type[Weave], Callable[..., list[Piece]]] = {
    Linear: _linear, Clamp: _clamp, Leaky: _leaky, Stair: _stair, Grouped: _grouped,
    DualChunk: _dual_chunk, CacheIndex: _cache_index, Switched: _switched,
    Chunked: _placed, Folded: _placed, Anchored: _anchored,
}  # fmt: skip
"""How each weave falls into pieces, over all keys up to the query's own."""


def split(weave: Weave, t: Int[Tensor, " queries"], i: Int[Tensor, " keys"]) -> list[Piece]:
    """The pieces of a weave for queries t (ascending) over all keys up to the query's own.

    Raises:
        ProbeError: a weave that is not in the table.
    """
    if type(weave) not in SPLITS:
        raise ProbeError(
            f"weave {weave.name}: expected one with a row in SPLITS, got {type(weave).__name__}; backend dense runs any"
        )
    return SPLITS[type(weave)](weave, t, i)


def _clip(piece: Piece, interval: Interval, first: int) -> Piece:
    """The part of a piece inside a visible interval, given per query of the compilation."""
    rows = piece.queries - first
    lo = torch.maximum(piece.lo, interval[0][rows])
    return Piece(piece.queries, piece.q_pos, piece.k_pos, lo, torch.minimum(piece.hi, interval[1][rows]))


def _without_empty(piece: Piece) -> Piece:
    keep = piece.hi > piece.lo
    if bool(keep.all()):
        return piece
    return Piece(piece.queries[keep], piece.q_pos[keep], piece.k_pos, piece.lo[keep], piece.hi[keep])


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
    clipped = [_clip(piece, interval, first) for piece in split(weave, t, i) for interval in intervals]
    return Compiled(piece for piece in map(_without_empty, clipped) if len(piece.queries))
