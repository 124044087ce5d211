"""What a serving engine is given: the same scheme on pages of raw keys as on a whole cache, layer by layer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig, MistralConfig, Qwen3Config

from probe.attention.paged import Pages
from probe.errors import ProbeError
from probe.seam.families import family_of
from weavescope.serving.engine import EngineScheme, follows_input, skeleton
from weavescope.serving.vllm import chosen, engine_scheme, pages_of, write_raw

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = [
    LlamaConfig(**SHAPE),
    Qwen3Config(**SHAPE, head_dim=16),
    LlamaConfig(**SHAPE, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                          "original_max_position_embeddings": 16}),
    MistralConfig(**SHAPE, sliding_window=24),
]  # fmt: skip
FOLLOWING = ("mesa", "mesa+logn", "dynamic-ntk", "pi", "leaky-rerope", "lm-infinite+bottom", "yarn")
FIXED = (
    "origin",
    "rerope",
    "rerope+logn",
    "stair",
    "self-extend",
    "dual-chunk",
    "streaming-llm",
    "ntk",
    "pi(s=4)",
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_skeleton_says_what_the_model_says(config: LlamaConfig) -> None:
    whole, bare, family = AutoModelForCausalLM.from_config(config), skeleton(config), family_of(config)
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    assert family.layer_windows(bare) == family.layer_windows(whole)
    for mine, theirs in zip(family.layer_positions(bare), family.layer_positions(whole), strict=True):
        torch.testing.assert_close(mine.inv_freq, theirs.inv_freq)
        assert (mine.amplitude, mine.base) == (theirs.amplitude, theirs.base)


@pytest.mark.parametrize("spec", [*FOLLOWING, *FIXED])
def test_which_schemes_follow_the_prompt(spec: str) -> None:
    assert EngineScheme.of(LlamaConfig(**SHAPE), spec).follows == (spec in FOLLOWING)


def test_a_rotary_that_follows_the_input_counts_too() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    made = EngineScheme.of(LlamaConfig(**SHAPE, rope_parameters=dynamic), "origin")
    assert made.follows and follows_input(made.scheme, made.positions)


def cached(key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pages of 20 places, written token by token as an engine does."""
    keys, values = (torch.full((20, 2, size, 8), float("nan"), dtype=torch.float64) for _ in range(2))
    slots = table[torch.arange(len(key)) // size] * size + torch.arange(len(key)) % size
    for at in range(0, len(key), 7):
        part = slice(at, at + 7)
        padded = torch.cat((slots[part], torch.tensor([-1])))
        more = [torch.cat((x[part], x.new_zeros(1, 2, 8))) for x in (key, value)]
        write_raw(keys, values, *more, padded)
    return keys, values


@pytest.mark.parametrize(
    "spec", ["origin", "rerope(N=9)+logn", "stair(N=9,E=5)", "mesa", "dynamic-ntk", "streaming-llm"]
)
@pytest.mark.parametrize("queries", [1, 20])
def test_pages_of_an_engine_give_what_a_forward_pass_gives(spec: str, queries: int) -> None:
    """A layer's attention of a real model, in float64, past the window."""
    from probe.schemes import parse_scheme
    from probe.seam.apply import apply_scheme

    config = LlamaConfig(**SHAPE)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    ids, tokens = torch.randint(0, 64, (1, 150)), 150
    attention = model.model.layers[0].self_attn
    seen: dict[str, torch.Tensor] = {}
    attention.o_proj.register_forward_pre_hook(lambda module, inputs: seen.update(out=inputs[0].detach()))
    scheme = parse_scheme(spec, 64)
    with torch.no_grad(), apply_scheme(model, scheme, prompt=tokens):
        model(ids, use_cache=False)
        hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))[0]
        raw = [getattr(attention, f"{name}_proj")(hidden).unflatten(-1, (-1, 8)) for name in "qkv"]
    table = torch.randperm(20)[: -(-tokens // 16)]
    pages = pages_of(*cached(raw[1], raw[2], table, 16), torch.cat((table, table * 0)).int(), tokens)
    made = EngineScheme.of(config, spec)
    # A forward pass in chunks hands over the last of them.
    queries = min(queries, seen["out"].shape[1])
    got = made.attend(0, raw[0][-queries:], pages, tokens if made.follows else None, attention.scaling)
    torch.testing.assert_close(got.flatten(1), seen["out"][0, -queries:], atol=1e-6, rtol=1e-5)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ProbeError, match="states no trained window"):
        EngineScheme.of(LlamaConfig(**SHAPE), "rerope", window=1)
    with pytest.raises(ProbeError, match="unknown scheme 'magic'"):
        EngineScheme.of(LlamaConfig(**SHAPE), "magic")
    falcon = FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True)
    with pytest.raises(ProbeError, match="checked under transformers only"):
        EngineScheme.of(falcon, "rerope", window=64)
    pages = Pages(torch.zeros(2, 2, 4, 8), torch.zeros(2, 2, 4, 8), torch.tensor([1]), 3)
    assert pages.stretches == [(0, 1, 1)]


