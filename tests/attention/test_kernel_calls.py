"""The calls that pieces become, decoding, shared key heads: against the dense reference, and against what a call may
visit.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from probe.attention.blocks import RUN, attend_piece_blocks, piece_blocks, queries_at_once
from probe.attention.decode import attend_one
from probe.attention.dense import ScoreBlock, Softmax, attend_dense
from probe.attention.encoding import Alibi, Encoding
from probe.attention.kernels import Mask, _plain, aligned, attend
from probe.attention.merged import attend_pieces
from probe.attention.plan import Planner, Stage, plan
from probe.attention.rotary import Rotary
from probe.errors import ProbeError
from probe.schemes import parse_scheme
from probe.schemes.pieces import Compiled, compile_pieces

SPECS = [
    "origin", "nope", "rerope(N=20)", "leaky-rerope(w=9)", "stair(N=8,E=20)", "stair(N=8,E=3)", "self-extend(W=16,G=3)",
    "dual-chunk(s=40,c=60)", "streaming-llm(x=3,y=40)", "lm-infinite(n_global=60,n_local=9)", "star(B=40,L=30)",
    "star(B=40)+stair(N=5,E=7)", "streaming-llm+bottom(L=20,N=5,E=4)",
]  # fmt: skip
ROTARY = Rotary(10000.0 ** -(torch.arange(0, 12, 2, dtype=torch.float64) / 12), angle_dtype=torch.float64)
LOUD = Rotary(ROTARY.inv_freq, amplitude=1.2, angle_dtype=torch.float64)
STILL = Rotary(torch.zeros(6, dtype=torch.float64), angle_dtype=torch.float64)
ALIBI = Alibi(torch.tensor([0.5, 0.25, 0.125, 1 / 256]))


def shared(length: int, queries: int, key_heads: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of 4 heads, and keys and values as views of a larger buffer."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda heads, n: torch.randn(2, heads, n, 12, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(4, queries), draw(key_heads, length + 9)[:, :, :length], draw(key_heads, length + 9)[:, :, :length]


def check(spec: str, length: int, queries: int, encoding: Encoding, key_heads: int, block: int | None) -> None:
    scheme = parse_scheme(spec, 48)
    weave, visibility = scheme.weave_at(length), scheme.visibility_at(length)
    q, k, v = shared(length, queries, key_heads)
    expected = attend_dense(q, k, v, weave, visibility, encoding, 0.3)
    pieces = compile_pieces(weave, visibility, length - queries, length)
    for _ in range(2):  # the second layer finds the plan of the first
        assert (attend_pieces(q, k, v, pieces, encoding, 0.3, block=block) - expected).abs().max() < 1e-10
    rows, scores = zip(*piece_blocks(q, k, pieces, encoding, 0.3, block or 128), strict=True)
    assert rows[0] == length - queries and sum(part.shape[2] for part in scores) == queries
    out = torch.cat(scores, 2).softmax(-1) @ v.repeat_interleave(4 // key_heads, 1)
    assert (out - expected).abs().max() < 1e-10
    half = [x.bfloat16() for x in (q, k, v)]
    got = attend_pieces(*half, Compiled(pieces), encoding, 0.3, block=block)
    assert got.dtype == torch.bfloat16 and (got.double() - expected).abs().max() < 0.1


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("encoding", [ROTARY, LOUD, STILL, ALIBI], ids=["rotary", "loud", "still", "alibi"])
@pytest.mark.parametrize(("queries", "block"), [(230, 8), (101, 16), (40, 5), (230, None), (1, None)])
def test_every_way_of_cutting_calls_equals_dense(
    spec: str, encoding: Encoding, queries: int, block: int | None
) -> None:
    check(spec, 230, queries, encoding, 2, block)


@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("queries", [90, 1])
@pytest.mark.parametrize("encoding", [ROTARY, ALIBI], ids=["rotary", "alibi"])
def test_key_heads_may_be_shared_by_any_number_of_query_heads(key_heads: int, queries: int, encoding: Encoding) -> None:
    check("stair(N=8,E=20)", 90, queries, encoding, key_heads, 8 if queries > 1 else None)


@given(
    length=st.integers(2, 1300), n=st.integers(0, 80), every=st.integers(1, 90), spec=st.sampled_from(["stair", "rest"])
)
def test_decoding_equals_dense_at_any_length(length: int, n: int, every: int, spec: str) -> None:
    text = f"stair(N={n},E={every})" if spec == "stair" else f"self-extend(W={n + 1},G={every})"
    check(text, length, 1, ROTARY, 2, None)


def stages(spec: str, length: int, block: int, window: int = 48) -> list[Stage]:
    scheme = parse_scheme(spec, window)
    pieces = compile_pieces(scheme.weave_at(length), scheme.visibility_at(length), 0, length)
    return plan(pieces, 0, Planner(block), raw_zero=True)


def visited(found: list[Stage]) -> int:
    """Scores that the calls compute, those behind a mask included."""
    calls = [(stage, call) for stage in found for call in stage.calls]
    sizes = [(len(stage.q_pos[call.rows]), call.keys.stop - call.keys.start, call.causal) for stage, call in calls]
    return sum(n * (n + 1) // 2 if causal else n * keys for n, keys, causal in sizes)


@pytest.mark.parametrize(
    ("spec", "most"),
    [("origin", 1.0), ("dual-chunk(s=300,c=400)", 1.0), ("rerope(N=128)", 1.1), ("self-extend(W=256,G=4)", 1.1),
     ("stair(N=128,E=25)", 1.3)],
)  # fmt: skip
def test_calls_compute_hardly_more_than_what_is_seen(spec: str, most: float) -> None:
    length = 2400
    assert 1.0 <= visited(stages(spec, length, 32, 400)) / (length * (length + 1) / 2) <= most


def test_the_model_as_trained_is_one_causal_call() -> None:
    (stage,) = stages("origin", 300, 16)
    (call,) = stage.calls
    assert call.causal and call.mask is None and call.rows == slice(0, 300)


def test_chunks_are_called_whole_and_cut_at_their_borders() -> None:
    own, _, far = stages("dual-chunk(s=40,c=60)", 200, 8)
    assert [(call.rows, call.causal) for call in own.calls] == [(slice(at, at + 40), True) for at in range(0, 200, 40)]
    assert all(call.mask is None for call in far.calls)
    assert own.update == slice(0, 200) and far.update is None  # keys are turned once for all three


def test_keys_at_position_0_are_used_raw() -> None:
    _, far = stages("rerope(N=20)", 200, 8)
    assert far.raw and far.update is None


def test_the_stair_turns_keys_once_for_each_of_its_classes() -> None:
    found = stages("stair(N=8,E=20)", 600, 16)
    keys = {id(stage.only): len(stage.only) for stage in found if stage.only is not None}
    assert sum(keys.values()) == 600 and 1 < len(keys) < 20


def test_masks_of_the_stair_are_the_ends_of_a_few() -> None:
    """Twice as long an input needs longer masks, not more of them."""

    def masks(length: int) -> int:
        return len({id(getattr(c.mask, "whole", None) or c.mask) for s in stages("stair(N=8,E=10)", length, 16)
                    for c in s.calls})  # fmt: skip

    assert masks(1600) < 2 * masks(800)


def test_a_query_that_sees_nothing_has_no_weight() -> None:
    q, k, v = shared(6, 3)
    seen = torch.tensor([[True] * 6, [False] * 6, [False, True] * 3])
    out, lse = attend(q, k, v, 0.3, Mask(seen))
    assert (out[:, :, 1] == 0).all() and (lse[:, :, 1] == -torch.inf).all()
    assert torch.isfinite(lse[:, :, [0, 2]]).all()


@given(causal=st.booleans(), masked=st.booleans(), biased=st.booleans())
def test_the_fused_kernel_and_the_matrix_product_agree(causal: bool, masked: bool, biased: bool) -> None:
    q, k, v = shared(20, 20)
    added = torch.zeros(20, 20, dtype=torch.float64)
    if masked and not causal:
        added = added.masked_fill(torch.ones(20, 20, dtype=torch.bool).triu(7), -torch.inf)
    if biased:
        added = added + torch.linspace(-3, 0, 20, dtype=torch.float64) * torch.ones(1, 4, 1, 1, dtype=torch.float64)
    plain = _plain(q, k, v, 0.3, None if causal else added, causal)
    keys, values = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = q @ keys.mT * 0.3 + (torch.full((20, 20), -torch.inf).triu(1).double() if causal else added)
    assert (plain[0] - scores.softmax(-1) @ values).abs().max() < 1e-12
    assert (plain[1] - scores.logsumexp(-1)).abs().max() < 1e-12


@given(width=st.integers(1, 40))
def test_rows_of_a_mask_begin_at_multiples_of_8(width: int) -> None:
    added = torch.randn(5, width)
    padded = aligned(added)
    assert torch.equal(padded, added) and padded.stride(0) % 8 == 0 and padded.stride(1) == 1


def test_a_backward_pass_is_refused() -> None:
    q, k, v = (x.requires_grad_() for x in shared(9, 9))
    pieces = compile_pieces(
        parse_scheme("rerope(N=3)", 48).weave_at(9), parse_scheme("origin", 48).visibility_at(9), 0, 9
    )
    out = attend_pieces(q, k, v, pieces, ROTARY, 0.3)
    with pytest.raises(ProbeError, match="expected inference only, got a backward pass"):
        out.sum().backward()


def test_the_cache_is_not_written_to() -> None:
    q, k, v = shared(300, 1)
    before = k.clone(), v.clone()
    pieces = compile_pieces(
        parse_scheme("leaky-rerope(w=9)", 48).weave_at(300), parse_scheme("origin", 48).visibility, 299, 300
    )  # type: ignore[arg-type]
    attend_one(q, k, v, pieces, ROTARY, 0.3)
    assert torch.equal(k, before[0]) and torch.equal(v, before[1])


@pytest.mark.parametrize(
    "spec", ["origin", "rerope(N=20)", "stair(N=8,E=3)", "streaming-llm(x=3,y=40)", "star(B=40,L=30)"]
)
@pytest.mark.parametrize("queries", [90, 17, 1])
def test_sinks_and_soft_capped_scores_equal_dense(spec: str, queries: int) -> None:
    """One more term in every row's denominator, and scores bent before the softmax: written out for each pair here."""
    scheme, length = parse_scheme(spec, 48), 90
    weave, visibility = scheme.weave_at(length), scheme.visibility_at(length)
    q, k, v = shared(length, queries)
    pieces = compile_pieces(weave, visibility, length - queries, length)
    sinks = torch.tensor([0.5, -1.0, 3.0, 0.0], dtype=torch.float64)
    t, i = torch.arange(length - queries, length), torch.arange(length)
    relative = weave(t.double()[:, None], i.double()[None])
    scores = ROTARY.scores(q, k.repeat_interleave(2, 1), relative, 0.3)
    seen = visibility.sees(t[:, None], i[None])
    values = v.repeat_interleave(2, 1)
    for softmax in (Softmax(sinks=sinks), Softmax(softcap=0.7), Softmax(0.7, sinks)):
        bent = scores if softmax.softcap is None else 0.7 * torch.tanh(scores / 0.7)
        powers = bent.exp() * seen
        more = 0 if softmax.sinks is None else sinks.exp()[:, None, None]
        expected = (powers @ values) / (powers.sum(-1, keepdim=True) + more)
        dense = attend_dense(q, k, v, weave, visibility, ROTARY, 0.3, softmax)
        assert (dense - expected).abs().max() < 1e-12
        assert (attend_piece_blocks(q, k, v, pieces, ROTARY, 0.3, softmax) - expected).abs().max() < 1e-12
        if softmax.softcap is None:
            for block in (None, 16):
                got = attend_pieces(q, k, v, pieces, ROTARY, 0.3, block=block, sinks=sinks)
                assert (got - expected).abs().max() < 1e-12


