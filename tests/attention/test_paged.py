"""Attention over pages that lie anywhere, against the dense definition on the same keys in order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe.attention.dense import attend_dense
from probe.attention.encoding import Alibi, Encoding
from probe.attention.paged import Pages, attend_paged
from probe.attention.rotary import Rotary
from probe.errors import ProbeError
from probe.schemes import parse_scheme
from probe.schemes.pieces import Compiled, Piece, compile_pieces

WINDOW = 64
SPECS = (
    "origin", "rerope(N=20)", "leaky-rerope(w=20)", "stair(N=8,E=4)", "stair(N=30,E=50)", "self-extend(W=16,G=4)",
    "dual-chunk", "streaming-llm(y=30)", "lm-infinite", "lm-infinite+bottom", "star", "mesa",
)  # fmt: skip
ROTARY = Rotary(1e4 ** (-torch.arange(0, 4) / 4.0), angle_dtype=torch.float64)
ALIBI = Alibi(torch.tensor([0.5, 0.25, 0.125, 0.0625]))


def paged(keys: Tensor, values: Tensor, size: int, order: str, seed: int = 0) -> Pages:
    """Keys and values [1, kv_heads, tokens, dim] in pages of a larger cache that is full of what nobody may read."""
    tokens = keys.shape[2]
    count = -(-tokens // size)
    free = count + 5
    rng = torch.Generator().manual_seed(seed)
    places = torch.randperm(free, generator=rng)[:count] if order == "scattered" else torch.arange(3, 3 + count)
    if order == "two stretches":
        places = torch.cat((places[count // 2 :], places[: count // 2]))
    held = []
    for x in (keys, values):
        cache = torch.full((free, x.shape[1], size, x.shape[3]), float("nan"), dtype=x.dtype)
        for token in range(tokens):
            cache[places[token // size], :, token % size] = x[0, :, token]
        held.append(cache)
    return Pages(held[0], held[1], places, tokens)


def drawn(tokens: int, queries: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, 4, 8, generator=rng, dtype=torch.float64)
    k, v = (torch.randn(1, 2, tokens, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def both(spec: str, tokens: int, queries: int, encoding: Encoding, pages: Pages, q: Tensor, k: Tensor, v: Tensor):  # type: ignore[no-untyped-def]
    scheme = parse_scheme(spec, WINDOW)
    weave, visibility = scheme.weave_at(tokens, tokens - 1), scheme.visibility_at(tokens, tokens - 1)
    pieces = compile_pieces(weave, visibility, tokens - queries, tokens)
    got = attend_paged(q, pages, pieces, encoding, 0.3)
    double = (x.double() for x in (q.transpose(0, 1)[None], k, v))
    return got, attend_dense(*double, weave, visibility, encoding, 0.3)[0].transpose(0, 1)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("queries", [1, 37])
@pytest.mark.parametrize("order", ["side by side", "two stretches", "scattered"])
@pytest.mark.parametrize(("encoding", "dtype", "tolerance"), [
    (ROTARY, torch.float64, 1e-10), (ROTARY, torch.float32, 1e-4), (ALIBI, torch.float64, 1e-6),
], ids=["rope", "rope32", "alibi"])  # fmt: skip
def test_pages_give_what_the_definition_gives(
    spec: str, queries: int, order: str, encoding: Encoding, dtype: torch.dtype, tolerance: float
) -> None:
    q, k, v = drawn(150, queries, dtype)
    got, expected = both(spec, 150, queries, encoding, paged(k, v, 16, order), q, k, v)
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


@given(
    tokens=st.integers(1, 200), size=st.sampled_from([1, 3, 16, 128]), N=st.integers(1, 60), E=st.integers(1, 60),
    seed=st.integers(0, 99), order=st.sampled_from(["side by side", "two stretches", "scattered"]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_stair_over_any_pages(tokens: int, size: int, N: int, E: int, seed: int, order: str) -> None:
    q, k, v = drawn(tokens, 1, torch.float64, seed)
    got, expected = both(f"stair(N={N},E={E})", tokens, 1, ROTARY, paged(k, v, size, order, seed), q, k, v)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("queries", [1, 5])
def test_sinks_take_their_share(queries: int) -> None:
    q, k, v = drawn(40, queries, torch.float64)
    sinks = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    pieces = compile_pieces(parse_scheme("rerope(N=9)", WINDOW).weave_at(40), parse_scheme("origin", WINDOW)
                            .visibility_at(40), 40 - queries, 40)  # fmt: skip
    pages = paged(k, v, 16, "scattered")
    plain, got = (attend_paged(q, pages, Compiled(pieces), ROTARY, 0.3, given) for given in (None, sinks))
    # Without values the share of the keys is what one value of ones would give.
    ones = Pages(pages.keys, torch.ones_like(pages.values), pages.table, pages.length)
    share = attend_paged(q, ones, Compiled(pieces), ROTARY, 0.3, sinks)
    torch.testing.assert_close(got, plain * share)
    assert bool((share < 1).all())


def test_keys_that_count_twice_are_refused() -> None:
    q, k, v = drawn(8, 1, torch.float64)
    row = torch.zeros(1, dtype=torch.long)
    piece = Piece(row + 7, row.double(), torch.zeros(8).double(), row, row + 8, times=2)
    with pytest.raises(ProbeError, match="expected a scheme whose keys count once each"):
        attend_paged(q, paged(k, v, 4, "scattered"), Compiled([piece]), ROTARY, 1 / math.sqrt(8))
