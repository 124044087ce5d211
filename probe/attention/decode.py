"""One query over a long cache of raw keys: the query is turned once per distinct relative position, never the cache.

Keys at one relative position are scored with one turned query; long runs of equal length (the stair's) are one batched
product over views of the cache. Where every key has a position of its own there are as many turned queries as keys, so
there the keys are turned, a chunk at a time in a buffer that stays in the processor's cache. Then one softmax over all
scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.attention.encoding import Encoding
from probe.attention.kernels import grouped
from probe.schemes.pieces import Compiled, Piece, PlanName

_LONG = 16
"""Mean run length from which turning the query per run is cheaper than turning the keys."""

_CHUNK = {"cpu": 512, "cuda": 1 << 15}
"""Keys turned at a time by kind of device: on a GPU every operation is a launch, which costs as much as thousands of
keys.
"""

_COPIED = 1 << 17
"""Keys up to which, on a GPU, a copy that lets one product do all heads takes less time than the launches of a product
per head.
"""


@dataclass(frozen=True)
class Segment:
    """Keys start..stop-1 of the cache, in `runs` runs of equal length, each at one relative position.

    Where keys have positions of their own, runs is 0 and `q_pos`, `k_pos` are what the query and the keys are turned
    by; else `q_pos` has the relative position of every run. `relative` has one position per key, for a bias.
    """

    start: int
    stop: int
    runs: int
    q_pos: Float[Tensor, " turns"]
    k_pos: Float[Tensor, " turned"]
    relative: Float[Tensor, " keys"]


def _run_segments(relative: Tensor, start: int) -> Iterator[Segment]:
    """Keys from `start` on, in runs: whole runs of one length together, those cut short at an end by themselves."""
    values, lengths = torch.unique_consecutive(relative, return_counts=True)
    equal, counts = torch.unique_consecutive(lengths, return_counts=True)
    at = run = 0
    for length, count in zip(equal.tolist(), counts.tolist(), strict=True):
        size, mine = length * count, values[run : run + count]
        yield Segment(start + at, start + at + size, count, mine, mine[:0], relative[at : at + size])
        at, run = at + size, run + count


def _segments(piece: Piece, chunk: int) -> list[Segment]:
    """A piece of one query as segments; keys with positions of their own, `chunk` at a time."""
    start, stop = int(piece.lo[0]), int(piece.hi[0])
    k_pos = piece.k_pos[start:stop]
    relative = piece.q_pos - k_pos
    found = list(_run_segments(relative, start)) if _mostly_long(relative) else []
    # Runs of many lengths would be a call each.
    if found and len(found) * _LONG <= stop - start + 3 * _LONG:
        return found
    return [
        Segment(start + at, start + at + len(part), 0, piece.q_pos, part, relative[at : at + chunk])
        for at in range(0, stop - start, chunk)
        for part in [k_pos[at : at + chunk]]
    ]


def _mostly_long(relative: Tensor) -> bool:
    return len(relative) >= _LONG * (1 + int((relative.diff() != 0).sum()))


def _ordered(pieces: Sequence[Piece]) -> list[Piece]:
    """By their keys, so that values can be taken in few ranges; those whose keys count several times, as often."""
    every = [piece for piece in pieces for _ in range(piece.times)]
    return sorted(every, key=lambda piece: int(piece.lo[0]))


def planned_segments(pieces: Compiled, encoding: Encoding, device: str) -> list[Segment]:
    """The segments of all pieces of one query on a kind of device, kept beside them for the other layers."""
    turns, chunk = encoding.turns(torch.ones(1)), _CHUNK.get(device, 512)

    def segments() -> list[Segment]:
        # Positions that turn nothing are no reason to cut keys up.
        parts = (_segments(piece, chunk) if turns else [_whole(piece)] for piece in _ordered(pieces))
        return [segment for part in parts for segment in part]

    return pieces.planned(PlanName(Segment, (turns, chunk)), segments)


def _whole(piece: Piece) -> Segment:
    """A piece of one query in which no key is turned."""
    start, stop = int(piece.lo[0]), int(piece.hi[0])
    relative = piece.q_pos - piece.k_pos[start:stop]
    return Segment(start, stop, 1, piece.q_pos[:1], piece.k_pos[:0], relative)


def turned_by_run(
    query: Float[Tensor, "batch heads 1 dim"], segment: Segment, encoding: Encoding
) -> Float[Tensor, "batch heads runs dim"]:
    """A query once for every run of a segment, turned by the run's relative position."""
    turned = encoding.turned(query.expand(-1, -1, segment.runs, -1), segment.q_pos)
    # What an encoding does to a key wherever it is (an amplitude), the query gets in its place.
    return encoding.turned(turned, torch.zeros_like(segment.q_pos))


