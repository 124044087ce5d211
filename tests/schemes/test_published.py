"""Schemes against their sources: a naive cache that evicts, and the formulas of the papers written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probe.schemes import make_scheme, parse_scheme
from probe.seam.apply import apply_scheme

WINDOW = 64


def ids(length: int) -> Tensor:
    return torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(3))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def turned(x: Tensor, position: float, model: nn.Module) -> Tensor:
    """A head's vectors [..., dim] rotated to a position, pair by pair (j, j + dim/2)."""
    angle = position * model.model.rotary_emb.inv_freq.double()
    first, second = x.chunk(2, -1)
    return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), -1)


def by_hand(model: nn.Module, tokens: Tensor, attend: Callable[[nn.Module, Tensor, list], Tensor]) -> Tensor:
    """The Llama written out, one token at a time: `attend` gets a token's q and its layer's memory of (k, v)."""
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    memories: list[list] = [[] for _ in model.model.layers]
    logits = []
    for token in tokens[0]:
        x = model.model.embed_tokens(token)
        for layer, memory in zip(model.model.layers, memories, strict=True):
            inner, attn = layer.input_layernorm(x), layer.self_attn
            q = attn.q_proj(inner).view(heads, -1)
            k, v = (project(inner).view(kv_heads, -1) for project in (attn.k_proj, attn.v_proj))
            memory.append((k.repeat_interleave(heads // kv_heads, 0), v.repeat_interleave(heads // kv_heads, 0)))
            x = x + attn.o_proj(attend(model, q, memory).reshape(-1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        logits.append(model.lm_head(model.model.norm(x)))
    return torch.stack(logits)[None]


def softmaxed(scores: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attention of one query: scores and values per key, [heads] and [heads, dim]."""
    weights = torch.stack(scores, -1).softmax(-1)
    return torch.einsum("hk,khd->hd", weights, torch.stack(values))


@pytest.mark.parametrize(("x", "y"), [(4, 60), (2, 9), (0, 5), (3, 1)])
@torch.no_grad()
def test_streaming_llm_is_a_cache_that_evicts_token_by_token(
    x: int, y: int, tiny_llama: Callable[..., nn.Module]
) -> None:
    """After every token each layer's cache drops key x once it holds more than x + y; positions are its indices."""
    model, tokens = tiny_llama().double(), ids(90)

    def attend(model: nn.Module, q: Tensor, cache: list) -> Tensor:
        if len(cache) > x + y:
            del cache[x]
        here = turned(q, len(cache) - 1, model)
        scores = [(here * turned(k, n, model)).sum(-1) / math.sqrt(q.shape[-1]) for n, (k, _) in enumerate(cache)]
        return softmaxed(scores, [v for _, v in cache])

    expected = by_hand(model, tokens, attend)
    with apply_scheme(model, make_scheme("streaming-llm", WINDOW, x=x, y=y), exact_angles=True):
        assert relative(model(tokens).logits, expected) < 1e-10


@pytest.mark.parametrize(("n_global", "n_local"), [(3, 64), (5, 20), (10, 4)])
@torch.no_grad()
def test_lm_infinite_is_the_two_branches_of_its_authors(
    n_global: int, n_local: int, tiny_llama: Callable[..., nn.Module]
) -> None:
    """Local branch: d < n_local, ordinary rotation. Global branch: unrotated sinks, and the query at the distance
    limit.
    """
    model, tokens = tiny_llama().double(), ids(90)

    def attend(model: nn.Module, q: Tensor, memory: list) -> Tensor:
        t, scores, values = len(memory) - 1, [], []
        for i, (k, v) in enumerate(memory):
            if t - i < n_local:
                score = turned(q, t, model) * turned(k, i, model)
            elif i < n_global:
                score = turned(q, min(n_local, t), model) * k
            else:
                continue
            scores.append(score.sum(-1) / math.sqrt(q.shape[-1]))
            values.append(v)
        return softmaxed(scores, values)

    expected = by_hand(model, tokens, attend)
    with apply_scheme(model, make_scheme("lm-infinite", WINDOW, n_global=n_global, n_local=n_local), exact_angles=True):
        assert relative(model(tokens).logits, expected) < 1e-10


@pytest.mark.parametrize(("W", "G"), [(16, 4), (17, 5), (8, 3)])
@torch.no_grad()
def test_self_extend_is_its_two_attentions_joined(W: int, G: int, tiny_llama: Callable[..., nn.Module]) -> None:
    """Neighbours at t and i; beyond the window at floor(t/G) + W - floor(W/G) and floor(i/G), in one softmax."""
    model, tokens = tiny_llama().double(), ids(90)

    def attend(model: nn.Module, q: Tensor, memory: list) -> Tensor:
        t, scores = len(memory) - 1, []
        for i, (k, _) in enumerate(memory):
            near = t - i < W
            at = t if near else t // G + W - W // G
            score = turned(q, at, model) * turned(k, i if near else i // G, model)
            scores.append(score.sum(-1) / math.sqrt(q.shape[-1]))
        return softmaxed(scores, [v for _, v in memory])

    expected = by_hand(model, tokens, attend)
    with apply_scheme(model, make_scheme("self-extend", WINDOW, W=W, G=G), exact_angles=True):
        assert relative(model(tokens).logits, expected) < 1e-10


@pytest.mark.parametrize(("s", "c"), [(44, 48), (10, 12), (7, 20)])
@torch.no_grad()
def test_dual_chunk_is_its_three_attentions_joined(s: int, c: int, tiny_llama: Callable[..., nn.Module]) -> None:
    """Chunk by chunk: the query's own, the one before, and all earlier, each with a query position of its own."""
    model, tokens = tiny_llama().double(), ids(90)

    def attend(model: nn.Module, q: Tensor, memory: list) -> Tensor:
        t, scores = len(memory) - 1, []
        chunks = [range(n, min(n + s, t + 1)) for n in range(0, t + 1, s)]
        for age, chunk in enumerate(reversed(chunks)):
            at = [t % s, min(t % s + s, c), c][min(age, 2)]
            scores[:0] = [(turned(q, at, model) * turned(memory[i][0], i % s, model)).sum(-1) for i in chunk]
        return softmaxed([score / math.sqrt(q.shape[-1]) for score in scores], [v for _, v in memory])

    expected = by_hand(model, tokens, attend)
    with apply_scheme(model, make_scheme("dual-chunk", WINDOW, s=s, c=c), exact_angles=True):
        assert relative(model(tokens).logits, expected) < 1e-10


@torch.no_grad()
def test_star_is_blocks_run_alone_behind_the_anchor_and_a_query_over_all_of_their_caches(
    tiny_llama: Callable[..., nn.Module],
) -> None:
    """Phase 1 on the stock model: every block after a copy of the first. Phase 2: the query over the kept caches."""
    model, tokens, B, L = tiny_llama().double(), ids(70), 16, 6
    context = tokens[:, :-L]
    with apply_scheme(model, make_scheme("star", WINDOW, B=B, L=L), exact_angles=True):
        got = model(tokens).logits
    # The stock model takes positions, so that the copy of the anchor keeps its own and the block too.
    expected = [model(context[:, :B]).logits]
    for start in range(B, context.shape[1], B):
        block = context[:, start : start + B]
        positions = torch.cat([torch.arange(B), torch.arange(start, start + block.shape[1])])[None]
        together = torch.cat([context[:, :B], block], dim=1)
        expected.append(model(together, position_ids=positions).logits[:, B:])
    phase_1 = torch.cat(expected, dim=1)
    assert relative(got[:, : context.shape[1]], phase_1) < 1e-5  # the stock model's angles are float32
    # Phase 2 needs the whole: its logits differ both from blocks alone and from full attention.
    assert relative(got[:, -1], model(tokens).logits[:, -1]) > 1e-4


@torch.no_grad()
def test_bottom_attention_leaves_the_context_alone_and_shows_the_end_every_key(
    tiny_llama: Callable[..., nn.Module],
) -> None:
    model, tokens = tiny_llama(num_hidden_layers=1).double(), ids(120)
    logits = {}
    specs = ("lm-infinite(n_global=3,n_local=20)", "stair(N=12,E=5)")
    for spec in (*specs, f"{specs[0]}+bottom(L=10,N=12,E=5)"):
        with apply_scheme(model, parse_scheme(spec, WINDOW)):
            logits[spec] = model(tokens).logits
    base, stair, both = logits.values()
    assert relative(both[:, :110], base[:, :110]) < 1e-12
    assert relative(both[:, 110:], stair[:, 110:]) < 1e-12  # one layer: the keys are those of the embeddings
    assert relative(base[:, 110:], stair[:, 110:]) > 1e-3
