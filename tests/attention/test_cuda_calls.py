"""The calls that are made on a GPU, on a pretended one: the kernels' contracts, results, memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pretend_cuda import DeviceError, exact, held, pretend_cuda
from torch import Tensor

from probe.attention.dense import attend_dense
from probe.attention.encoding import Alibi, Encoding
from probe.attention.kernels import Mask, _plain, attend
from probe.attention.merged import attend_pieces
from probe.attention.rotary import Rotary
from probe.schemes import parse_scheme
from probe.schemes.pieces import compile_pieces

SPECS = [
    "origin", "rerope(N=20)", "leaky-rerope(w=9)", "stair(N=8,E=20)", "stair(N=8,E=3)", "self-extend(W=16,G=3)",
    "dual-chunk(s=40,c=60)", "streaming-llm(x=3,y=40)", "lm-infinite(n_global=60,n_local=9)", "star(B=40,L=30)",
    "star(B=40)+stair(N=5,E=7)", "streaming-llm+bottom(L=20,N=5,E=4)",
]  # fmt: skip
ROTARY = Rotary(10000.0 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16), angle_dtype=torch.float64)
ALIBI = Alibi(torch.tensor([0.5, 0.25, 0.125, 1 / 256]))


def shared(queries: int, keys: int, key_heads: int = 2, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of 4 heads as a projection lays them out, and keys and values as views of a larger buffer."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(batch, *shape, 16, generator=generator, dtype=torch.float64)  # noqa: E731
    query = draw(queries, 4).transpose(1, 2)
    return query, draw(key_heads, keys + 9)[:, :, :keys], draw(key_heads, keys + 9)[:, :, :keys]


def on_gpu(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The tensors on the first device, in their layout."""
    return [x.to("cuda:0", dtype) for x in tensors]


def refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises((DeviceError, RuntimeError), match=match):
        call()


def test_the_pretence_refuses_what_a_gpu_would() -> None:
    flash, efficient = (
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_efficient_attention,
    )
    with pretend_cuda():
        here, there = torch.ones(2, 3), torch.ones(2, 3, device="cuda:0")
        assert there.is_cuda and there.device == torch.device("cuda:0")
        refused(lambda: here + there, "expected all tensors")
        refused(lambda: there + there.to("cuda:1"), "one device")
        refused(lambda: there.index_select(0, torch.tensor([1])), "expected all tensors")
        assert held(there + torch.tensor(2.0)).eq(3).all() and held(there[torch.tensor([1])]).shape == (1, 3)
        q, k, v = (torch.ones(1, heads, 5, 16, dtype=torch.bfloat16, device="cuda:0") for heads in (4, 2, 2))
        flash(q, k, v)
        refused(lambda: flash(q.float(), k.float(), v.float()), "fp16 and bf16")
        refused(lambda: flash(q[..., :12], k[..., :12], v[..., :12]), "multiple of 8")
        refused(lambda: flash(q, k.mT.contiguous().mT, v), "contiguous last")
        refused(lambda: efficient(q, k, v, None, True), "as many heads")
        bias = lambda keys: torch.zeros(1, 4, 5, keys, device="cuda:0", dtype=torch.bfloat16)  # noqa: E731
        efficient(q, q, q, bias(8)[..., :5], True)
        refused(lambda: efficient(q, q, q, bias(5), True), "strideH|strideM")
        refused(lambda: efficient(q, q, q, bias(8)[..., 1:6], True), "attn_bias_ptr")
        refused(lambda: efficient(q, q, q, bias(8)[..., :5].float(), True), "invalid dtype")
        assert (
            efficient(q, q, q, None, True)[1].shape == (1, 4, 32) and efficient(q, q, q, None, False)[1].shape[-1] == 0
        )


def test_waits_of_the_host_are_counted() -> None:
    with pretend_cuda() as counts:
        x = torch.ones(3, device="cuda:0")
        assert counts.waits == []
        for look in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x.nonzero(), lambda: x.cpu(),
                     lambda: torch.ones(3).to("cuda:0"),
                     lambda: x[torch.tensor([0])], lambda: x[x > 0], lambda: x.tolist()):  # fmt: skip
            counts.reset()
            look()
            assert len(counts.waits) == 1
        counts.reset()
        torch.ones(3).to("cuda:0", non_blocking=True)
        assert counts.waits == [] and counts.copies == 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["whole", "causal", "masked", "biased", "both"])
