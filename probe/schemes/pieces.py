"""Pieces: the one form that every scheme compiles to.

A piece is a set of queries, a position for each query and each key, and a contiguous key range per query. Inside that range the
relative position *is* q_pos - k_pos, so the piece is ordinary attention over rotated queries and keys. The pieces of a
scheme are disjoint and together are exactly what the queries see; their outputs are merged by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from constructions.weave import Clamp, Grouped, Leaky, Linear, Stair, Weave
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


SPLITS: dict[type[Weave], Callable[..., list[Piece]]] = {
    Linear: _linear, Clamp: _clamp, Leaky: _leaky, Stair: _stair, Grouped: _grouped,
}  # fmt: skip
"""How each weave falls into pieces, over all keys up to the query's own."""


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


def compile_pieces(weave: Weave, visibility: Visibility, first: int, length: int) -> list[Piece]:
    """The pieces for queries first..length-1 over keys 0..length-1.

    Args:
        weave: the weave function, already resolved for this length.
        visibility: which keys a query sees.
        first: position of the first query; those before it are in the cache already.
        length: tokens T, cached ones included.
    """
    t, i = torch.arange(first, length), torch.arange(length)
    split = SPLITS[type(weave)](weave, t, i)
    clipped = [_clip(piece, interval, first) for piece in split for interval in visibility.intervals(t)]
    return [piece for piece in map(_without_empty, clipped) if len(piece.queries)]