@given(
    spec=st.sampled_from(SPECS), length=st.integers(2, 120), since=st.integers(0, 130), period=st.integers(1, 70),
    block=st.integers(1, 40), data=st.data(),
)  # fmt: skip
def test_a_sample_of_queries_has_the_scores_of_all(
    spec: str, length: int, since: int, period: int, block: int, data: st.DataObject
) -> None:
    """The first queries of every period from the start on, by position, and no other; each as it is among all."""
    queries = data.draw(st.integers(1, length))
    scheme, (q, k, _) = parse_scheme(spec, 48), shared(length, queries)
    first = length - queries
    pieces = compile_pieces(scheme.weave_at(length), scheme.visibility_at(length), first, length)
    whole = torch.cat([part for _, part in piece_blocks(q, k, pieces, ROTARY, 0.3)], 2)
    seen: list[int] = []
    for start, part in piece_blocks(q, k, pieces, ROTARY, 0.3, block, since, period):
        seen += range(start, start + part.shape[2])
        torch.testing.assert_close(part, whole[:, :, start - first : start - first + part.shape[2]])
    assert seen == [t for t in range(first, length) if t >= since and (t - since) % period < RUN]


def test_as_many_queries_at_once_as_the_allocator_bears() -> None:
    assert (
        queries_at_once(1, 8, 8192) == 64 and queries_at_once(1, 8, 100) == 128 and queries_at_once(4, 64, 1 << 20) == 1
    )


