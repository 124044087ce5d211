"""Positions that the caller gives count as in the stock model, and caches are continued by whoever filled them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from tiny_models import relative, token_ids
from torch import nn
from transformers import DynamicCache

from probe.errors import FieldError, ProbeError
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme
from probe.seam.given import MAX_LENGTH
from probe.seam.observers import observed

WINDOW = 64
RUN = torch.arange(30)
POSITIONS = {
    "packed": torch.cat((RUN, RUN)),
    "packed in three": torch.cat((RUN[:17], RUN, RUN[:13])),
    "skip": torch.cat((RUN, RUN + 1000)),
    "offset": torch.cat((RUN, RUN + 30)) + 5,
    "interpolated": torch.cat((RUN, RUN + 30)) / 2,
}
SPECS = [
    "rerope(N=20)", "leaky-rerope(w=10)+logn", "stair(N=20,E=7)", "self-extend", "dual-chunk", "streaming-llm",
    "lm-infinite", "pi", "ntk", "dynamic-ntk", "yarn",
]  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_origin_is_the_stock_model_at_any_positions(
    name: str, masked: bool, cached: bool, tiny_llama: Callable[..., nn.Module]
) -> None:
    """Without a mask and a cache a jump begins a sequence of its own in the stock model; else all that came before is
    seen.
    """
    model, tokens, positions = tiny_llama(), token_ids(2, 60), POSITIONS[name][None]
    call = {
        "position_ids": positions,
        "use_cache": cached,
        "attention_mask": torch.ones_like(tokens) if masked else None,
    }
    expected, usual = model(tokens, **call).logits, model(tokens).logits
    with apply_scheme(model, parse_scheme("origin", WINDOW)):
        # Angles of position 1029 are known to 6e-5 in the stock model's float32.
        assert relative(model(tokens, **call).logits, expected) < 5e-5
    # An offset moves nothing in RoPE; everything else must be seen to have counted.
    assert (relative(expected, usual) > 0.1) == (name != "offset")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["skip", "offset", "interpolated"])
@torch.no_grad()
def test_a_weave_is_of_the_given_positions(spec: str, name: str, tiny_llama: Callable[..., nn.Module]) -> None:
    """The first layer's attention output in float64, from its weights and W(t, i) of the positions, key by key."""
    model, tokens, positions = tiny_llama().double(), token_ids(1, 60), POSITIONS[name]
    scheme, length = parse_scheme(spec, WINDOW), int(positions.max()) + 1
    layer, seen = model.model.layers[0], []
    handle = layer.self_attn.o_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with apply_scheme(model, scheme, exact_angles=True):
        model(tokens, position_ids=positions[None], attention_mask=torch.ones_like(tokens))
    handle.remove()
    theta = model.model.rotary_emb.inv_freq.double() * scheme.frequencies.factors(12, 10000.0, length, WINDOW)
    x = layer.input_layernorm(model.model.embed_tokens(tokens))[0]
    heads, kv_heads, dim = 4, 2, 12
    q = (x @ layer.self_attn.q_proj.weight.T).view(-1, heads, dim)
    k = (x @ layer.self_attn.k_proj.weight.T).view(-1, kv_heads, dim)
    v = (x @ layer.self_attn.v_proj.weight.T).view(-1, kv_heads, dim)
    weave, visibility = scheme.weave_at(length, length), scheme.visibility_at(length, length)
    expected = torch.zeros(60, heads, dim, dtype=torch.float64)
    for t in range(60):
        at, before = positions[t], positions[: t + 1]
        keep = visibility.sees(at.expand(t + 1), before)
        moved = weave(at.double().expand(t + 1), before.double())
        factor = scheme.scale.factors(at[None], length, scheme.window)
        for h in range(heads):
            qc = torch.complex(q[t, h, : dim // 2], q[t, h, dim // 2 :])
            kc = torch.complex(k[: t + 1, h // 2, : dim // 2], k[: t + 1, h // 2, dim // 2 :])
            scores = (qc * torch.exp(1j * moved[:, None] * theta) * kc.conj()).real.sum(-1) / dim**0.5
            scores = scores * (1.0 if factor is None else float(factor))
            expected[t, h] = scores.masked_fill(~keep, float("-inf")).softmax(-1) @ v[: t + 1, h // 2]
    assert (seen[0][0] - expected.reshape(60, -1)).abs().max() < 1e-10


@pytest.mark.parametrize("spec", ["origin", "rerope(N=20)", "stair(N=20,E=7)", "mesa"])
@torch.no_grad()
def test_positions_that_are_the_usual_ones_change_nothing(spec: str, tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), token_ids(2, 150)
    mask = torch.ones_like(tokens)
    mask[1, :40] = 0
    numbers = torch.arange(150)[None]
    trained = (mask.cumsum(-1) - 1).clamp(min=0)
    with apply_scheme(model, parse_scheme(spec, WINDOW)):
        assert torch.equal(model(tokens, position_ids=numbers).logits, model(tokens).logits)
        padded = model(tokens, attention_mask=mask).logits
        for positions in (numbers, trained):
            mine = model(tokens, attention_mask=mask, position_ids=positions).logits
            assert torch.equal(mine[mask.bool()], padded[mask.bool()])


@pytest.mark.parametrize("spec", ["origin", "rerope(N=20)", "stair(N=20,E=7)"])
@torch.no_grad()
def test_decoding_goes_on_at_the_positions_given(spec: str, tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama().double(), token_ids(1, 60)
    positions, mask = POSITIONS["skip"][None], torch.ones_like(tokens)
    with apply_scheme(model, parse_scheme(spec, WINDOW)):
        whole = model(tokens, position_ids=positions, attention_mask=mask).logits
        cache = DynamicCache(config=model.config)
        parts = zip(tokens.split([28, 20, *[1] * 12], 1), positions.split([28, 20, *[1] * 12], 1), strict=True)
        steps = [model(ids, position_ids=at, past_key_values=cache).logits for ids, at in parts]
    assert relative(torch.cat(steps, dim=1), whole) < 1e-5


@torch.no_grad()
def test_packed_sequences_are_each_alone_under_a_weave(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama().double(), token_ids(1, 200)
    positions = torch.cat((torch.arange(120), torch.arange(80)))[None]
    with apply_scheme(model, parse_scheme("rerope(N=20)", WINDOW)):
        together = model(tokens, position_ids=positions, use_cache=False).logits
        alone = [model(part).logits for part in tokens.split([120, 80], 1)]
    assert relative(together, torch.cat(alone, 1)) < 1e-5


@torch.no_grad()
def test_what_no_scheme_can_honour_is_an_error(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), token_ids(1, 60)
    with apply_scheme(model, parse_scheme("rerope", WINDOW)):
        with pytest.raises(FieldError, match=r"position_ids: expected shape \(1, 60\), got \(1, 59\)"):
            model(tokens, position_ids=torch.arange(59)[None])
        with pytest.raises(FieldError, match="positions that do not fall from token to token"):
            model(tokens, position_ids=POSITIONS["packed"][None], attention_mask=torch.ones_like(tokens))
        many = torch.zeros(1, MAX_LENGTH + 1, dtype=torch.long)
        with pytest.raises(FieldError, match=f"at most {MAX_LENGTH} tokens with positions"):
            model(many, position_ids=torch.arange(MAX_LENGTH + 1)[None] * 2)
    with (
        apply_scheme(model, parse_scheme("rerope", WINDOW)),
        observed(model, lambda block: None),
        pytest.raises(FieldError, match="position_ids"),
    ):
        model(tokens, position_ids=POSITIONS["skip"][None])


@torch.no_grad()
def test_a_cache_is_continued_by_whoever_filled_it(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), token_ids(1, 40)
    rerope, stair = parse_scheme("rerope(N=20)", WINDOW), parse_scheme("stair(N=20,E=7)", WINDOW)
    stock = model(tokens, use_cache=True).past_key_values
    with apply_scheme(model, rerope):
        with pytest.raises(ProbeError, match="filled under the model as it is, whose keys are rotated"):
            model(tokens[:, :1], past_key_values=stock)
        mine = model(tokens, use_cache=True).past_key_values
        own = DynamicCache(config=model.config)
        model(tokens, past_key_values=own)
    for cache in (mine, own):
        with pytest.raises(ProbeError, match="filled under a scheme and holds keys without positions"):
            model(tokens[:, :1], past_key_values=cache)
    with apply_scheme(model, stair), pytest.raises(ProbeError, match=r"filled under scheme rerope\(N=20"):
        model(tokens[:, :1], past_key_values=mine)
    with apply_scheme(model, rerope):
        whole = model(torch.cat((tokens, tokens[:, :1]), 1)).logits[:, -1]
        assert relative(model(tokens[:, :1], past_key_values=mine).logits[:, -1], whole) < 1e-5


@torch.no_grad()
def test_alibi_takes_no_positions() -> None:
    config = transformers.FalconConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True
    )
    model, tokens = transformers.FalconForCausalLM(config).eval(), token_ids(1, 60)
    with (
        apply_scheme(model, parse_scheme("origin", WINDOW)),
        pytest.raises(FieldError, match="position_ids: expected none; ALiBi takes distances from the order"),
    ):
        model(tokens, position_ids=POSITIONS["skip"][None])
