"""A long input without its middle: the stock model at those positions, and the dense definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schemes.test_pieces import VISIBILITIES, WEAVES
from tiny_models import TINY, relative, token_ids
from torch import nn

from constructions.weave import Weave
from probe.errors import FieldError
from probe.schemes import parse_scheme
from probe.schemes.cut_out import Cut, CutOut, _Seen, folded, largest_position, without_middle
from probe.schemes.pieces import compile_pieces
from probe.schemes.visibility import Visibility
from probe.seam.apply import apply_scheme

WINDOW, AT, GAP = 64, 25, 300
HERE = torch.arange(70)
THERE = torch.where(HERE < AT, HERE, HERE + GAP)
SPECS = ["origin", "rerope(N=20)", "leaky-rerope", "stair(N=20,E=7)", "self-extend", "dual-chunk", "streaming-llm",
         "lm-infinite", "pi", "ntk", "dynamic-ntk", "yarn", "rerope(N=20)+logn"]  # fmt: skip


@torch.no_grad()
def test_origin_without_a_middle_is_the_stock_model_at_those_positions(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), token_ids(2, 70)
    expected = model(tokens, position_ids=THERE[None], attention_mask=torch.ones_like(tokens)).logits
    with apply_scheme(model, without_middle(parse_scheme("origin", WINDOW), AT, GAP)):
        found = model(tokens).logits
    assert relative(found, expected) < 5e-5
    assert relative(found, model(tokens).logits) > 0.1


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_a_scheme_without_a_middle_is_the_scheme_at_given_positions(
    spec: str, tiny_llama: Callable[..., nn.Module]
) -> None:
    """Against the dense path of positions that a caller gives, which shares nothing with it."""
    model, tokens, scheme = tiny_llama().double(), token_ids(2, 70), parse_scheme(spec, WINDOW)
    with apply_scheme(model, scheme, exact_angles=True):
        expected = model(tokens, position_ids=THERE[None], attention_mask=torch.ones_like(tokens)).logits
    for backend in ("pieces", "dense"):
        with apply_scheme(model, without_middle(scheme, AT, GAP), exact_angles=True, backend=backend):
            assert relative(model(tokens).logits, expected) < 1e-10


@pytest.mark.parametrize("name", ["mpt", "bloom", "falcon", "gpt_neox-nope", "gpt_oss", "cohere2"])
@pytest.mark.parametrize("spec", ["origin", "rerope(N=20)", "mesa", "streaming-llm"])
@torch.no_grad()
def test_pieces_are_the_dense_reference_in_every_way_of_positions(name: str, spec: str) -> None:
    model, tokens = TINY[name]().double(), token_ids(1, 70)
    moved = without_middle(parse_scheme(spec, WINDOW), AT, GAP)
    both = []
    for backend in ("pieces", "dense"):
        with apply_scheme(model, moved, exact_angles=True, backend=backend):
            both.append(model(tokens).logits)
    assert relative(*both) < 1e-10


@torch.no_grad()
def test_alibis_far_keys_go_unseen_and_nothing_moves_without_positions() -> None:
    for name, moves in (("mpt", True), ("gpt_neox-nope", False)):
        model, tokens = TINY[name]().double(), token_ids(1, 70)
        with apply_scheme(model, parse_scheme("origin", WINDOW)):
            usual = model(tokens).logits
        with apply_scheme(model, without_middle(parse_scheme("origin", WINDOW), AT, GAP)):
            assert (relative(model(tokens).logits, usual) > 1e-3) == moves


@settings(max_examples=100)
@given(
    weave=WEAVES, visibility=VISIBILITIES, length=st.integers(2, 60), at=st.integers(1, 59), gap=st.integers(0, 90),
    cached=st.integers(0, 58),
)  # fmt: skip
def test_every_pair_that_is_left_is_in_one_piece_where_it_was(
    weave: Weave, visibility: Visibility, length: int, at: int, gap: int, cached: int
) -> None:
    """By the long input's own definition, pair by pair."""
    cut, first = Cut(at, gap), min(cached, length - 1)
    count = np.zeros((length, length), dtype=int)
    for piece in compile_pieces(CutOut(weave, cut), _Seen(visibility, cut), first, length):
        assert (piece.lo.diff() >= 0).all() and (piece.hi.diff() >= 0).all() and (piece.hi > piece.lo).all()
        for row, t in enumerate(piece.queries.tolist()):
            for i in range(int(piece.lo[row]), int(piece.hi[row])):
                count[t, i] += 1
                there = [j + gap if j >= at else j for j in (t, i)]
                assert float(piece.q_pos[row] - piece.k_pos[i]) == pytest.approx(float(weave(*there)))
    for t in range(first, length):
        for i in range(t + 1):
            there = [j + gap if j >= at else j for j in (t, i)]
            assert count[t, i] == int(bool(visibility.sees(*there)))


def test_no_gap_changes_nothing(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama().double(), token_ids(1, 70)
    with torch.no_grad():
        for spec in ("origin", "mesa+logn", "yarn"):
            scheme = parse_scheme(spec, WINDOW)
            with apply_scheme(model, scheme):
                usual = model(tokens).logits
            with apply_scheme(model, without_middle(scheme, AT, 0)):
                assert relative(model(tokens).logits, usual) < 1e-6


def test_what_cannot_be_left_out_is_refused() -> None:
    scheme = parse_scheme("origin", WINDOW)
    with pytest.raises(FieldError, match="at: expected at least 1, got 0"):
        without_middle(scheme, 0, 5)
    with pytest.raises(FieldError, match="gap: expected at least 0, got -1"):
        without_middle(scheme, 5, -1)


def test_folding_leaves_no_distance_past_the_window() -> None:
    origin = folded(parse_scheme("origin", WINDOW), 300)
    assert origin is not None and largest_position(origin.weave_at(300), 300) == WINDOW - 1
    assert float(origin.weave_at(300)(torch.tensor(200), torch.tensor(180))) == 20  # the band is as it was
    rerope = parse_scheme("rerope(N=20)", WINDOW)
    assert folded(rerope, 300) is rerope
    for spec in ("streaming-llm", "lm-infinite", "mesa"):  # what goes unseen has no position that counts
        bounded = parse_scheme(spec, WINDOW)
        assert folded(bounded, 300) is bounded
    stair = parse_scheme("stair(N=20,E=2)", WINDOW)  # 20 + 279/2 positions
    assert folded(stair, 300) is None and folded(stair, 100) is stair
