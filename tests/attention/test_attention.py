"""Pieces against the dense reference, and the dense reference against rotation by complex numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from probe.attention.dense import attend_dense
from probe.attention.encoding import Alibi
from probe.attention.kernels import Mask, attend, merge_
from probe.attention.merged import attend_pieces
from probe.attention.plan import Planner, Stage, plan
from probe.attention.rotary import Rotary
from probe.errors import ProbeError
from probe.schemes import PRESETS, parse_scheme
from probe.schemes.pieces import compile_pieces
from probe.schemes.scheme import Scheme

SPECS = [
    *PRESETS, "rerope(N=5)", "leaky-rerope(w=0)", "stair(N=0,E=1)", "stair(N=7,E=5)", "dynamic-ntk(a=2)",
    "self-extend(W=7,G=3)", "dual-chunk(s=9,c=14)", "streaming-llm(x=2,y=11)", "streaming-llm+bottom(L=20,N=5,E=4)",
    "lm-infinite(n_global=60,n_local=9)", "lm-infinite+bottom-leaky-rerope(L=70)", "star(B=20,L=5)", "star(B=13)+stair",
]  # fmt: skip


def qkv(length: int, queries: int, dim: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(2, 3, n, dim, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(queries), draw(length), draw(length)


def rotary(dim: int = 12, dtype: torch.dtype = torch.float64) -> Rotary:
    return Rotary(10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim), angle_dtype=dtype)


def pieces_of(scheme: Scheme, first: int, length: int):
    return compile_pieces(scheme.weave_at(length), scheme.visibility_at(length), first, length)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("length", "queries"), [(1, 1), (150, 150), (150, 1), (150, 37)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_pieces_equal_dense(spec: str, length: int, queries: int, dtype: torch.dtype, tolerance: float) -> None:
    scheme = parse_scheme(spec, 48)
    q, k, v = qkv(length, queries)
    expected = attend_dense(q, k, v, scheme.weave_at(length), scheme.visibility_at(length), rotary(), 0.3)
    got = attend_pieces(
        q.to(dtype), k.to(dtype), v.to(dtype), pieces_of(scheme, length - queries, length), rotary(), 0.3
    )
    assert (got - expected).abs().max() < tolerance


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("queries", [150, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_woven_alibi_is_a_bias_on_w(spec: str, queries: int, dtype: torch.dtype, tolerance: float) -> None:
    """Against a softmax written out here: q.k/sqrt(d) - slope * W(t, i)."""
    scheme, length = parse_scheme(spec, 48), 150
    slopes = torch.tensor([0.5, 0.25, 1 / 256])
    q, k, v = qkv(length, queries)
    t, i = torch.arange(length - queries, length).double()[:, None], torch.arange(length).double()[None]
    scores = q @ k.mT * 0.3 - slopes[:, None, None] * scheme.weave_at(length)(t, i)
    expected = scores.masked_fill(~scheme.visibility_at(length).sees(t, i), -math.inf).softmax(-1) @ v
    got = attend_pieces(
        q.to(dtype), k.to(dtype), v.to(dtype), pieces_of(scheme, length - queries, length), Alibi(slopes), 0.3, block=32
    )
    assert (got - expected).abs().max() < tolerance
    dense = attend_dense(q, k, v, scheme.weave_at(length), scheme.visibility_at(length), Alibi(slopes), 0.3)
    assert (dense - expected).abs().max() < 1e-12


@given(block=st.integers(1, 70), length=st.integers(1, 130), seed=st.integers(0, 9))
def test_the_block_size_does_not_matter(block: int, length: int, seed: int) -> None:
    scheme = parse_scheme("stair(N=10,E=3)", 48)
    q, k, v = qkv(length, length, seed=seed)
    parts = pieces_of(scheme, 0, length)
    whole = attend_pieces(q, k, v, parts, rotary(), 0.3, block=1000)
    assert torch.allclose(attend_pieces(q, k, v, parts, rotary(), 0.3, block=block), whole, atol=1e-11)


@pytest.mark.parametrize("spec", ["origin", "rerope(N=20)", "stair(N=8,E=4)"])
def test_dense_scores_are_rotations_by_complex_numbers(spec: str) -> None:
    """Straight from the definition: pair j of a head is a complex number, turned by W(t, i) * theta_j."""
    scheme = parse_scheme(spec, 48)
    length, dim = 60, 12
    q, k, v = qkv(length, length)
    theta = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    qc, kc = (torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) for x in (q, k))
    out = torch.zeros_like(q)
    for t in range(length):
        weave = torch.tensor([float(scheme.weave_at(length)(t, i)) for i in range(t + 1)], dtype=torch.float64)
        turn = torch.exp(1j * weave[:, None] * theta)
        scores = (qc[:, :, t, None] * turn * kc[:, :, : t + 1].conj()).real.sum(-1) * 0.3
        out[:, :, t] = (scores.softmax(-1)[..., None] * v[:, :, : t + 1]).sum(-2)
    got = attend_dense(q, k, v, scheme.weave_at(length), scheme.visibility_at(length), rotary(), 0.3)
    assert (got - out).abs().max() < 1e-12


def test_partial_rotary_leaves_the_other_dimensions_alone() -> None:
    q, _, _ = qkv(5, 5)
    part = Rotary(torch.tensor([1.0, 0.1], dtype=torch.float64), angle_dtype=torch.float64)
    turned = part.turned(q, torch.arange(5).double())
    assert torch.equal(turned[..., 4:], q[..., 4:]) and not torch.equal(turned[..., :4], q[..., :4])


@given(split=st.integers(1, 39), seed=st.integers(0, 99))
def test_merging_two_halves_is_attention_over_the_whole(split: int, seed: int) -> None:
    q, k, v = qkv(40, 8, seed=seed)
    out, lse = merge_(
        attend(q, k[:, :, :split], v[:, :, :split], 1.0), attend(q, k[:, :, split:], v[:, :, split:], 1.0)
    )
    scores = q @ k.transpose(-1, -2)
    assert torch.allclose(out, scores.softmax(-1) @ v, atol=1e-12)
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-12)


def test_merging_with_nothing_changes_nothing() -> None:
    q, k, v = qkv(6, 4)
    some = attend(q, k, v, 1.0)
    nothing = torch.zeros_like(some[0]), torch.full_like(some[1], -math.inf)
    for a, b in ((some, nothing), (nothing, some)):
        out, lse = merge_((a[0].clone(), a[1].clone()), b)
        assert torch.equal(out, some[0]) and torch.equal(lse, some[1])


def test_dense_refuses_what_would_not_fit() -> None:
    scheme = parse_scheme("origin", 48)
    q = torch.zeros(1, 1, 1, 4)
    k = torch.zeros(1, 1, 9000, 4)
    with pytest.raises(ProbeError, match="at most 8192 tokens, got 9000"):
        attend_dense(q, k, k, scheme.weave, scheme.visibility, rotary(4), 1.0)  # type: ignore[arg-type]


def test_half_precision_stays_near_float64() -> None:
    scheme = parse_scheme("rerope(N=20)", 48)
    q, k, v = qkv(200, 200)
    expected = attend_dense(q, k, v, scheme.weave_at(200), scheme.visibility_at(200), rotary(), 0.3)
    half = torch.bfloat16
    got = attend_pieces(q.to(half), k.to(half), v.to(half), pieces_of(scheme, 0, 200), rotary(), 0.3)
    assert (got.double() - expected).abs().max() < 0.08


def test_the_kernel_without_a_cpu_fast_path_agrees() -> None:
    from probe.attention import kernels

    q, k, v = qkv(30, 7)
    seen = torch.ones(7, 30, dtype=torch.bool).tril(20)
    for mask in (None, Mask(seen).added(q)):
        for fast, plain in zip(
            kernels._cpu_flash(q, k, v, 0.4, mask, False), kernels._plain(q, k, v, 0.4, mask, False), strict=True
        ):
            assert torch.allclose(fast, plain, atol=1e-12)


def planned(spec: str, window: int, length: int, block: int) -> tuple[list[Stage], Planner]:
    planner = Planner(block)
    return plan(pieces_of(parse_scheme(spec, window), 0, length), 0, planner, raw_zero=True), planner


def test_masks_are_shared_between_blocks() -> None:
    """However long the input, a band needs the masks of its first blocks only."""
    masks = [len(planned("rerope(N=100)", 400, length, 64)[1].masks) for length in (1024, 2048)]
    assert masks[1] <= masks[0] + 2  # the ragged end of the last block may be new
