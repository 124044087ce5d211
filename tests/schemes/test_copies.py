"""Keys that count several times: the softmax with that many equal keys, written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import TINY, relative, token_ids
from torch import nn

from constructions.weave import WeaveError
from probe.attention.encoding import Alibi
from probe.attention.merged import attend_pieces
from probe.errors import FieldError
from probe.schemes import parse_scheme
from probe.schemes.copies import with_copies
from probe.schemes.pieces import compile_pieces
from probe.seam.apply import apply_scheme

WINDOW, AT, COPIES, LENGTH = 64, 20, 5, 50


@pytest.mark.parametrize("spec", ["origin", "rerope(N=9)", "stair(N=9,E=4)"])
def test_keys_count_as_often_as_there_are_copies(spec: str) -> None:
    """A softmax over weights, each multiplied by how often its key is there."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 3, LENGTH, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    slopes, scheme = torch.tensor([0.5, 0.1, 0.02]), parse_scheme(spec, WINDOW)
    copied = with_copies(scheme, AT, COPIES)
    assert copied is not None
    pieces = compile_pieces(copied.weave_at(LENGTH), copied.visibility_at(LENGTH), 0, LENGTH)
    found = attend_pieces(query, key, value, pieces, Alibi(slopes), 0.3)
    t, i = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    relative_positions = scheme.weave_at(LENGTH + (AT - 1) * (COPIES - 1))(t, i).double()
    scores = query @ key.transpose(-1, -2) * 0.3 - slopes.double()[:, None, None] * relative_positions
    times = torch.where((i > 0) & (i < AT), COPIES, 1) * (i <= t)
    weights = scores.exp() * times
    expected = weights / weights.sum(-1, keepdim=True) @ value
    assert relative(found, expected) < 1e-12


@torch.no_grad()
def test_one_copy_changes_nothing_and_more_do(tiny_llama: Callable[..., nn.Module]) -> None:
    for model in (tiny_llama().double(), TINY["mpt"]().double(), TINY["gpt_neox-nope"]().double()):
        tokens, found = token_ids(2, LENGTH), []
        for copies in (1, COPIES):
            scheme = with_copies(parse_scheme("origin", WINDOW), AT, copies)
            assert scheme is not None
            with apply_scheme(model, scheme):
                found.append(model(tokens).logits)
        with apply_scheme(model, parse_scheme("origin", WINDOW)):
            usual = model(tokens).logits
        assert relative(found[0], usual) < 1e-6 and relative(found[1], usual) > 1e-3


def test_frequencies_and_temperature_are_those_of_so_many_keys() -> None:
    more = (AT - 1) * (COPIES - 1)
    scheme = parse_scheme("dynamic-ntk+logn", WINDOW)
    copied = with_copies(scheme, AT, COPIES)
    assert copied is not None
    assert torch.equal(
        copied.frequencies.factors(8, 1e4, LENGTH, WINDOW), scheme.frequencies.factors(8, 1e4, LENGTH + more, WINDOW)
    )
    t = torch.arange(LENGTH)
    there = torch.where(t < AT, t, t + more)
    assert torch.equal(
        copied.scale.factors(t, LENGTH, WINDOW), scheme.scale.factors(there, LENGTH + more, WINDOW)
    )  # fmt: skip


def test_what_has_no_copies_is_said(tiny_llama: Callable[..., nn.Module]) -> None:
    for spec in ("streaming-llm", "mesa", "lm-infinite"):
        assert with_copies(parse_scheme(spec, WINDOW), AT, COPIES) is None
    with pytest.raises(FieldError, match="copies: expected at least 1, of at least 2 tokens, got 3 of 1"):
        with_copies(parse_scheme("origin", WINDOW), 1, 3)
    scheme = with_copies(parse_scheme("origin", WINDOW), AT, COPIES)
    assert scheme is not None
    with (
        pytest.raises(WeaveError, match="expected backend pieces"),
        apply_scheme(tiny_llama(), scheme, backend="dense") as model,
    ):
        model(token_ids(1, LENGTH))
