"""The `pieces` backend: every piece is fast ordinary attention, merged by log-sum-exp, never a T x T matrix."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.attention.encoding import Encoding
from probe.attention.kernels import Partial, attend, merge
from probe.schemes.pieces import Piece

QUERY_BLOCK = 256


def _spans(lo: Tensor, hi: Tensor) -> list[tuple[int, int, bool]]:
    """Key spans (start, stop, ragged) of a query block: what all its queries see, and the ragged edges beside it."""
    first, last = int(lo[0]), int(hi[-1])
    inner_lo, inner_hi = int(lo[-1]), int(hi[0])
    if inner_lo >= inner_hi:
        return [(first, last, True)]
    spans = [(first, inner_lo, True), (inner_lo, inner_hi, False), (inner_hi, last, True)]
    return [span for span in spans if span[1] > span[0]]


@lru_cache(maxsize=128)
def _edge(lo: bytes, hi: bytes, width: int) -> tuple[Bool[Tensor, "q k"], Bool[Tensor, " q"]]:
    """Which keys of a ragged span each query sees, and which queries see none (those rows are set to see all).

    Bounds are relative to the span, so the blocks of a band, and every layer, share one mask.
    """
    first, stop = (torch.frombuffer(bytearray(bound), dtype=torch.int64)[:, None] for bound in (lo, hi))
    keys = torch.arange(width)
    seen = (keys >= first) & (keys < stop)
    empty = ~seen.any(-1)
    seen[empty] = True  # the kernel needs a key in every row; the row's output is dropped
    return seen, empty


def _shifted(part: Partial, offset: Tensor | None) -> Partial:
    """A part whose scores all had something more per query."""
    return part if offset is None else (part[0], part[1] + offset)


def _ragged(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, lo: Tensor, hi: Tensor, bias: Tensor | None
) -> Partial:
    """Attention over a span whose edges differ by query: who sees nothing of it gets log-sum-exp -inf."""
    seen, empty = _edge(lo.numpy().tobytes(), hi.numpy().tobytes(), key.shape[2])
    out, lse = attend(query, key, value, scaling, seen.to(query.device), bias)
    if not bool(empty.any()):
        return out, lse
    empty = empty.to(lse.device)
    return out.masked_fill(empty[:, None], 0.0), lse.masked_fill(empty, float("-inf"))


def _block(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, lo: Tensor, hi: Tensor, bias: Tensor | None
) -> Partial:
    """One block of queries over its key spans."""
    result: Partial | None = None
    for start, stop, ragged in _spans(lo, hi):
        k, v = key[:, :, start:stop], value[:, :, start:stop]
        b = None if bias is None else bias[:, start:stop]
        if ragged:
            low, high = ((bound - start).clamp(0, stop - start) for bound in (lo, hi))
            part = _ragged(query, k, v, scaling, low, high, b)
        else:
            part = attend(query, k, v, scaling, None, b)
        result = part if result is None else merge(result, part)
    assert result is not None  # a piece holds no query that sees nothing
    return result


def _rows(piece: Piece, first: int) -> slice | Tensor:
    """The piece's rows of the query tensor: a slice (a view) where they are evenly spaced, else an index."""
    rows = piece.queries - first
    steps = rows.diff()
    if len(rows) < 2 or bool((steps == steps[0]).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1, int(steps[0]) if len(rows) > 1 else 1)
    return rows


def attend_pieces(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
    pieces: list[Piece],
    encoding: Encoding,
    scaling: float,
    block: int = QUERY_BLOCK,
) -> Float[Tensor, "batch heads queries dim"]:
    """Attention of a whole scheme over raw (unrotated) queries and keys.

    Args:
        query: the last `queries` positions of the `keys` positions.
        key: raw keys, as many heads as the queries.
        value: values.
        pieces: the scheme compiled for exactly these queries and keys.
        encoding: how positions enter, at the scheme's frequencies.
        scaling: factor on the scores.
        block: queries per kernel call.
    """
    first = key.shape[2] - query.shape[2]
    out = torch.zeros_like(query)
    lse = torch.full(query.shape[:3], float("-inf"), device=query.device, dtype=_lse_dtype(query))
    for number, piece in enumerate(pieces):
        rows = _rows(piece, first)
        stop = int(piece.hi[-1])
        turned_k = encoding.turned(key[:, :, :stop], piece.k_pos[:stop])
        turned_q = encoding.turned(query[:, :, rows], piece.q_pos)
        for at in range(0, len(piece.queries), block):
            mine = slice(at, at + block)
            reference = float(piece.q_pos[mine][-1])
            bias = encoding.bias(piece.k_pos[:stop], reference, query)
            part = _block(turned_q[:, :, mine], turned_k, value, scaling, piece.lo[mine], piece.hi[mine], bias)
            part = _shifted(part, encoding.offset(piece.q_pos[mine], reference, query))
            chosen = _sub(rows, mine, len(piece.queries))
            if number > 0:
                part = merge((out[:, :, chosen], lse[:, :, chosen]), part)
            out[:, :, chosen], lse[:, :, chosen] = part
    return out


def _sub(rows: slice | Tensor, mine: slice, count: int) -> slice | Tensor:
    """The rows of one block among a piece's rows."""
    if isinstance(rows, Tensor):
        return rows[mine]
    picked = range(rows.start, rows.stop, rows.step)[mine]
    return slice(picked.start, picked.stop, picked.step)


def _lse_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32