def engine(**section: object) -> SimpleNamespace:
    """The parts of vLLM's configuration that are read."""
    return SimpleNamespace(
        additional_config={"weavescope": section} if section else {},
        model_config=SimpleNamespace(
            hf_config=LlamaConfig(**SHAPE), hf_text_config=LlamaConfig(**SHAPE),
            model_arch_config=SimpleNamespace(rswa_window=None),
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=True, cache_dtype="auto"),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        device_config=SimpleNamespace(device_type="cpu"),
    )  # fmt: skip


def test_how_a_scheme_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEAVESCOPE_SCHEME", raising=False)
    assert chosen(engine()) is None and engine_scheme(engine()) is None
    monkeypatch.setenv("WEAVESCOPE_SCHEME", "rerope")
    assert chosen(engine()) == ("rerope", None)
    monkeypatch.setenv("WEAVESCOPE_WINDOW", "99")
    assert chosen(engine()) == ("rerope", 99)
    named = engine()
    named.model_config.hf_config.weavescope_scheme = "stair"
    assert chosen(named) == ("stair", 99)
    assert chosen(engine(scheme="mesa", window="32")) == ("mesa", 32)
    for section in ({"window": 32}, {"scheme": 3}, {"scheme": "mesa", "window": "wide"}):
        with pytest.raises(ProbeError, match=r"additional_config: w.*expected"):
            chosen(engine(**section))
    monkeypatch.setenv("WEAVESCOPE_WINDOW", "wide")
    with pytest.raises(ProbeError, match="WEAVESCOPE_WINDOW: expected a number of tokens, got 'wide'"):
        chosen(engine())


def test_engines_that_would_give_wrong_numbers_are_refused() -> None:
    with pytest.raises(ProbeError, match="start with --no-enable-prefix-caching"):
        engine_scheme(engine(scheme="mesa"))
    quantised = engine(scheme="rerope")
    quantised.cache_config.cache_dtype = "fp8"
    with pytest.raises(ProbeError, match="kv_cache_dtype: expected auto under a scheme, got fp8"):
        engine_scheme(quantised)
    elsewhere = engine(scheme="rerope")
    elsewhere.device_config.device_type = "cuda"
    with pytest.raises(ProbeError, match="for vLLM on CPU only, got device cuda"):
        engine_scheme(elsewhere)
    fine = engine(scheme="mesa")
    fine.cache_config.enable_prefix_caching = False
    made = engine_scheme(fine)
    assert made is not None and made is engine_scheme(fine) and fine.model_config.model_arch_config.rswa_window == 64
    shared = engine(scheme="rerope")
    assert engine_scheme(shared) is not None and shared.model_config.model_arch_config.rswa_window is None
