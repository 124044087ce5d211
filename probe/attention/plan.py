"""What the pieces of one compilation become: a list of kernel calls, worked out once and run by every layer.

A kernel is fast where it needs no mask and has many queries (torch's CPU kernel does 150 GFLOP/s on 768 queries and
more, 125 on 256, 100 on 64 where those were measured), so runs of queries are called whole where their key ranges allow
it:

- bounds that stand still: one unmasked call;
- a start that stands still and an end that moves with the query: an unmasked rectangle, and a square that the
  kernel itself treats as causal;
- anything else, such as a band: blocks of queries with a mask, cut where a bound jumps.

Interleaved pieces, which share out the queries with keys hardly apart (the stair's: one per residue of t, keys a step
apart where residues say so), would be calls of few queries each. They are regrouped by key: keys that all pieces move
alike are one class, and a few classes are called at once for all queries, at the last class's positions. A query for
which the first class moves otherwise is masked from the keys that do, and sees these in a second call. So nearly every
score is computed once.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.attention.kernels import Mask, Tail
from probe.schemes.pieces import Piece

Index = slice | Tensor
"""Places along one dimension of a tensor: a slice (a view) where they are evenly spaced, else an index."""

_FEW = 32
"""Queries per masked call where the bounds move by several keys per query, so that most of a mask would be hidden."""


_OVERHEAD = 90
"""What turning all queries and merging their results costs, in keys that every query might see instead. Measured on
CPU.
"""


@dataclass(frozen=True)
class Call:
    """One kernel call: some of a stage's queries, over some of its keys.

    `rows` are places among the stage's queries, `into` among all of them; `fresh` says that these have no result yet.
    """

    rows: slice
    into: Index
    keys: slice
    causal: bool
    mask: Mask | None
    fresh: bool


@dataclass(frozen=True)
class Stage:
    """Calls that share queries and keys at given positions.

    `update` says which keys of the turned cache have to be turned anew, to the positions `update_pos`, because the
    stages before left others there. `raw` keys are all at position 0 and used as they are. With `only`, the stage has
    those keys alone. Its keys count `times` times.
    """

    rows: Index
    q_pos: Float[Tensor, " queries"]
    k_pos: Float[Tensor, " keys"]
    calls: tuple[Call, ...]
    update: Index | None
    update_pos: Float[Tensor, " changed"]
    raw: bool
    only: Int[Tensor, " keys"] | None
    times: int = 1


@dataclass(frozen=True)
class _Shape:
    """A call before it is placed: rows and keys of a stage."""

    rows: slice
    keys: slice
    causal: bool = False
    mask: Mask | None = None


def evenly(index: Int[Tensor, " n"]) -> Index:
    """Ascending places as a slice where they are evenly spaced, else as they are."""
    steps = index.diff()
    if len(index) < 2 or bool((steps == steps[0]).all()):
        return slice(int(index[0]), int(index[-1]) + 1, int(steps[0]) if len(index) > 1 else 1)
    return index


def sub(rows: Index, mine: slice) -> Index:
    """Some of these rows."""
    if isinstance(rows, Tensor):
        return rows[mine]
    picked = range(rows.start, rows.stop, rows.step or 1)[mine]
    return slice(picked.start, picked.stop, picked.step)


def _runs(lo: Tensor, hi: Tensor) -> list[tuple[int, int]]:
    """Row ranges inside which both bounds move by the same step from row to row."""
    count = len(lo)
    steps = torch.stack((lo.diff(), hi.diff()), -1)
    changes = ((steps[1:] != steps[:-1]).any(-1).nonzero()[:, 0] + 1).tolist()
    runs, at = [], 0
    while at < count:
        after = bisect_right(changes, at)
        stop = changes[after] + 1 if after < len(changes) else count
        runs.append((at, stop))
        at = stop
    return runs


def _chunks(start: int, stop: int, size: int) -> Iterator[slice]:
    for at in range(start, stop, size):
        yield slice(at, min(at + size, stop))


@dataclass
class Planner:
    """Makes the calls of one compilation.

    Args:
        block: queries per masked call.
        whole: whether a call without a mask may have any number of queries.
    """

    block: int
    whole: bool = True
    masks: dict[tuple, Mask] = field(default_factory=dict)
    patterns: dict[tuple, tuple[Tensor, Mask]] = field(default_factory=dict)

    def shapes(self, lo: Int[Tensor, " q"], hi: Int[Tensor, " q"]) -> Iterator[_Shape]:
        """The calls for queries with these key ranges."""
        runs = _runs(lo, hi)
        if len(runs) * 16 > len(lo):
            yield from self._blocks(lo, hi, 0, len(lo), self.block)
            return
        for start, stop in runs:
            yield from self._run(lo, hi, start, stop)

    def _run(self, lo: Tensor, hi: Tensor, start: int, stop: int) -> Iterator[_Shape]:
        low, high = (int(x[min(start + 1, stop - 1)] - x[start]) for x in (lo, hi))
        first, edge = int(lo[start]), int(hi[start]) - 1
        if low == high == 0:
            for rows in _chunks(start, stop, stop - start if self.whole else self.block):
                yield _Shape(rows, slice(first, edge + 1))
        elif (low, high) == (0, 1) and self.whole and stop - start >= 2 * self.block:
            if edge > first:
                yield _Shape(slice(start, stop), slice(first, edge))
            yield _Shape(slice(start, stop), slice(edge, edge + stop - start), causal=True)
        else:
            size = self.block if max(low, high) <= 2 else min(self.block, _FEW)
            yield from self._blocks(lo, hi, start, stop, size)

    def _blocks(self, lo: Tensor, hi: Tensor, start: int, stop: int, size: int) -> Iterator[_Shape]:
        """Blocks of queries: one masked call, or three where what all see is wide enough to be worth its own."""
        for rows in _chunks(start, stop, size):
            low, high = lo[rows], hi[rows]
            first, inner_lo, inner_hi, last = int(low[0]), int(low[-1]), int(high[0]), int(high[-1])
            if inner_hi - inner_lo < 4 * size:
                yield self._masked(rows, low, high, first, last)
                continue
            if inner_lo > first:
                yield self._masked(rows, low, high, first, inner_lo + 1)
            # The edges take one key more than they must, so that every query sees a key of them.
            inner = slice(inner_lo + (inner_lo > first), inner_hi - (last > inner_hi))
            yield _Shape(rows, inner)
            if last > inner_hi:
                yield self._masked(rows, low, high, inner_hi - 1, last)

    def _masked(self, rows: slice, lo: Tensor, hi: Tensor, first: int, last: int) -> _Shape:
        """Keys first..last-1 behind a mask; blocks with the same bounds relative to the first key share it."""
        width = last - first
        low, high = ((bound - first).clamp(0, width) for bound in (lo, hi))
        if bool((low == 0).all()) and bool((high == width).all()):
            return _Shape(rows, slice(first, last))
        name = (low.numpy().tobytes(), high.numpy().tobytes(), width)
        if name not in self.masks:
            keys = torch.arange(width)
            self.masks[name] = Mask((keys >= low[:, None]) & (keys < high[:, None]))
        return _Shape(rows, slice(first, last), mask=self.masks[name])

    def shown(self, group: Group) -> Iterator[_Shape]:
        """Blocks of queries that see, of the keys in their range, those shown to their owner.

        From the last block to the first, so that the earlier find their mask as the end of a later one.
        """
        assert group.owner is not None and group.shown is not None
        for rows in reversed(list(_chunks(0, len(group.lo), group.rows))):
            first, last = int(group.lo[rows][0]), int(group.hi[rows][-1])
            if last > first:
                bounds = group.lo[rows] - last, group.hi[rows] - last
                mask = self._pattern(*bounds, group.owner[rows], group.shown[:, first:last])
                yield _Shape(rows, slice(first, last), mask=mask)

    def _pattern(self, lo: Tensor, hi: Tensor, owner: Tensor, shown: Tensor) -> Mask:
        """The mask of bounds relative to the last key; a kept one, or the end of one, where it shows the same."""
        width = shown.shape[1]
        low = lo if bool((lo > -width).any()) else lo[:0]
        name = tuple(x.numpy().tobytes() for x in (low, hi, owner))
        kept, whole = self.patterns.get(name, (shown[:, :0], None))
        cut = kept.shape[1] - width
        if whole is not None and cut >= 0 and whole.empty is None and torch.equal(kept[:, cut:], shown):
            tail = Tail(whole.seen[:, cut:], whole=whole)
            if tail.empty is None:
                return tail
        keys = torch.arange(-width, 0)
        mask = Mask((keys >= lo[:, None]) & (keys < hi[:, None]) & shown[owner])
        if cut < 0:
            self.patterns[name] = (shown, mask)
        return mask


@dataclass(frozen=True)
class Group:
    """Queries, ascending, over keys at given positions: a piece, or a class of keys for the queries of several.

    `shown[owner[n]]` are the keys that query n may see in its range; None for all. `only` are the keys there are, to
    which positions and bounds then refer; None for all. `rows` are the queries of one call, where something is shown.
    """

    queries: Int[Tensor, " queries"]
    q_pos: Float[Tensor, " queries"]
    k_pos: Float[Tensor, " keys"]
    lo: Int[Tensor, " queries"]
    hi: Int[Tensor, " queries"]
    owner: Int[Tensor, " queries"] | None = None
    shown: Bool[Tensor, "owners keys"] | None = None
    only: Int[Tensor, " keys"] | None = None
    rows: int = 0
    times: int = 1

    def shapes(self, planner: Planner) -> list[_Shape]:
        """Its calls."""
        return list(planner.shapes(self.lo, self.hi) if self.owner is None else planner.shown(self))


def _alike(a: Piece, b: Piece) -> bool:
    """Whether two pieces have different queries and mostly the same key positions, which count alike."""
    if a.times != b.times or a.times != 1:
        return False
    if int(a.queries[0]) == int(b.queries[0]) or bool(torch.isin(a.queries, b.queries).any()):
        return False
    return 4 * int((a.k_pos != b.k_pos).sum()) <= len(a.k_pos)


def _families(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Consecutive pieces that are alike."""
    families: list[list[Piece]] = [[pieces[0]]]
    for a, b in pairwise(pieces):
        if _alike(a, b):
            families[-1].append(b)
        else:
            families.append([b])
    return families