def test_a_call_is_right(kind: str, key_heads: int, batch: int) -> None:
    q, k, v = shared(37, 37, key_heads, batch)
    seen = torch.ones(37, 37, dtype=torch.bool).tril(5)
    seen[7] = False
    mask = Mask(seen) if kind in ("masked", "both") else None
    bias = torch.linspace(-3, 0, 37) * torch.tensor([1.0, 2, 3, 4])[:, None] if kind in ("biased", "both") else None
    added = torch.zeros(37, 37, dtype=torch.float64) if mask is None else mask.added(q)
    added = added if bias is None else added + bias[None, :, None]
    out, lse = _plain(q, k, v, 0.3, None if kind == "causal" else added, kind == "causal")
    if mask is not None:
        out, lse = mask.dropped((out, lse))
    # A bias is added in float32.
    most = 1e-5 if bias is not None else 1e-12
    with pretend_cuda() as counts, exact(torch.float64):
        got = attend(*on_gpu(q, k, v), 0.3, mask, None if bias is None else bias.to("cuda:0"), kind == "causal")
        assert len(counts.calls) == 1
        assert ("flash" if kind in ("whole", "causal") else "efficient") in counts.calls[0]
    assert (held(got[0]) - out).abs().max() < most
    assert (held(got[1]) - lse).nan_to_num(0.0).abs().max() < most and torch.equal(
        held(got[1]) > -torch.inf, lse > -torch.inf
    )


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("encoding", [ROTARY, ALIBI], ids=["rotary", "alibi"])
@pytest.mark.parametrize(("queries", "block"), [(150, 8), (101, None), (1, None)])
def test_pieces_equal_dense(spec: str, encoding: Encoding, queries: int, block: int | None) -> None:
    scheme, length = parse_scheme(spec, 48), 150
    weave, visibility = scheme.weave_at(length), scheme.visibility_at(length)
    q, k, v = shared(queries, length)
    expected = attend_dense(q, k, v, weave, visibility, encoding, 0.3)
    pieces = compile_pieces(weave, visibility, length - queries, length)
    with pretend_cuda() as counts:
        with exact(torch.float64):
            gpu = on_gpu(q, k, v)
            for layer in range(2):  # the second layer finds the plan of the first
                counts.reset()
                got = attend_pieces(*gpu, pieces, encoding, 0.3, block=block)
                assert (held(got) - expected).abs().max() < (1e-5 if encoding.biased else 1e-10), layer
                assert counts.waits == []
        half = attend_pieces(*on_gpu(q, k, v, dtype=torch.bfloat16), pieces, encoding, 0.3, block=block)
    assert half.dtype == torch.bfloat16 and (held(half).double() - expected).abs().max() < 0.1


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_is_as_precise_in_half_types_as_in_others(device: str, dtype: torch.dtype) -> None:
    """In bfloat16 a bias of some -500 is rounded to a multiple of 2, so that the nearest keys would be alike or out of
    order.
    """
    length, scheme = 1300, parse_scheme("origin", 48)
    q, k, v = (x.to(dtype) for x in shared(length, length, 4, 1))
    weave, visibility = scheme.weave_at(length), scheme.visibility_at(length)
    expected = attend_dense(q.double(), k.double(), v.double(), weave, visibility, ALIBI, 0.3)
    with pretend_cuda():
        got = attend_pieces(
            q.to(device), k.to(device), v.to(device), compile_pieces(weave, visibility, 0, length), ALIBI, 0.3
        )
    assert got.dtype == dtype and (held(got).double() - expected).abs().max() < 0.03


def test_shared_keys_are_not_copied_for_each_head() -> None:
    """One masked call over many keys: its memory is the mask and the outputs."""
    with pretend_cuda(meta=True) as counts:
        q = torch.empty(1, 32, 64, 128, dtype=torch.bfloat16, device="cuda:0")
        k = torch.empty(1, 8, 1 << 16, 128, dtype=torch.bfloat16, device="cuda:0")
        mask = Mask(torch.ones(64, 1 << 16, dtype=torch.bool).tril(60000))
        counts.reset()
        attend(q, k, k, 0.1, mask)
        assert counts.largest < k.numel() * 2 / 4


@pytest.mark.parametrize("keys", [1000, 200_000])
def test_a_step_of_decoding_takes_few_launches_and_no_second_cache(keys: int) -> None:
    scheme = parse_scheme("stair(N=8,E=20)", 48)
    pieces = compile_pieces(scheme.weave_at(keys), scheme.visibility_at(keys), keys - 1, keys)
    with pretend_cuda(meta=True) as counts:
        q = torch.empty(1, 32, 1, 128, dtype=torch.bfloat16, device="cuda:0")
        k = torch.empty(1, 8, keys, 128, dtype=torch.bfloat16, device="cuda:0")
        rotary = Rotary(torch.ones(64))
        for _ in range(2):
            counts.reset()
            attend_pieces(q, k, k, pieces, rotary, 0.1)
    assert counts.launches < 120 and counts.waits == []
    if keys > 1000:
        assert counts.peak - 2 * q.numel() - 2 * k.numel() < k.numel()
