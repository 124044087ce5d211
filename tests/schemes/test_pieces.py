"""One property for every scheme: each visible pair is in exactly one piece, and there q_pos - k_pos is W(t, i)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constructions.weave import Clamp, Grouped, Leaky, Linear, Stair, Weave
from probe.schemes.pieces import SPLITS, compile_pieces
from probe.schemes.visibility import Visibility

small = st.integers(1, 40)
WEAVES = st.one_of(
    st.just(Linear()),
    st.builds(Clamp, N=small),
    st.builds(Leaky, w=st.integers(0, 40), k=st.floats(1, 20)),
    st.builds(Stair, N=st.integers(0, 40), E=small),
    st.builds(Grouped, W=small, G=st.integers(1, 12)),
)


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
    raise AssertionError(weave)


@given(weave=WEAVES, length=st.integers(1, 120), cached=st.integers(0, 119))
def test_every_visible_pair_is_in_exactly_one_piece_with_its_weave_position(
    weave: Weave, length: int, cached: int
) -> None:
    first = min(cached, length - 1)
    count = np.zeros((length, length), dtype=int)
    relative = np.full((length, length), np.nan)
    for piece in compile_pieces(weave, Visibility(), first, length):
        for row, t in enumerate(piece.queries.tolist()):
            for i in range(int(piece.lo[row]), int(piece.hi[row])):
                count[t, i] += 1
                relative[t, i] = float(piece.q_pos[row] - piece.k_pos[i])
    expected_count = np.tril(np.ones((length, length), dtype=int))
    expected_count[:first] = 0
    assert (count == expected_count).all()
    for t in range(first, length):
        expected = [slow_weave(weave, t, i) for i in range(t + 1)]
        np.testing.assert_allclose(relative[t, : t + 1], expected, atol=1e-9)


@given(weave=WEAVES, t=st.integers(0, 500), back=st.integers(0, 500))
def test_a_weave_is_the_same_for_ints_arrays_and_tensors(weave: Weave, t: int, back: int) -> None:
    i = max(0, t - back)
    expected = slow_weave(weave, t, i)
    assert weave(t, i) == pytest.approx(expected)
    assert weave(np.array([t]), np.array([i]))[0] == pytest.approx(expected)
    assert float(weave(torch.tensor([t]), torch.tensor([i]))[0]) == pytest.approx(expected, rel=1e-6)


@given(weave=WEAVES)
def test_piece_bounds_do_not_decrease_and_no_query_is_empty(weave: Weave) -> None:
    for piece in compile_pieces(weave, Visibility(), 0, 150):
        assert (piece.lo.diff() >= 0).all() and (piece.hi.diff() >= 0).all()
        assert (piece.hi > piece.lo).all()


def test_no_scheme_visits_a_pair_twice() -> None:
    for weave in (Clamp(64), Stair(64, 8), Grouped(64, 4), Leaky(64, 4.0)):
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


def test_every_weave_has_a_split() -> None:
    from constructions.weave import WEAVES as table

    assert set(table.values()) == set(SPLITS)