def _moved(pieces: Sequence[Piece]) -> Tensor:
    """[pieces, keys]: how far each piece moves each key from where the first has it; in one byte each where that holds
    them, since there may be as many pieces as queries.
    """
    moved = torch.empty(len(pieces), len(pieces[0].k_pos), dtype=torch.int8)
    for row, piece in zip(moved, pieces, strict=True):
        by = piece.k_pos - pieces[0].k_pos
        if not torch.equal(row.copy_(by.clamp(-128, 127)).to(by.dtype), by):
            return torch.stack([piece.k_pos - pieces[0].k_pos for piece in pieces])
    return moved


@dataclass(frozen=True)
class _Family:
    """Interleaved pieces: their queries in one row, and how far each piece moves each key from where the first has
    it.
    """

    queries: Tensor
    q_pos: Tensor
    lo: Tensor
    hi: Tensor
    owner: Tensor
    k_pos: Tensor
    moved: Tensor  # [pieces, keys]

    @classmethod
    def of(cls, pieces: list[Piece]) -> _Family:
        """The family of these pieces."""
        queries, order = torch.cat([piece.queries for piece in pieces]).sort()
        owner = torch.cat([torch.full_like(piece.queries, number) for number, piece in enumerate(pieces)])
        q_pos, lo, hi = (torch.cat([getattr(piece, name) for piece in pieces])[order] for name in ("q_pos", "lo", "hi"))
        return cls(queries, q_pos, lo, hi, owner[order], pieces[0].k_pos, _moved(pieces))

    def ascends(self) -> bool:
        """Whether queries differ and bounds ascend, so that neighbouring queries can be called together."""
        return bool((self.queries.diff() > 0).all() and (self.lo.diff() >= 0).all() and (self.hi.diff() >= 0).all())

    def classes(self) -> list[Tensor]:
        """Keys that are moved alike, neighbours in how much all pieces together move them."""
        total = self.moved.sum(0)
        return [(total == value).nonzero()[:, 0] for value in total.unique()]

    def together(self, classes: int) -> int:
        """How many classes to call at once.

        Of n classes s at a time, (s - 1)/n of the scores are computed twice, and there are n/s results to merge and
        turned queries to make, each worth `_OVERHEAD` keys. The sum is least at the square root below.
        """
        far = float((self.hi - self.lo).double().mean())
        return min(classes, max(1, round(classes * math.sqrt(_OVERHEAD / far))))

    def groups(self, classes: list[Tensor], block: int) -> list[Group] | None:
        """Some classes of keys for all queries; None where a piece moves them in more than two ways."""
        only = torch.cat(classes).sort().values
        first, last, moved = self.moved[:, classes[0][0]], self.moved[:, classes[-1][0]], self.moved[:, only]
        shown = moved == last[:, None]
        if not bool((shown | (moved == first[:, None])).all()):
            return None
        lo, hi = (torch.searchsorted(only, bound.contiguous()) for bound in (self.lo, self.hi))
        k_pos, q_pos, pieces = self.k_pos[only], self.q_pos - last[self.owner], len(self.moved)
        rows = math.ceil(3 * block / pieces) * pieces
        found = [Group(self.queries, q_pos, k_pos, lo, hi, self.owner, shown, only, rows)]
        mine = (first != last)[self.owner]
        if bool(mine.any()):
            q_pos = (self.q_pos - first[self.owner])[mine]
            rest = (self.queries[mine], q_pos, k_pos, lo[mine], hi[mine], self.owner[mine])
            few = int((first != last).sum())
            found.append(Group(*rest, ~shown, only, math.ceil(block * 3 / 4 / few) * few))
        return found


