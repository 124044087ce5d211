"""Attention over a paged cache of raw keys, as serving engines keep it: pages of a sequence lie anywhere.

One query (a decoding step) is scored page by page where the pages lie: keys that share a relative position get one
turned query, and a page has few distinct ones. Only keys with positions of their own, the exact band and models as
trained, are turned, some hundreds at a time. Many queries (a piece of a prompt) go through the same calls as an
ordinary pass, over this layer's keys put in order.

Layout and terms follow vLLM (https://docs.vllm.ai, "Paged Attention"): pages of all sequences in one tensor, and for
each sequence a table of the numbers of its pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.attention.decode import Segment, planned_segments, scored_by_run, turned_by_run
from probe.attention.encoding import Encoding
from probe.attention.kernels import grouped
from probe.attention.merged import attend_pieces
from probe.attention.placing import placed
from probe.errors import ProbeError
from probe.schemes.pieces import Compiled

_GATHERED = 1 << 14
"""Keys of scattered pages that are put in order at a time."""

_MOST_RUNS = 16
"""Distinct relative positions in a page up to which every key is scored at all of them."""


@dataclass(frozen=True)
class Pages:
    """Keys and values of one sequence.

    Attributes:
        keys: pages of all sequences.
        values: the same of values.
        table: numbers of this sequence's pages, in order.
        length: tokens of the sequence, the last of them in its last page.
    """

    keys: Float[Tensor, "pages kv_heads size dim"]
    values: Float[Tensor, "pages kv_heads size dim"]
    table: Int[Tensor, " mine"]
    length: int

    @property
    def size(self) -> int:
        """Tokens of a page."""
        return int(self.keys.shape[2])

    @cached_property
    def stretches(self) -> list[tuple[int, int, int]]:
        """(first place in the table, one behind the last, number of the first page) of pages that lie side by side."""
        table = self.table.tolist()
        found: list[tuple[int, int, int]] = []
        for place, page in enumerate(table):
            if found and page == found[-1][2] + place - found[-1][0]:
                found[-1] = (found[-1][0], place + 1, found[-1][2])
            else:
                found.append((place, place + 1, page))
        return found

    def blocks(self, held: Tensor, first: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """(first place, [pages, kv_heads, size, dim]) of keys or values at places first..stop-1 of the table: views
        where pages lie side by side, else copies of some at a time.
        """
        if 4 * len(self.stretches) <= len(self.table) or len(self.table) == 1:
            for begin, end, page in self.stretches:
                low, high = max(begin, first), min(end, stop)
                if low < high:
                    yield low, held[page + low - begin : page + high - begin]
            return
        step = max(1, _GATHERED // self.size)
        for at in range(first, stop, step):
            yield at, held[self.table[at : min(at + step, stop)]]

    def ordered(self, held: Tensor, start: int, stop: int) -> Float[Tensor, "1 kv_heads tokens dim"]:
        """Keys or values of the tokens start..stop-1, copied."""
        first = start // self.size
        some = held[self.table[first : -(-stop // self.size)]].transpose(0, 1).flatten(1, 2)
        return some[None, :, start - first * self.size : stop - first * self.size]


def _run_scores(
    query: Float[Tensor, "heads dim"], pages: Pages, segment: Segment, encoding: Encoding, scores: Tensor
) -> None:
    """Scores of a segment whose keys come in runs of one relative position, into scores [kv_heads, group, tokens].

    A page is scored at every relative position that it has, and each key keeps its own.
    """
    kv_heads, size = pages.keys.shape[1], pages.size
    turned = turned_by_run(query[None, :, None], segment, encoding)
    queries = grouped(turned, kv_heads)[0].permute(2, 0, 3, 1)  # [runs, kv_heads, dim, group]
    width = (segment.stop - segment.start) // segment.runs
    first, stop = segment.start // size, -(-segment.stop // size)
    # Of every key of these pages, its run; what lies outside the segment counts to the nearest.
    place = torch.arange(first * size, stop * size)
    run = ((place - segment.start).clamp(0, segment.stop - segment.start - 1) // width).unflatten(0, (-1, size))
    lowest = run[:, 0]
    most = int((run[:, -1] - lowest).max()) + 1
    each = placed((lowest[:, None] + torch.arange(most)).clamp(max=segment.runs - 1), queries)
    own = placed(run - lowest[:, None], queries)
    group = queries.shape[3]
    for at, keys in pages.blocks(pages.keys, first, stop):
        mine = slice(at - first, at - first + len(keys))
        # [pages, kv_heads, dim, most * group]
        asked = queries[each[mine]].permute(0, 2, 3, 1, 4).flatten(3)
        found = (keys @ asked).unflatten(3, (most, group))
        if most == 1:
            kept = found[:, :, :, 0]
        else:
            index = own[mine][:, None, :, None, None].expand(-1, kv_heads, -1, 1, group)
            kept = found.gather(3, index)[:, :, :, 0]
        # [pages, kv_heads, size, group] -> [kv_heads, group, tokens]
        row = kept.permute(1, 3, 0, 2).flatten(2)
        low = max(segment.start, at * size)
        high = min(segment.stop, (at + len(keys)) * size)
        scores[:, :, low:high] = row[:, :, low - at * size : high - at * size]


def _own_scores(
    query: Float[Tensor, "heads dim"], pages: Pages, segment: Segment, encoding: Encoding, scores: Tensor
) -> None:
    """Scores of a segment whose keys have positions of their own: they are turned."""
    keys = pages.ordered(pages.keys, segment.start, segment.stop)
    turned = grouped(encoding.turned(query[None, :, None], segment.q_pos), keys.shape[1])[:, :, :, 0]
    scores[:, :, segment.start : segment.stop] = (turned @ encoding.turned(keys, segment.k_pos).transpose(-1, -2))[0]


def _in_few_runs(segment: Segment, size: int) -> bool:
    """Whether a page of `size` keys has few relative positions."""
    return segment.runs > 0 and segment.runs * size <= _MOST_RUNS * (segment.stop - segment.start)


def attend_paged_one(
    query: Float[Tensor, "heads dim"],
    pages: Pages,
    pieces: Compiled,
    encoding: Encoding,
    scaling: float,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "heads dim"]:
    """Attention of one raw query, the last position, over pages of raw keys.

    Args:
        query: the query; its heads are a multiple of the keys' heads.
        pages: its sequence, this token included.
        pieces: the scheme compiled for this query, with its segments, which the other layers share.
        encoding: how positions enter.
        scaling: factor on the scores.
        sinks: one more term in the denominator, for no key; None: there is none.
    """
    kv_heads = pages.keys.shape[1]
    group, dtype = query.shape[0] // kv_heads, torch.promote_types(query.dtype, torch.float32)
    scores = torch.full((kv_heads, group, pages.length), float("-inf"), dtype=dtype, device=query.device)
    segments = planned_segments(pieces, encoding, query.device.type)
    for segment in segments:
        if _in_few_runs(segment, pages.size):
            _run_scores(query, pages, segment, encoding, scores)
        elif segment.runs:
            _run_by_run(query, pages, segment, encoding, scores)
        else:
            _own_scores(query, pages, segment, encoding, scores)
    scores = _biased(scores.mul_(scaling), segments, encoding, query)
    if sinks is not None:
        more = sinks.to(dtype).view(kv_heads, group, 1)
        weights = torch.cat((scores, more), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return _valued(weights.to(pages.values.dtype), pages, segments).flatten(0, 1)


def _run_by_run(
    query: Float[Tensor, "heads dim"], pages: Pages, segment: Segment, encoding: Encoding, scores: Tensor
) -> None:
    """Scores of short runs, of which a page has many: their keys are put in order first."""
    keys = pages.ordered(pages.keys, segment.start, segment.stop)
    scores[:, :, segment.start : segment.stop] = scored_by_run(query[None, :, None], keys, segment, encoding)[0]


def _biased(scores: Tensor, segments: Sequence[Segment], encoding: Encoding, like: Tensor) -> Tensor:
    """With a bias from the relative positions, where the encoding has one."""
    if not encoding.biased:
        return scores
    for segment in segments:
        bias = encoding.bias(-segment.relative, 0.0, like)
        assert bias is not None
        scores[:, :, segment.start : segment.stop] += bias.unflatten(0, scores.shape[:2])
    return scores


def _valued(
    weights: Float[Tensor, "kv_heads group tokens"], pages: Pages, segments: Sequence[Segment]
) -> Float[Tensor, "kv_heads group dim"]:
    """The values by their weights, page by page; pages that no segment has a key in are left out."""
    size = pages.size
    full = torch.nn.functional.pad(weights, (0, -weights.shape[2] % size)).unflatten(2, (-1, size))
    out = weights.new_zeros(*weights.shape[:2], pages.values.shape[3])
    for start, stop in _touched(segments, size):
        for at, values in pages.blocks(pages.values, start, stop):
            mine = full[:, :, at : at + len(values)].permute(2, 0, 1, 3)
            if (at + len(values)) * size > pages.length:
                # Behind the last token there may be anything, and 0 times infinity is no number.
                values = values.clone()
                values[-1, :, pages.length - (at + len(values) - 1) * size :] = 0
            out += (mine @ values).sum(0)
    return out


def _touched(segments: Sequence[Segment], size: int) -> list[tuple[int, int]]:
    """Ranges of places in the table whose pages hold a key of some segment."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted((segment.start // size, -(-segment.stop // size)) for segment in segments):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def attend_paged(
    query: Float[Tensor, "queries heads dim"],
    pages: Pages,
    pieces: Compiled,
    encoding: Encoding,
    scaling: float,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "queries heads dim"]:
    """Attention of the last positions of a sequence, raw queries in order, over pages of raw keys.

    Args:
        query: one or many queries; their own keys are in the pages.
        pages: the sequence.
        pieces: the scheme compiled for exactly these queries.
        encoding: how positions enter.
        scaling: factor on the scores.
        sinks: one more term in the denominator, for no key; None: there is none.

    Raises:
        ProbeError: keys that count several times.
    """
    if any(piece.times != 1 for piece in pieces):
        raise ProbeError("paged attention: expected a scheme whose keys count once each")
    if len(query) == 1:
        return attend_paged_one(query[0], pages, pieces, encoding, scaling, sinks)[None]
    keys, values = (pages.ordered(held, 0, pages.length) for held in (pages.keys, pages.values))
    out = attend_pieces(query.transpose(0, 1)[None], keys, values, pieces, encoding, scaling, sinks=sinks)
    return out[0].transpose(0, 1)
