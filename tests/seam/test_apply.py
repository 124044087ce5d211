"""A scheme on a model: exact where it must be, and no trace afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from tiny_models import TINY, WINDOW, relative, token_ids
from torch import nn

from probe.errors import ProbeError
from probe.schemes import PRESETS, make_scheme, parse_scheme
from probe.seam.apply import apply_scheme

SPECS = [
    "rerope(N=20)", "dynamic-ntk", "stair(N=20,E=7)", "leaky-rerope(w=10)+logn", "dual-chunk",
    "streaming-llm+bottom(L=9)",
]  # fmt: skip


@torch.no_grad()
def test_rerope_with_grouped_queries_equals_a_layer_written_out(tiny_llama: Callable[..., nn.Module]) -> None:
    """The first layer's attention output in float64, from its weights and W(d) = min(d, N), key by key."""
    model, tokens, N = tiny_llama().double(), token_ids(1, 90), 17
    layer = model.model.layers[0]
    seen = []
    handle = layer.self_attn.o_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with apply_scheme(model, make_scheme("rerope", 64, N=N), exact_angles=True):
        model(tokens)
    handle.remove()

    x = layer.input_layernorm(model.model.embed_tokens(tokens))[0]
    heads, kv_heads, dim = 4, 2, 12
    q = (x @ layer.self_attn.q_proj.weight.T).view(-1, heads, dim)
    k = (x @ layer.self_attn.k_proj.weight.T).view(-1, kv_heads, dim)
    v = (x @ layer.self_attn.v_proj.weight.T).view(-1, kv_heads, dim)
    theta = model.model.rotary_emb.inv_freq.double()
    expected = torch.zeros(90, heads, dim, dtype=torch.float64)
    for h in range(heads):
        for t in range(90):
            qc = torch.complex(q[t, h, : dim // 2], q[t, h, dim // 2 :])
            kc = torch.complex(k[: t + 1, h // 2, : dim // 2], k[: t + 1, h // 2, dim // 2 :])
            distance = torch.tensor([min(t - i, N) for i in range(t + 1)], dtype=torch.float64)
            scores = (qc * torch.exp(1j * distance[:, None] * theta) * kc.conj()).real.sum(-1) / dim**0.5
            expected[t, h] = scores.softmax(-1) @ v[: t + 1, h // 2]
    assert (seen[0][0] - expected.reshape(90, -1)).abs().max() < 1e-12


@torch.no_grad()
def test_dynamic_ntk_is_the_stock_models_own(tiny_llama: Callable[..., nn.Module]) -> None:
    """transformers' rope_type 'dynamic' with factor a is the same formula."""
    tokens = token_ids(1, 200)
    stock = tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    ours = tiny_llama()
    ours.load_state_dict(stock.state_dict())
    expected = stock(tokens).logits
    with apply_scheme(ours, make_scheme("dynamic-ntk", 64, a=2.0)):
        assert relative(ours(tokens).logits, expected) < 1e-5


@torch.no_grad()
def test_left_padding_changes_nothing(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama().double(), token_ids(2, 120)
    mask = torch.ones_like(tokens)
    mask[1, :33] = 0
    for spec in ("origin", *SPECS):
        with apply_scheme(model, parse_scheme(spec, 64)):
            together = model(tokens, attention_mask=mask).logits
            alone = model(tokens[1:, 33:]).logits
            full = model(tokens[:1]).logits
        # log-n and the grouped weaves would notice if positions were counted from the padding
        if "dynamic" not in spec and "leaky" not in spec:  # whose parameters follow the length of the longest row
            assert relative(together[1, 33:], alone[0]) < 1e-12
        assert relative(together[0], full[0]) < 1e-12


def test_masks_with_holes_are_refused(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), token_ids(1, 20)
    mask = torch.ones_like(tokens)
    mask[0, 10] = 0
    with apply_scheme(model, make_scheme("rerope", 64)), pytest.raises(ProbeError, match="hole between real tokens"):
        model(tokens, attention_mask=mask)


COMBINED = (
    "streaming-llm+bottom(L=30)",
    "lm-infinite+bottom-leaky-rerope(L=30)",
    "star(B=20,L=15)",
    "stair+yarn(s=4)+logn",
)
FOLLOW_THE_LENGTH = {"dynamic-ntk", "pi", "yarn", "leaky-rerope", "lm-infinite+bottom-leaky-rerope(L=30)"}


def generated(model: nn.Module, scheme, prompt: torch.Tensor, **options: object) -> torch.Tensor:
    with apply_scheme(model, scheme, **options):
        return model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)


@pytest.mark.parametrize("spec", [*PRESETS, *COMBINED])
@torch.no_grad()
def test_generate_gives_the_tokens_of_recomputing_everything(spec: str, tiny_llama: Callable[..., nn.Module]) -> None:
    """Where parts follow the length, the cache keeps what earlier layers computed at the lengths of their time, and no
    recomputation can: there the tokens are those of `dense` on the same cache, and one layer, whose raw keys depend on
    no position, equals recomputing.
    """
    scheme, prompt = parse_scheme(spec, 64), token_ids(1, 100)
    if spec in FOLLOW_THE_LENGTH:
        deep = tiny_llama().double()
        assert torch.equal(generated(deep, scheme, prompt), generated(deep, scheme, prompt, backend="dense"))
    model = tiny_llama(num_hidden_layers=1 if spec in FOLLOW_THE_LENGTH else 3).double()
    out = generated(model, scheme, prompt)
    assert torch.equal(out, generated(model, scheme, prompt, backend="dense"))
    grown = prompt
    with apply_scheme(model, scheme, backend="dense", prompt=100):
        for _ in range(8):
            grown = torch.cat([grown, model(grown).logits[:, -1:].argmax(-1)], dim=1)
        whole = model(grown).logits
    assert torch.equal(out, grown)
    with apply_scheme(model, scheme):
        cache = model(prompt, use_cache=True).past_key_values
        steps = [model(grown[:, n : n + 1], past_key_values=cache).logits for n in range(100, 108)]
    assert relative(steps[-1], whole[:, -1:]) < 1e-5  # angles are float32 here
    if spec not in FOLLOW_THE_LENGTH:
        assert relative(torch.cat(steps, dim=1), whole[:, 100:]) < 1e-5


@pytest.mark.parametrize("spec", ["star(B=20,L=15)", "streaming-llm+bottom(L=30)"])
@torch.no_grad()
def test_the_prompts_end_is_each_rows_own_under_left_padding(spec: str, tiny_llama: Callable[..., nn.Module]) -> None:
    model, scheme, prompt = tiny_llama().double(), parse_scheme(spec, 64), token_ids(2, 100)
    mask = torch.ones_like(prompt)
    mask[1, :33] = 0
    with apply_scheme(model, scheme):
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        together = model.generate(prompt, attention_mask=mask, **settings)[:, 100:]
        assert torch.equal(together[:1], model.generate(prompt[:1], **settings)[:, 100:])
        assert torch.equal(together[1:], model.generate(prompt[1:, 33:], **settings)[:, 67:])


@torch.no_grad()
def test_a_cache_that_was_filled_elsewhere_counts_as_prompt(tiny_llama: Callable[..., nn.Module]) -> None:
    model, scheme, tokens = tiny_llama().double(), parse_scheme("star(B=20,L=15)", 64), token_ids(1, 102)
    with apply_scheme(model, scheme):
        cache = model(tokens[:, :100], use_cache=True).past_key_values
    with apply_scheme(model, scheme):
        first = model(tokens[:, 100:101], past_key_values=cache).logits
        model(tokens[:, 101:], past_key_values=cache)
    with apply_scheme(model, scheme, prompt=100):
        assert relative(first[:, -1], model(tokens[:, :101]).logits[:, -1]) < 1e-5


def test_an_exception_inside_leaves_no_trace(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), token_ids(1, 100)
    rotary, name = model.model.rotary_emb, model.config._attn_implementation
    before = model(tokens).logits
    with pytest.raises(RuntimeError, match="boom"), apply_scheme(model, make_scheme("rerope", 64)):
        raise RuntimeError("boom")
    assert model.model.rotary_emb is rotary and model.config._attn_implementation == name
    assert torch.equal(model(tokens).logits, before)


def test_two_models_can_be_under_different_schemes_at_once(tiny_llama: Callable[..., nn.Module]) -> None:
    a, b, tokens = tiny_llama(), tiny_llama(), token_ids(1, 100)
    alone = {}
    for spec in ("rerope(N=8)", "stair(N=8,E=2)"):
        with apply_scheme(a, parse_scheme(spec, 64)):
            alone[spec] = a(tokens).logits
    with apply_scheme(a, parse_scheme("rerope(N=8)", 64)), apply_scheme(b, parse_scheme("stair(N=8,E=2)", 64)):
        assert torch.equal(a(tokens).logits, alone["rerope(N=8)"])
        assert torch.equal(b(tokens).logits, alone["stair(N=8,E=2)"])


def test_misuse_is_refused(tiny_llama: Callable[..., nn.Module]) -> None:
    model, scheme = tiny_llama(), make_scheme("rerope", 64)
    with (
        apply_scheme(model, scheme),
        pytest.raises(ProbeError, match="applied to this model already"),
        apply_scheme(model, scheme),
    ):
        pass
    with (
        pytest.raises(ProbeError, match="unknown backend 'fast'; known: pieces, dense"),
        apply_scheme(model, scheme, backend="fast"),
    ):
        pass
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11))
    with (
        pytest.raises(
            ProbeError,
            match=r"'gpt2' does not fit the position seam: its positions are learned embeddings.*; supported: llama",
        ),
        apply_scheme(other, scheme),
    ):
        pass


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mpt", "bloom", "falcon"])
def test_weights_that_fused_attention_does_not_have_are_refused(name: str) -> None:
    model, ids = TINY[name](), torch.arange(3, 13)[None]
    with apply_scheme(model, make_scheme("origin", WINDOW)):
        with pytest.raises(ProbeError, match="output_attentions: fused attention has no weights"):
            model(ids, output_attentions=True)
        with pytest.raises(ProbeError, match=r"observers\.observed"):
            model.generate(ids, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
        model(ids, output_attentions=False, output_hidden_states=True)