def _turned_round(pieces: list[Piece], block: int) -> list[Group] | None:
    """A family by classes of keys; None where that is not possible."""
    family = _Family.of(pieces)
    if not family.ascends():
        return None
    classes = family.classes()
    size = family.together(len(classes))
    found = [family.groups(classes[at : at + size], block) for at in range(0, len(classes), size)]
    return None if None in found else [group for groups in found for group in groups or ()]


def _groups(pieces: Sequence[Piece], planner: Planner) -> Iterator[Group]:
    """The pieces, families of interleaved ones regrouped by key."""
    for family in _families(pieces):
        # A bias wants few queries per call, which the pieces of a family have as they are.
        turned = _turned_round(family, planner.block) if len(family) > 1 and planner.whole else None
        yield from turned or [Group(p.queries, p.q_pos, p.k_pos, p.lo, p.hi, times=p.times) for p in family]


def _update(turned: Tensor, k_pos: Tensor, lo: int, hi: int) -> tuple[Index | None, Tensor]:
    """Which keys of lo..hi-1 are not yet at their positions, and these; `turned` is brought up to date."""
    changed = (turned[lo:hi] != k_pos[lo:hi]).nonzero()[:, 0] + lo
    if len(changed) == 0:
        return None, k_pos[:0]
    turned[lo:hi] = k_pos[lo:hi]
    span = slice(int(changed[0]), int(changed[-1]) + 1)
    rows: Index = changed if 3 * len(changed) < span.stop - span.start else span
    return rows, k_pos[rows]


