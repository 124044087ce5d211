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
"""Queries whose scores are held at once."""


def piece_blocks(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    pieces: Compiled,
    encoding: Encoding,
    scaling: float,
    block: int = BLOCK,
    since: int = 0,
) -> Iterator[tuple[int, Float[Tensor, "batch heads block keys"]]]:
    """Position of the first query and the scores of `block` queries at a time; -inf where a query does not see a key.

    The queries are the last positions of the keys, whose heads groups of query heads may share; those before position
    `since` are left out.
    """
    first = key.shape[2] - query.shape[2]
    for start in range(max(first, since), key.shape[2], block):
        stop = min(start + block, key.shape[2])
        shape = (*query.shape[:2], stop - start, key.shape[2])
        scores = torch.full(shape, float("-inf"), dtype=query.dtype, device=query.device)
        for piece in pieces:
            mine = (piece.queries >= start) & (piece.queries < stop)
            if bool(mine.any()):
                _put(scores, query, key, _rows(piece, mine), start, first, encoding, scaling)
        yield start, scores


def _rows(piece: Piece, mine: Tensor) -> Piece:
    return replace(piece, queries=piece.queries[mine], q_pos=piece.q_pos[mine], lo=piece.lo[mine], hi=piece.hi[mine])


def _put(
    scores: Tensor, query: Tensor, key: Tensor, piece: Piece, start: int, first: int, encoding: Encoding, scaling: float
) -> None:
    """Write a piece's scores over the pairs that it has."""
    low, high = int(piece.lo.min()), int(piece.hi.max())
    if high <= low:
        return
    q = encoding.turned(query.index_select(2, placed(piece.queries - first, query)), piece.q_pos)
    k = encoding.turned(key[:, :, low:high], piece.k_pos[low:high])
    found = q @ k.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(-1, -2) * scaling
    reference = float(piece.q_pos[-1])
    bias = encoding.bias(piece.k_pos[low:high], reference, query)
    offset = encoding.offset(piece.q_pos, reference, query)
    if bias is not None and offset is not None:
        found = found + bias[:, None] + offset[:, :, None]
    i = torch.arange(low, high)
    seen = placed((i >= piece.lo[:, None]) & (i < piece.hi[:, None]), query)
    rows = placed(piece.queries - start, query)
    before = scores[:, :, rows, low:high]
    scores[:, :, rows, low:high] = torch.where(seen, found.to(scores.dtype), before)


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
