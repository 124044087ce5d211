"""A scheme on a model: exact where it must be, and no trace afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn

from probe.errors import ProbeError
from probe.models.families import FAMILIES
from probe.models.seam import apply_scheme
from probe.schemes import make_scheme, parse_scheme

CONFIGS = {
    "llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "phi3": "Phi3Config",
    "olmo": "OlmoConfig", "olmo2": "Olmo2Config", "phi": "PhiConfig", "gpt_neox": "GPTNeoXConfig",
}  # fmt: skip
SPECS = ["rerope(N=20)", "dynamic-ntk", "stair(N=20,E=7)", "leaky-rerope(w=10)+logn"]


def tiny(model_type: str) -> transformers.PreTrainedModel:
    fields = {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
    }  # fmt: skip
    if model_type not in ("phi", "gpt_neox"):
        fields["num_key_value_heads"] = 2
    if model_type == "mistral":
        fields["sliding_window"] = None
    torch.manual_seed(0)
    config = getattr(transformers, CONFIGS[model_type])(**fields)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def ids(batch: int = 2, length: int = 150) -> torch.Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_every_family_is_tested() -> None:
    assert set(CONFIGS) == {name for name, row in FAMILIES.items() if row.head}


@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@torch.no_grad()
def test_origin_is_the_stock_model_and_leaves_no_trace(model_type: str, dtype: torch.dtype, tolerance: float) -> None:
    model, tokens = tiny(model_type).to(dtype), ids()
    modules, before = list(model.modules()), model(tokens).logits
    with apply_scheme(model, make_scheme("origin", 64)):
        inside = model(tokens).logits
    assert relative(inside, before) < tolerance
    assert torch.equal(model(tokens).logits, before)
    assert list(model.modules()) == modules


@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_pieces_are_the_dense_reference_on_every_family(model_type: str, spec: str) -> None:
    model, tokens, scheme = tiny(model_type).double(), ids(), parse_scheme(spec, 64)
    with apply_scheme(model, scheme, exact_angles=True):
        pieces = model(tokens).logits
    with apply_scheme(model, scheme, backend="dense", exact_angles=True):
        dense = model(tokens).logits
    assert relative(pieces, dense) < 1e-10
    assert relative(pieces, model(tokens).logits) > 1e-4  # the scheme does something past the window


@torch.no_grad()
def test_rerope_with_grouped_queries_equals_a_layer_written_out(tiny_llama: Callable[..., nn.Module]) -> None:
    """The first layer's attention output in float64, from its weights and W(d) = min(d, N), key by key."""
    model, tokens, N = tiny_llama().double(), ids(1, 90), 17
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
    tokens = ids(1, 200)
    stock = tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    ours = tiny_llama()
    ours.load_state_dict(stock.state_dict())
    expected = stock(tokens).logits
    with apply_scheme(ours, make_scheme("dynamic-ntk", 64, a=2.0)):
        assert relative(ours(tokens).logits, expected) < 1e-5


@torch.no_grad()
def test_left_padding_changes_nothing(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama().double(), ids(2, 120)
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
    model, tokens = tiny_llama(), ids(1, 20)
    mask = torch.ones_like(tokens)
    mask[0, 10] = 0
    with apply_scheme(model, make_scheme("rerope", 64)), pytest.raises(ProbeError, match="hole between real tokens"):
        model(tokens, attention_mask=mask)


@pytest.mark.parametrize("spec", ["origin", "rerope(N=20)", "stair(N=20,E=7)", "dynamic-ntk"])
@torch.no_grad()
def test_generate_gives_the_tokens_of_recomputing_everything(spec: str, tiny_llama: Callable[..., nn.Module]) -> None:
    model, scheme = tiny_llama().double(), parse_scheme(spec, 64)
    prompt = ids(1, 100)
    with apply_scheme(model, scheme):
        out = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    grown = prompt
    with apply_scheme(model, scheme, backend="dense"):
        for _ in range(12):
            grown = torch.cat([grown, model(grown).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out, grown)


def test_an_exception_inside_leaves_no_trace(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), ids(1, 100)
    rotary, name = model.model.rotary_emb, model.config._attn_implementation
    before = model(tokens).logits
    with pytest.raises(RuntimeError, match="boom"), apply_scheme(model, make_scheme("rerope", 64)):
        raise RuntimeError("boom")
    assert model.model.rotary_emb is rotary and model.config._attn_implementation == name
    assert torch.equal(model(tokens).logits, before)


def test_two_models_can_be_under_different_schemes_at_once(tiny_llama: Callable[..., nn.Module]) -> None:
    a, b, tokens = tiny_llama(), tiny_llama(), ids(1, 100)
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
        pytest.raises(ProbeError, match="'gpt2' does not fit the position seam; supported: llama"),
        apply_scheme(other, scheme),
    ):
        pass


def test_a_sliding_window_is_refused_past_its_end(tiny_llama: Callable[..., nn.Module]) -> None:
    config = transformers.MistralConfig(
        vocab_size=97, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=50,
    )  # fmt: skip
    model = transformers.MistralForCausalLM(config).eval()
    with apply_scheme(model, make_scheme("rerope", 64)):
        model(ids(1, 50))
        with pytest.raises(ProbeError, match="sliding attention window is 50"):
            model(ids(1, 51))