def scored_by_run(
    query: Float[Tensor, "batch heads 1 dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    segment: Segment,
    encoding: Encoding,
) -> Float[Tensor, "batch kv_heads group keys"]:
    """Scores of keys in runs, from views of the cache."""
    count = segment.runs
    queries = grouped(turned_by_run(query, segment, encoding), key.shape[1])  # [batch, kv_heads, group, runs, dim]
    if count == 1:
        return queries[:, :, :, 0] @ key.transpose(-1, -2)
    if query.device.type != "cpu" and key.shape[2] <= _COPIED:
        runs = key.unflatten(2, (count, -1)).transpose(-1, -2)
        at_once: Tensor = queries.transpose(2, 3) @ runs
        return at_once.transpose(2, 3).flatten(3)
    # Head by head, as the cache of one head is the largest piece whose runs are a view.
    scores = [
        torch.bmm(heads.transpose(0, 1), runs.unflatten(0, (count, -1)).transpose(1, 2)).transpose(0, 1).flatten(1)
        for row, cached in zip(queries, key, strict=True)
        for heads, runs in zip(row, cached, strict=True)
    ]
    stacked: Tensor = torch.stack(scores).unflatten(0, key.shape[:2])
    return stacked


def _scores(
    query: Tensor, key: Tensor, segments: Sequence[Segment], encoding: Encoding, scaling: float
) -> Float[Tensor, "batch kv_heads group keys"]:
    """Scores over the keys of all segments, one after another, in float32 at least."""
    total = sum(segment.stop - segment.start for segment in segments)
    group = query.shape[1] // key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = torch.empty(*key.shape[:2], group, total, dtype=dtype, device=query.device)
    widest = max((segment.stop - segment.start for segment in segments if not segment.runs), default=0)
    buffer = torch.empty(*key.shape[:2], widest, key.shape[3], dtype=key.dtype, device=key.device)
    turned: tuple[Tensor, Tensor] | None = None
    at = 0
    for segment in segments:
        keys, size = key[:, :, segment.start : segment.stop], segment.stop - segment.start
        if segment.runs:
            part = scored_by_run(query, keys, segment, encoding)
        else:
            # Chunks of one piece follow one another, and share the query's position.
            if turned is None or turned[0] is not segment.q_pos:
                turned = segment.q_pos, grouped(encoding.turned(query, segment.q_pos), key.shape[1])[:, :, :, 0]
            part = turned[1] @ encoding.turned(keys, segment.k_pos, buffer[:, :, :size]).transpose(-1, -2)
        torch.mul(part.to(dtype), scaling, out=scores[..., at : at + size])
        at += size
    return scores


def _biased(scores: Tensor, segments: Sequence[Segment], encoding: Encoding, like: Tensor) -> Tensor:
    """The scores with a bias from the relative positions, where the encoding has one."""
    relative = torch.cat([segment.relative for segment in segments])
    bias = encoding.bias(-relative, 0.0, like)
    return scores if bias is None else scores + bias.unflatten(0, scores.shape[1:3])


def _spans(segments: Sequence[Segment]) -> Iterator[tuple[int, int, int]]:
    """Ranges of the cache that follow one another: (first key, stop, place among the scores)."""
    at = 0
    spans: list[tuple[int, int, int]] = []
    for segment in segments:
        if spans and spans[-1][1] == segment.start:
            spans[-1] = (spans[-1][0], segment.stop, spans[-1][2])
        else:
            spans.append((segment.start, segment.stop, at))
        at += segment.stop - segment.start
    return iter(spans)


def attend_one(
    query: Float[Tensor, "batch heads 1 dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    pieces: Compiled,
    encoding: Encoding,
    scaling: float,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads 1 dim"]:
    """Attention of one raw query, the last position, over raw keys; keys and values may be views of a larger buffer.

    Args:
        query: the query; its heads are a multiple of the keys' heads.
        key: raw keys.
        value: values.
        pieces: the scheme compiled for this query, with its segments, which the other layers share.
        encoding: how positions enter.
        scaling: factor on the scores.
        sinks: one more term in the denominator, for no key; None: there is none.
    """
    segments = planned_segments(pieces, encoding, query.device.type)
    scores = _biased(_scores(query, key, segments, encoding, scaling), segments, encoding, query)
    if sinks is not None:
        more = sinks.to(scores.dtype).unflatten(0, scores.shape[1:3])[None, ..., None]
        scores = torch.cat((scores, more.expand(len(scores), -1, -1, 1)), -1)
    weights = scores.softmax(-1).to(value.dtype)
    parts = [weights[..., at : at + stop - start] @ value[:, :, start:stop] for start, stop, at in _spans(segments)]
    return torch.stack(parts).sum(0).flatten(1, 2).unsqueeze(2)
