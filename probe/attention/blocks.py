"""Scores of a compiled scheme, some queries at a time: for those who watch attention, and where no fused kernel fits.

The pieces are multiplied out one by one, by rotated queries and keys, so that scores are rounded as the fused path and
the stock model round them; memory is linear in the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.attention.dense import PLAIN, Softmax
from probe.attention.encoding import Encoding
from probe.attention.placing import placed
from probe.schemes.pieces import Compiled, Piece

BLOCK = 128
"""Queries whose scores are held at once, at most."""
MOST_SCORES = 1 << 22
"""Scores that are held at once, if that is a query's worth: of larger blocks the allocator takes every temporary anew
from the system, which costs several times what is done with it."""
RUN = 16
"""Queries at the beginning of every period, of which those are told who want a sample."""


def queries_at_once(batch: int, heads: int, keys: int) -> int:
    """How many queries' scores are held at once."""
    return max(1, min(BLOCK, MOST_SCORES // max(1, batch * heads * keys)))


def _blocks(first: int, last: int, since: int, block: int, period: int | None) -> Iterator[tuple[int, int]]:
    """(first query, one past the last) of every block that is wanted, ascending."""
    if period is None or period <= RUN:
        for start in range(max(first, since), last, block):
            yield start, min(start + block, last)
        return
    for run in range(since + max(0, first - since) // period * period, last, period):
        for start in range(max(run, first), min(run + RUN, last), block):
            yield start, min(start + block, run + RUN, last)


def piece_blocks(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    pieces: Compiled,
    encoding: Encoding,
    scaling: float,
    block: int | None = None,
    since: int = 0,
    period: int | None = None,
) -> Iterator[tuple[int, Float[Tensor, "batch heads block keys"]]]:
    """Position of the first query and the scores of `block` queries at a time; -inf where a query does not see a key.

    The queries are the last positions of the keys, whose heads groups of query heads may share; those before position
    `since` are left out, and with a period all but the first `RUN` of so many from there on.
    """
    first = key.shape[2] - query.shape[2]
    block = queries_at_once(len(query), query.shape[1], key.shape[2]) if block is None else block
    turned: dict[int, tuple[int, Tensor]] = {}
    for start, stop in _blocks(first, key.shape[2], since, block, period):
        shape = (*query.shape[:2], stop - start, key.shape[2])
        scores = torch.full(shape, float("-inf"), dtype=query.dtype, device=query.device)
        for number, piece in enumerate(pieces):
            mine = (piece.queries >= start) & (piece.queries < stop)
            if bool(mine.any()):
                if number not in turned:  # once for all blocks: a block has few queries, and as many keys as there are
                    turned[number] = _turned(piece, key, start, query.shape[1], encoding)
                _put(scores, query, turned[number], _rows(piece, mine), start, first, encoding, scaling)
            elif number in turned and int(piece.queries[-1]) < start:
                del turned[number]
        yield start, scores


def _rows(piece: Piece, mine: Tensor) -> Piece:
    return replace(piece, queries=piece.queries[mine], q_pos=piece.q_pos[mine], lo=piece.lo[mine], hi=piece.hi[mine])


def _turned(piece: Piece, key: Tensor, start: int, heads: int, encoding: Encoding) -> tuple[int, Tensor]:
    """(the first key that queries from `start` on see, keys from it on with their positions in), one per query head."""
    rows = piece.queries >= start
    low, high = int(piece.lo[rows].min()), int(piece.hi[rows].max())
    k = encoding.turned(key[:, :, low : max(low, high)], piece.k_pos[low : max(low, high)])
    return low, k.repeat_interleave(heads // key.shape[1], 1)


def _put(
    scores: Tensor, query: Tensor, turned: tuple[int, Tensor], piece: Piece, start: int, first: int,
    encoding: Encoding, scaling: float,
) -> None:  # fmt: skip
    """Write a piece's scores over the pairs that it has."""
    low, high = int(piece.lo.min()), int(piece.hi.max())
    if high <= low:
        return
    q = encoding.turned(query.index_select(2, placed(piece.queries - first, query)), piece.q_pos)
    begins, k = turned
    found = (q @ k[:, :, low - begins : high - begins].transpose(-1, -2)).mul_(scaling)
    reference = float(piece.q_pos[-1])
    bias = encoding.bias(piece.k_pos[low:high], reference, query)
    offset = encoding.offset(piece.q_pos, reference, query)
    if bias is not None and offset is not None:
        found = found + bias[:, None] + offset[:, :, None]
    i = torch.arange(low, high)
    seen = placed((i >= piece.lo[:, None]) & (i < piece.hi[:, None]), query)
    found, at = found.to(scores.dtype), piece.queries - start
    if int(at[-1] - at[0]) == len(at) - 1:  # rows that lie side by side need not be gathered
        mine = scores[:, :, int(at[0]) : int(at[-1]) + 1, low:high]
        mine.copy_(torch.where(seen, found, mine))
        return
    rows = placed(at, query)
    scores[:, :, rows, low:high] = torch.where(seen, found, scores[:, :, rows, low:high])


def attend_piece_blocks(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    pieces: Compiled,
    encoding: Encoding,
    scaling: float,
    softmax: Softmax = PLAIN,
) -> Float[Tensor, "batch heads queries dim"]:
    """Attention by `piece_blocks`, for scores that something bends before the softmax."""
    value = value.repeat_interleave(query.shape[1] // key.shape[1], 1)
    blocks = piece_blocks(query, key, pieces, encoding, scaling)
    return torch.cat([softmax.weights(softmax.capped(scores)).to(value.dtype) @ value for _, scores in blocks], dim=2)