def plan(pieces: Sequence[Piece], first: int, planner: Planner, raw_zero: bool) -> list[Stage]:
    """The stages of a compilation.

    Args:
        pieces: the compiled scheme.
        first: position of the first query.
        planner: how calls are cut.
        raw_zero: whether a key at position 0 is the raw key.
    """
    length = len(pieces[0].k_pos)
    # NaN is unlike every position: nothing is turned yet.
    turned, done = torch.full((length,), math.nan, dtype=torch.float64), torch.zeros(length - first, dtype=torch.bool)
    stages = []
    for group in _groups(pieces, planner):
        rows, calls = evenly(group.queries - first), []
        for shape in group.shapes(planner):
            into = sub(rows, shape.rows)
            calls.append(Call(shape.rows, into, shape.keys, shape.causal, shape.mask, not bool(done[into].any())))
            done[into] = True
        raw = raw_zero and not bool(group.k_pos.any())
        update: Index | None = None
        update_pos = group.k_pos[:0]
        if group.only is None and not raw:
            update, update_pos = _update(turned, group.k_pos, int(group.lo[0]), int(group.hi[-1]))
        stages.append(
            Stage(rows, group.q_pos, group.k_pos, tuple(calls), update, update_pos, raw, group.only, group.times)
        )
    return stages