@pytest.mark.parametrize(
    "softmax", [Softmax(), Softmax(5.0), Softmax(sinks=torch.tensor([0.3, -1.0, 2.0, 0.0]).double())]
)
@pytest.mark.parametrize("large", [0.0, 500.0, -500.0])
def test_what_a_block_says_of_its_scores(softmax: Softmax, large: float) -> None:
    """Entropy, log-sum-exp and keys seen, against their definitions; with queries that see one key, or none."""
    scores = torch.randn(2, 4, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4 + large
    scores[:, :, 0] = float("-inf")
    scores[:, :, 1, 1:] = float("-inf")
    scores[:, :, 2, ::2] = float("-inf")
    block = ScoreBlock(1, 3, 8, softmax.capped(scores), softmax)
    torch.testing.assert_close(block.lse, block.scores.logsumexp(-1))
    torch.testing.assert_close(block.entropy, torch.special.entr(block.weights).sum(-1), atol=1e-9, rtol=1e-9)
    assert (
        block.seen[0, 0].tolist() == [0, 1, 4, 9, 9, 9]
        and block.entropy[0, 0, 0] == 0
        and (block.weights[:, :, 0] == 0).all()
    )
    single = ScoreBlock(1, 3, 8, block.scores.float(), Softmax())
    exact = torch.special.entr(single.scores.double().softmax(-1)).sum(-1)[:, :, 1:]
    assert (single.entropy[:, :, 1:] - exact).abs().max() < (1e-5 if large == 0 else 2e-3)
