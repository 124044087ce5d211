"""One property for every scheme: each visible pair is in exactly one piece, and there q_pos - k_pos is W(t, i)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constructions.horizon import is_subadditive
from constructions.weave import WEAVES as SHIPPED
from constructions.weave import (
    CacheIndex,
    Clamp,
    DualChunk,
    Grouped,
    Leaky,
    Linear,
    Part,
    Stair,
    Switched,
    Weave,
    WeaveError,
)
from probe.attention.dense import visible_mask
from probe.errors import ProbeError
from probe.schemes import WEAVES as OPEN
from probe.schemes.pieces import compile_pieces
from probe.schemes.visibility import Blocks, Bottom, Lambda, Visibility

small = st.integers(1, 40)
PLAIN = st.one_of(
    st.just(Linear()),
    st.builds(Clamp, N=small),
    st.builds(Leaky, w=st.integers(0, 40), k=st.floats(1, 20)),
    st.builds(Stair, N=st.integers(0, 40), E=small),
    st.builds(Grouped, W=small, G=st.integers(1, 12)),
    st.builds(lambda s, more: DualChunk(s, s + more), small, st.integers(0, 60)),
    st.builds(CacheIndex, x=st.integers(0, 8), y=small),
)
WEAVES = st.one_of(PLAIN, st.builds(Switched, start=st.integers(0, 130), before=PLAIN, after=PLAIN))
MASKS = st.one_of(
    st.just(Visibility()),
    st.builds(Lambda, x=st.integers(0, 20), y=small),
    st.builds(Blocks, anchor=small, block=small),
)
VISIBILITIES = st.one_of(MASKS, st.builds(Bottom, base=MASKS, start=st.integers(0, 130)))


def slow_weave(weave: Weave, t: int, i: int) -> float:
    """W(t, i) written case by case from the definitions, in Python's own arithmetic."""
    d = t - i
    match weave:
        case Linear():
            return d
        case Clamp(N=N):
            return min(d, N)
        case Leaky(w=w, k=k):
            return d if d <= w else w + (d - w) / k
        case Stair(N=N, E=E):
            return d if d <= N else N + int(np.ceil((d - N) / E))
        case Grouped(W=W, G=G):
            return d if d < W else (t // G + W - W // G) - i // G
        case DualChunk(s=s, c=c):
            chunks_apart = t // s - i // s
            query = t % s if chunks_apart == 0 else min(t % s + s, c) if chunks_apart == 1 else c
            return query - i % s
        case CacheIndex(x=x, y=y):
            cache = list(range(t + 1)) if t < x + y else [*range(x), *range(t - y + 1, t + 1)]
            return cache.index(t) - cache.index(i) if i in cache else d
        case Switched(start=start, before=before, after=after):
            return slow_weave(after if t >= start else before, t, i)
    raise AssertionError(weave)


def slow_sees(visibility: Visibility, t: int, i: int) -> bool:
    """Whether query t sees key i, from what each source says, by sets of keys."""
    match visibility:
        case Lambda(x=x, y=y):
            return i in {*range(min(x, t + 1)), *range(max(0, t - y + 1), t + 1)}
        case Blocks(anchor=anchor, block=block):
            starts = [0, *range(anchor, t + 1, block)]
            return i in {*range(min(anchor, t + 1)), *range(starts[-1], t + 1)}
        case Bottom(base=base, start=start):
            return i <= t if t >= start else slow_sees(base, t, i)
    return i <= t


@settings(max_examples=150)
@given(weave=WEAVES, visibility=VISIBILITIES, length=st.integers(1, 120), cached=st.integers(0, 119))
def test_every_visible_pair_is_in_exactly_one_piece_with_its_weave_position(
    weave: Weave, visibility: Visibility, length: int, cached: int
) -> None:
    first = min(cached, length - 1)
    count = np.zeros((length, length), dtype=int)
    relative = np.full((length, length), np.nan)
    for piece in compile_pieces(weave, visibility, first, length):
        assert (piece.lo.diff() >= 0).all() and (piece.hi.diff() >= 0).all() and (piece.hi > piece.lo).all()
        for row, t in enumerate(piece.queries.tolist()):
            seen = slice(int(piece.lo[row]), int(piece.hi[row]))
            count[t, seen] += 1
            relative[t, seen] = (piece.q_pos[row] - piece.k_pos[seen]).numpy()
    for t in range(length):
        visible = [t >= first and slow_sees(visibility, t, i) for i in range(length)]
        assert count[t].tolist() == [int(seen) for seen in visible]
        expected = [slow_weave(weave, t, i) if visible[i] else np.nan for i in range(length)]
        np.testing.assert_allclose(relative[t], expected, atol=1e-9)


@given(visibility=VISIBILITIES, length=st.integers(1, 130), cached=st.integers(0, 129))
def test_intervals_and_the_definition_show_the_same_keys(visibility: Visibility, length: int, cached: int) -> None:
    first = min(cached, length - 1)
    t, i = torch.arange(first, length), torch.arange(length)
    covered = torch.zeros(length - first, length, dtype=torch.int64)
    for lo, hi in visibility.intervals(t):
        covered += (i >= lo[:, None]) & (i < hi[:, None])
    assert torch.equal(covered == 1, visible_mask(visibility, first, length)) and covered.max() == 1
    assert bool(visibility.sees(length - 1, first)) == slow_sees(visibility, length - 1, first)


@settings(max_examples=100)
@given(weave=WEAVES, t=st.integers(0, 500), back=st.integers(0, 500))
def test_a_weave_is_the_same_for_ints_arrays_and_tensors(weave: Weave, t: int, back: int) -> None:
    i = max(0, t - back)
    expected = slow_weave(weave, t, i)
    assert weave(t, i) == pytest.approx(expected)
    assert weave(np.array([t]), np.array([i]))[0] == pytest.approx(expected)
    assert float(weave(torch.tensor([t]), torch.tensor([i]))[0]) == pytest.approx(expected, rel=1e-6)


@given(weave=WEAVES, t=st.integers(0, 500))
def test_a_token_is_at_distance_0_from_itself(weave: Weave, t: int) -> None:
    assert weave(t, t) == 0


@given(weave=PLAIN, t=st.integers(0, 300))
def test_a_farther_visible_key_is_not_nearer(weave: Weave, t: int) -> None:
    """Every weave but DCA's is monotone over the keys it is defined for."""
    if isinstance(weave, DualChunk):
        return
    keys = range(t, -1, -1)
    if isinstance(weave, CacheIndex):
        keys = [i for i in keys if slow_sees(Lambda(weave.x, weave.y), t, i)]
    positions = [weave(t, i) for i in keys]
    assert all(nearer <= farther + 1e-9 for nearer, farther in itertools.pairwise(positions))


def test_dual_chunk_is_not_monotone_and_exact_near_the_query() -> None:
    weave = DualChunk(s=4, c=6)
    assert [weave(13, i) for i in range(14)] == [6, 5, 4, 3, 6, 5, 4, 3, 5, 4, 3, 2, 1, 0]
    for s, c in ((4, 6), (4, 4), (5, 14), (7, 9)):
        exact = min(s, c - s)
        for t in range(60):
            near = range(max(0, t - exact), t + 1)
            assert [DualChunk(s, c)(t, i) for i in near] == [t - i for i in near]
            assert max(DualChunk(s, c)(t, i) for i in range(t + 1)) <= c


@given(weave=WEAVES)
def test_subadditivity_is_what_the_weave_says(weave: Weave) -> None:
    if weave.by_distance:
        assert weave.subadditive and is_subadditive(weave, 60)
    else:
        assert not weave.subadditive
        with pytest.raises(WeaveError, match="not on their distance alone"):
            weave.of(3)


def test_no_scheme_visits_a_pair_twice() -> None:
    for weave in (Clamp(64), Stair(64, 8), Grouped(64, 4), Leaky(64, 4.0), DualChunk(64, 80)):
        pairs = sum(piece.pairs() for piece in compile_pieces(weave, Visibility(), 0, 1000))
        assert pairs == 1000 * 1001 // 2


def test_figure_1_of_the_paper() -> None:
    assert [Stair(N=3, E=2).of(d) for d in range(9, -1, -1)] == [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]


def test_appendix_g_identity_and_counter_example() -> None:
    """Self-Extend is the floor form of the stair where t mod G >= i mod G and G divides W; elsewhere one more."""
    weave, differs = Grouped(W=4, G=2), 0
    for t in range(60):
        for i in range(max(0, t - 3)):
            floor_stair = 4 + (t - i - 4) // 2
            if t % 2 >= i % 2:
                assert weave(t, i) == floor_stair
            else:
                assert weave(t, i) == floor_stair + 1
                differs += 1
    assert differs > 0
    assert (10 // 2 - 5 // 2, (10 - 5) // 2) == (3, 2)


def test_every_shipped_weave_says_its_parts_and_is_in_the_open_table() -> None:
    assert all(kind.parts is not Weave.parts for kind in SHIPPED.values())
    assert {name: OPEN[name] for name in SHIPPED} == SHIPPED


def test_a_weave_without_parts_is_refused_with_what_to_do() -> None:
    @dataclass(frozen=True)
    class Bare(Weave):
        name = "bare"

        def of(self, d):
            return d

    with pytest.raises(ProbeError, match="weave bare: expected a method `parts`, and Bare has none; backend dense"):
        compile_pieces(Bare(), Visibility(), 0, 5)


def test_chunks_with_positions_of_their_own_are_expressible() -> None:
    """A weave that restarts positions in every block is one more class: nothing else has to know of it."""

    @dataclass(frozen=True)
    class AfterAnchor(Weave):
        """A block's tokens sit where they would if the block followed the anchor."""

        anchor: int
        block: int

        def __call__(self, t, i):
            gap = (t - self.anchor) // self.block * self.block
            return t - i - gap * (gap > 0) * (i < self.anchor)

        def parts(self, t, i):
            gap = ((t - self.anchor) // self.block * self.block).clamp(min=0)
            far = Part(t, t - gap, i, torch.zeros_like(t), (t + 1).clamp(max=self.anchor))
            return [far, Part(t, t, i, torch.full_like(t, self.anchor), t + 1)]

    weave, visibility = AfterAnchor(5, 7), Bottom(Blocks(5, 7), 33)
    pieces = compile_pieces(Switched(33, weave, Stair(6, 3)), visibility, 0, 45)
    seen = {}
    for piece in pieces:
        for row, t in enumerate(piece.queries.tolist()):
            for i in range(int(piece.lo[row]), int(piece.hi[row])):
                assert (t, i) not in seen
                seen[t, i] = int(piece.q_pos[row] - piece.k_pos[i])
    assert all(position == (weave if t < 33 else Stair(6, 3))(t, i) for (t, i), position in seen.items())
    assert set(seen) == {(t, i) for t in range(45) for i in range(t + 1) if slow_sees(visibility, t, i)}
    assert max(position for (t, _), position in seen.items() if t < 33) == 5 + 7 - 1
