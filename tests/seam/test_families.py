"""Position schemes on every family: RoPE, ALiBi and no positions at all, against the stock models of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from alike_models import EVERY
from tiny_models import ALIBI, LOCAL, MIXED, NOWHERE, ROPE, TINY, WINDOW, relative, token_ids
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.bloom import modeling_bloom
from transformers.models.falcon import modeling_falcon
from transformers.models.mpt import modeling_mpt

from probe.errors import ProbeError
from probe.models.embedded import MODELS
from probe.models.load import load_model
from probe.recording.hooks import record
from probe.schemes import PRESETS, make_scheme, parse_scheme
from probe.seam.apply import apply_scheme, check_scheme
from probe.seam.attend import is_own_window
from probe.seam.families import FAMILIES, family_of
from probe.seam.positions import falcon_slopes, geometric_slopes, mpt_slopes
from probe.seam.refused import REFUSED
from probe.studies.run import RunSettings, run_probe
from probe.thresholds.verdicts import read_verdicts

FREQUENCIES = {"dynamic-ntk", "pi", "ntk", "yarn"}
POSITIONS_ONLY = ["rerope", "leaky-rerope", "stair", "self-extend", "dual-chunk", "nope"]
"""Presets that show a query every key, and change only positions."""
OWN = ["mpt", "bloom", "falcon", "falcon-groups", "falcon-rope"]
FIXED = ["origin", "rerope(N=20)", "stair(N=20,E=7)", "self-extend(W=20,G=4)+logn", "streaming-llm"]
"""Schemes whose parameters do not follow the length of the input."""


FLOAT32 = ("mpt", "bloom", "gemma2", "gpt_oss", "mixtral", "olmoe", "qwen3_moe")
"""Families that compute a softmax in float32, whatever the model's dtype."""


@contextmanager
def stock(model: PreTrainedModel, longest: int = 400) -> Iterator[PreTrainedModel]:
    """The stock model, made to run on 150 tokens and in its own dtype all through.

    MPT's bias has max_seq_len columns, read at every pass. Some take their softmax, or their experts' weights, in
    float32 whatever the model's dtype: for float64 that is lifted, so that 1e-12 means something.
    """
    to_float, softmax = torch.Tensor.float, functional.softmax
    try:
        if model.config.model_type == "mpt":
            model.config.max_seq_len = longest
        if model.dtype == torch.float64 and model.config.model_type in FLOAT32:
            torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else to_float(x)  # type: ignore[method-assign]
            functional.softmax = lambda x, dim=None, dtype=None: softmax(x, dim)  # type: ignore[assignment]
        yield model
    finally:
        torch.Tensor.float, functional.softmax = to_float, softmax  # type: ignore[method-assign]
        if model.config.model_type == "mpt":
            model.config.max_seq_len = WINDOW


def logits(model: PreTrainedModel, spec: str, tokens: Tensor, **options: object) -> Tensor:
    with apply_scheme(model, parse_scheme(spec, WINDOW), exact_angles=True, **options):
        return model(tokens).logits


def test_every_family_is_tested() -> None:
    tested = {TINY[name]().config.model_type for name in TINY}
    assert tested | set(EVERY) == {name for name, row in FAMILIES.items() if row.head}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@torch.no_grad()
def test_origin_is_the_stock_model_and_leaves_no_trace(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """At 150 tokens, more than two windows."""
    model, tokens = TINY[name]().to(dtype), token_ids()
    with stock(model):
        before = model(tokens).logits
    modules, attributes = list(model.modules()), [set(module.__dict__) for module in model.modules()]
    config = model.config.to_dict()
    with stock(model), apply_scheme(model, make_scheme("origin", WINDOW)):
        inside = model(tokens).logits
    assert relative(inside, before) < tolerance
    with stock(model):
        assert torch.equal(model(tokens).logits, before)
    assert list(model.modules()) == modules
    assert [set(module.__dict__) for module in model.modules()] == attributes
    assert model.config.to_dict() == config and model.config._attn_implementation in ("sdpa", "eager")
    assert getattr(getattr(model.config, "attn_config", None), "_attn_implementation", None) is None


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_an_exception_inside_leaves_no_trace(name: str) -> None:
    model, tokens = TINY[name](), token_ids(1, 60)
    before = model(tokens).logits
    with pytest.raises(RuntimeError, match="boom"), apply_scheme(model, make_scheme("rerope", WINDOW)):
        raise RuntimeError("boom")
    assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_pieces_are_the_dense_reference_under_every_preset(name: str) -> None:
    model, tokens = TINY[name]().double(), token_ids(1, 110)
    origin = logits(model, "origin", tokens)
    for spec in [*PRESETS, "stair(N=20,E=7)+logn", "streaming-llm+bottom(L=9)"]:
        if spec in FREQUENCIES and name not in ROPE:
            with pytest.raises(ProbeError, match=f"{spec}: it changes RoPE frequencies .* has no rotary frequencies"):
                check_scheme(model, parse_scheme(spec, WINDOW))
            with pytest.raises(ProbeError, match="no rotary frequencies"):
                logits(model, spec, tokens)
            continue
        dense = logits(model, spec, tokens, backend="dense")
        assert relative(logits(model, spec, tokens), dense) < 1e-10, spec
        changes = relative(dense, origin)
        if spec in POSITIONS_ONLY and name in NOWHERE:
            assert changes < 1e-12, spec
        elif name in LOCAL:
            assert changes == 0, spec
        elif spec not in ("origin", "stair"):  # at so small a window Stair's default is E = 1, W(d) = d
            assert changes > 1e-4, spec


@pytest.mark.parametrize("name", [*OWN, "smollm3-mixed", *NOWHERE])
@torch.no_grad()
def test_cached_decoding_is_one_pass(name: str) -> None:
    model, tokens = TINY[name]().double(), token_ids(2, 108)
    for spec in FIXED:
        whole = logits(model, spec, tokens)
        with apply_scheme(model, parse_scheme(spec, WINDOW), exact_angles=True):
            cache = model(tokens[:, :100], use_cache=True).past_key_values
            several = model(tokens[:, 100:104], past_key_values=cache, use_cache=True).logits
            steps = [model(tokens[:, n : n + 1], past_key_values=cache, use_cache=True).logits for n in range(104, 108)]
        assert relative(torch.cat([several, *steps], dim=1), whole[:, 100:]) < 1e-10, spec


@pytest.mark.parametrize("name", [*ALIBI, "falcon-rope", "smollm3-mixed", *NOWHERE, "gemma"])
@torch.no_grad()
def test_left_padding_changes_nothing(name: str) -> None:
    model, tokens = TINY[name]().double(), token_ids(2, 120)
    mask = torch.ones_like(tokens)
    mask[1, :33] = 0
    for spec in FIXED:
        with apply_scheme(model, parse_scheme(spec, WINDOW), exact_angles=True):
            together = model(tokens, attention_mask=mask).logits
            assert relative(together[1, 33:], model(tokens[1:, 33:]).logits[0]) < 1e-11, spec
            assert relative(together[0], model(tokens[:1]).logits[0]) < 1e-11, spec


@pytest.mark.parametrize("name", [*OWN, "smollm3-mixed", *NOWHERE])
@torch.no_grad()
def test_generate_greedy_beams_and_samples(name: str) -> None:
    """Greedy tokens are those of recomputing everything with `dense`; with beams and sampling, those of `dense` on a
    cache.

    The second prompt is left-padded.
    """
    model, prompt = TINY[name]().double(), token_ids(2, 100)
    mask = torch.ones_like(prompt)
    mask[1, :33] = 0
    fixed = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
    for spec in ("rerope(N=20)", "stair(N=20,E=7)"):
        out: dict[tuple[str, str], Tensor] = {}
        for backend in ("pieces", "dense"):
            with apply_scheme(model, parse_scheme(spec, WINDOW), backend=backend):
                for kind, how in (("greedy", {}), ("beams", {"num_beams": 2}), ("samples", {"do_sample": True})):
                    torch.manual_seed(3)
                    settings = {"do_sample": False} | fixed | how
                    out[kind, backend] = model.generate(prompt, attention_mask=mask, **settings)
        for kind in ("greedy", "beams", "samples"):
            assert torch.equal(out[kind, "pieces"], out[kind, "dense"]), kind
        assert not torch.equal(out["samples", "pieces"], out["greedy", "pieces"])
        for row, padding in ((0, 0), (1, 33)):
            grown = prompt[row : row + 1, padding:]
            for _ in range(6):
                grown = torch.cat([grown, logits(model, spec, grown, backend="dense")[:, -1:].argmax(-1)], dim=1)
            assert torch.equal(out["greedy", "pieces"][row, padding:], grown[0])


@torch.no_grad()
def test_generate_without_a_cache_is_the_same() -> None:
    """MPT's configs say use_cache=False."""
    model, prompt = TINY["mpt"]().double(), token_ids(1, 100)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with apply_scheme(model, parse_scheme("stair(N=20,E=7)", WINDOW)):
        assert torch.equal(model.generate(prompt, **settings), model.generate(prompt, use_cache=True, **settings))


# What a family's rows say, one by one.


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-longrope"])
@torch.no_grad()
def test_a_rotary_that_follows_the_length_does_not_remember_other_inputs(name: str) -> None:
    """A long input leaves its frequencies in the stock model; under a scheme each length has its own."""
    model, tokens = TINY[name]().double(), token_ids(1, 150)
    expected = {length: TINY[name]().double()(tokens[:, :length]).logits for length in (150, 100, 60)}
    model(tokens)
    for length, alone in expected.items():
        assert relative(logits(model, "origin", tokens[:, :length]), alone) < 1e-5  # stock's angles are float32
    assert relative(logits(model, "origin", tokens)[:, :60], expected[60]) > 1e-2


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 40])
def test_slopes_are_those_of_the_stock_models(heads: int) -> None:
    for bias_max in (8, 16):
        stock_mpt = modeling_mpt.build_mpt_alibi_tensor(heads, 2, bias_max)
        assert torch.equal(mpt_slopes(heads, bias_max), -stock_mpt[:, 0, 0])
    two = torch.ones(1, 2)
    assert torch.equal(geometric_slopes(heads), modeling_bloom.build_alibi_tensor(two, heads, torch.float32)[:, 0, 1])
    stock_falcon = modeling_falcon.build_alibi_tensor(two.long(), heads, torch.float64)[:, 0, 1] / 12**0.5
    assert torch.equal(falcon_slopes(heads, 12), stock_falcon)


@torch.no_grad()
def test_stock_mpt_ends_at_max_seq_len_and_origin_goes_on() -> None:
    model, tokens = TINY["mpt"](), token_ids(1, WINDOW + 1)
    model(tokens[:, :WINDOW])
    with pytest.raises(RuntimeError, match="must match"):
        model(tokens)
    assert logits(model, "origin", tokens).isfinite().all()


@torch.no_grad()
def test_alibi_bias_max_is_the_configs() -> None:
    """transformers builds MPT's bias with 8, whatever the config says; what it was trained with is the config's."""
    model, tokens = TINY["mpt"](attn_config={"alibi_bias_max": 16}).double(), token_ids(1, 60)
    eight = TINY["mpt"]().double()
    eight.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens).logits, eight(tokens).logits)
    build = model.transformer.build_mpt_alibi_tensor
    model.transformer.build_mpt_alibi_tensor = lambda heads, length, device: build(heads, length, 16, device)
    with stock(model):
        assert relative(logits(model, "origin", tokens), model(tokens).logits) < 1e-12
    assert relative(logits(model, "origin", tokens), eight(tokens).logits) > 1e-3


@torch.no_grad()
def test_falcons_bias_is_not_rounded_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers rounds slope * position to bfloat16, so that positions past 256 share values; origin does not."""
    model, tokens = TINY["falcon"]().double(), token_ids(1, 700)
    rounded = model(tokens).logits

    def exact(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        slopes = geometric_slopes(heads).bfloat16().to(dtype)
        return (slopes[:, None] * (mask.cumsum(-1) - 1)).reshape(heads, 1, -1)

    monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", exact)
    unrounded, origin = model(tokens).logits, logits(model, "origin", tokens)
    assert relative(origin, unrounded) < 1e-12
    assert relative(origin[:, :256], rounded[:, :256]) < 1e-12
    print(f"rounding from position 256 to 699: {relative(origin[:, 256:], rounded[:, 256:]):.3f}")
    assert relative(origin[:, 256:], rounded[:, 256:]) > 1e-3


@torch.no_grad()
def test_blooms_bias_in_bfloat16_is_relative_to_the_query() -> None:
    """transformers rounds slope * i to eight bits; relative to a query near by it is the far keys that are rounded."""
    model, tokens = TINY["bloom"](initializer_range=0.08).bfloat16(), token_ids(1, 700)
    from_stock, ours = model(tokens).logits, logits(model, "origin", tokens)
    exact = logits(model.double(), "origin", tokens, backend="dense")
    print(f"bfloat16 at 700 tokens: stock {relative(from_stock, exact):.3f}, origin {relative(ours, exact):.3f}")
    assert relative(ours, exact) < 0.02 < relative(from_stock, exact)


@torch.no_grad()
def test_nope_on_alibi_takes_the_bias_away() -> None:
    """Then MPT is a stock MPT whose bias is zero."""
    model, tokens = TINY["mpt"]().double(), token_ids(1, 60)
    without = logits(model, "nope", tokens)
    build = model.transformer.build_mpt_alibi_tensor
    model.transformer.build_mpt_alibi_tensor = lambda *args, **kwargs: build(*args, **kwargs) * 0
    with stock(model):
        assert relative(without, model(tokens).logits) < 1e-12


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_recorded_sites_add_up_to_the_residual_stream(name: str) -> None:
    """resid after a layer less resid before it is what attention and MLP put out."""
    if name == "bloom-post":
        pytest.skip("the residual stream is normalised in between")
    model, tokens = TINY[name]().double(), token_ids(1, 100)
    width = list(range(model.config.hidden_size))
    for spec in ("origin", "rerope(N=20)"):
        with (
            apply_scheme(model, parse_scheme(spec, WINDOW)),
            record(model, ("resid", "attn", "mlp"), (1, 2), width) as seen,
        ):
            model(tokens)
        share = getattr(model.config, "residual_multiplier", 1.0)
        put = (seen.values("attn", 2) + seen.values("mlp", 2)) * share
        assert relative(seen.values("resid", 2) - seen.values("resid", 1), put) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma", "mpt", "bloom", "falcon", "smollm3-nope"])
@torch.no_grad()
def test_bfloat16_stays_near_float64(name: str) -> None:
    """Same weights, already rounded: a whole model of two layers in bfloat16, whose unit roundoff is 0.4%."""
    model, tokens = TINY[name](initializer_range=0.08).bfloat16(), token_ids(1, 150)
    for spec in ("origin", "rerope(N=20)", "stair(N=20,E=7)", "streaming-llm"):
        half = logits(model.bfloat16(), spec, tokens)
        assert half.dtype == torch.bfloat16
        error = relative(half, logits(model.double(), spec, tokens, backend="dense"))
        print(f"{name} {spec}: {error:.4f}")
        assert error < 0.05, spec


# The MPT claim: its bias depends on the key alone, and yet it is exact.


def written_mpt(model: PreTrainedModel, tokens: Tensor, bias: Tensor) -> Tensor:
    """An MPT written out in its own dtype: logits [T, vocabulary] of one row; `bias` [heads, T, T] adds to scores."""
    config, body = model.config, model.transformer
    heads, dim = config.n_heads, config.d_model // config.n_heads
    x = body.wte.weight[tokens[0]]
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)

    def norm(y: Tensor, weight: Tensor) -> Tensor:
        return functional.layer_norm(y, y.shape[-1:], weight, None, config.layer_norm_epsilon)

    for block in body.blocks:
        q, k, v = (
            part.view(-1, heads, dim).transpose(0, 1)
            for part in (norm(x, block.norm_1.weight) @ block.attn.Wqkv.weight.T).split(config.d_model, -1)
        )
        scores = (q @ k.mT / dim**0.5 + bias).masked_fill(future, -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1) @ block.attn.out_proj.weight.T
        up = functional.gelu(norm(x, block.norm_2.weight) @ block.ffn.up_proj.weight.T)
        x = x + up @ block.ffn.down_proj.weight.T
    return norm(x, body.norm_f.weight) @ body.wte.weight.T


def bias_of(distances: list[list[int]]) -> Tensor:
    """-slope * distance for the 5 heads of the tiny MPT, [heads, T, T]; the slopes in plain numbers."""
    slopes = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8, 2**-1], dtype=torch.float64)
    return -slopes[:, None, None] * torch.tensor(distances, dtype=torch.float64)


T, N = 120, 20


@torch.no_grad()
def test_mpts_bias_depends_on_the_key_alone_and_softmax_does_not_see_it() -> None:
    """Stock MPT's bias has one row for all queries, and its logits are those of -slope * (t - i)."""
    model, tokens = TINY["mpt"]().double(), token_ids(1, T)
    seen = []
    hook = model.transformer.blocks[0].attn.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["position_bias"]), with_kwargs=True
    )
    with stock(model, longest=T):
        from_stock = model(tokens).logits[0]
    hook.remove()
    assert seen[0].shape == (5, 1, T)  # heads, one row for all queries, keys
    assert torch.equal(seen[0][:, 0].double(), bias_of([[T - 1 - i for i in range(T)]])[:, 0])

    relative_bias = bias_of([[t - i for i in range(T)] for t in range(T)])
    assert relative(from_stock, written_mpt(model, tokens, relative_bias)) < 1e-12
    assert relative(logits(model, "origin", tokens)[0], from_stock) < 1e-12


@torch.no_grad()
def test_weaving_mpts_key_only_bias_is_something_else() -> None:
    """W on t - i per query is ReRoPE; W on the key's distance to the input's end turns the bias off for all but the
    last N queries: each earlier query t sees keys i <= t that are all at least N from the end, so min(T - 1 - i, N) =
    N.
    """
    model, tokens = TINY["mpt"]().double(), token_ids(1, T)
    woven = written_mpt(model, tokens, bias_of([[min(t - i, N) for i in range(T)] for t in range(T)]))
    key_only = written_mpt(model, tokens, bias_of([[min(T - 1 - i, N) for i in range(T)] for _ in range(T)]))
    unbiased, plain = (logits(model, spec, tokens)[0] for spec in ("nope", "origin"))
    assert relative(logits(model, f"rerope(N={N})", tokens)[0], woven) < 1e-12
    assert relative(key_only[: T - N], unbiased[: T - N]) < 1e-12
    differ = (key_only.argmax(-1) != woven.argmax(-1)).double().mean()
    print(
        f"key-only against woven: {relative(key_only, woven):.2f}, "
        f"at the last query {relative(key_only[-1], woven[-1]):.2f};"
    )
    print(f"another most likely token at {differ:.0%} of positions; woven against origin: {relative(woven, plain):.2f}")
    assert relative(key_only, woven) > 0.1
    assert relative(key_only[-1], woven[-1]) > 0.1  # the last query's bias is the same, what it reads is not


# The embedded models' own configurations, past their window of 512.


@pytest.mark.parametrize("name", ["alibi", "nope"])
@torch.no_grad()
def test_the_embedded_configurations(name: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name].config(97, 1, 2)).eval()
    tokens, window = token_ids(1, 700), MODELS[name].window
    with stock(model, longest=700):
        expected = model(tokens).logits
    with apply_scheme(model, make_scheme("origin", window)):
        assert relative(model(tokens).logits, expected) < 1e-5
    model = model.double()
    for spec in ("rerope", "stair", "self-extend(W=64,G=4)", "streaming-llm+bottom", "star"):
        scheme, out = parse_scheme(spec, window), []
        for backend in ("pieces", "dense"):
            with apply_scheme(model, scheme, backend=backend):
                out.append(model(tokens).logits)
        assert relative(out[0], out[1]) < 1e-10, spec


# Loading and running.


@pytest.mark.parametrize(
    ("name", "schemes"),
    [("llama", "origin,dynamic-ntk,rerope"), ("smollm3-mixed", "origin,dynamic-ntk,rerope"),
     ("falcon-rope", "origin,dynamic-ntk,rerope"),
     ("smollm3-nope", "origin,rerope,stair"), ("mpt", "origin,rerope,stair"), ("falcon", "origin,rerope,stair")],
)  # fmt: skip
def test_a_models_default_schemes_fit_it(name: str, schemes: str, tmp_path: Path) -> None:
    TINY[name]().save_pretrained(tmp_path / name)
    loaded = load_model(str(tmp_path / name))
    assert (loaded.schemes, loaded.window) == (schemes, WINDOW)
    run = run_probe(loaded, RunSettings(input="token:5", length=100), tmp_path / "run")
    assert {verdict.scheme for verdict in read_verdicts(run)} == set(schemes.split(","))


def test_blooms_window_is_seq_length_or_must_be_given(tmp_path: Path) -> None:
    for name, extra in (("with", {"seq_length": WINDOW}), ("without", {})):
        TINY["bloom"](**extra).save_pretrained(tmp_path / name)
    assert load_model(str(tmp_path / "with")).window == WINDOW
    with pytest.raises(ProbeError, match="states no trained window; give one"):
        load_model(str(tmp_path / "without"))


def test_a_run_refuses_frequencies_without_a_rotary_before_it_starts(tmp_path: Path) -> None:
    TINY["mpt"]().save_pretrained(tmp_path / "mpt")
    began: list[float] = []
    with pytest.raises(ProbeError, match=r"dynamic-ntk: it changes RoPE frequencies .* \(positions enter as ALiBi\)"):
        run_probe(
            load_model(str(tmp_path / "mpt")), RunSettings(schemes="origin,rerope,dynamic-ntk", input="token:5"),
            tmp_path / "run", progress=lambda share, _line: began.append(share),
        )  # fmt: skip
    assert not began and not (tmp_path / "run").exists()


# Refusals.


def test_mpt_options_that_transformers_does_not_compute_are_refused() -> None:
    for options, message in (
        ({"alibi": False}, "attn_config.alibi is false, so its positions are learned embeddings"),
        ({"qk_ln": True}, "attn_config.qk_ln is true, which transformers' MPT does not compute"),
        ({"prefix_lm": True}, "attn_config.prefix_lm is true"),
        ({"attn_type": "multiquery_attention"}, "attn_config.attn_type is 'multiquery_attention'"),
    ):
        model = TINY["mpt"](attn_config=options)
        with pytest.raises(ProbeError, match=message):
            check_scheme(model, make_scheme("origin", WINDOW))


def test_bloom_with_sliced_projections_is_refused() -> None:
    with pytest.raises(ProbeError, match="leaves out the output projection's bias"):
        check_scheme(TINY["bloom"](slow_but_exact=True, pretraining_tp=2), make_scheme("origin", WINDOW))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma3", "gemma3_text, fits"),
        ("deepseek_v3", "latent"),
        ("llama4_text", "chunks of their own"),
        ("opt", "learned"),
    ],
)
def test_known_misfits_are_refused_with_the_reason(model_type: str, reason: str) -> None:
    config = transformers.AutoConfig.for_model(model_type)
    with pytest.raises(
        ProbeError, match=f"'{model_type}' does not fit the position seam: .*{reason}.*; supported: llama"
    ):
        family_of(config)


def test_the_docs_name_every_family() -> None:
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    assert not [name for name in {*FAMILIES, *REFUSED} if f"`{name}`" not in page]


def test_a_misfit_is_not_a_supported_family() -> None:
    assert not set(REFUSED) & set(FAMILIES)
    if transformers.__version__ == "5.23.0":  # every one of its causal language models is here or there
        assert set(REFUSED) | set(FAMILIES) - {"construction"} >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        assert set(REFUSED) <= set(CONFIG_MAPPING_NAMES)  # a real model type


@pytest.mark.parametrize("name", ["llama", "mpt", "bloom", "falcon"])
def test_a_static_cache_is_refused(name: str) -> None:
    model, settings = TINY[name](), {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
    with apply_scheme(model, make_scheme("rerope", WINDOW)):
        model.generate(token_ids(1, 40), **settings)
        with pytest.raises(ProbeError, match="a static cache does not fit position schemes"):
            model.generate(token_ids(1, 40), cache_implementation="static", **settings)


@torch.no_grad()
def test_a_forward_that_was_on_the_instance_already_comes_back() -> None:
    """As the hooks are that move a model's layers between devices."""
    model, tokens = TINY["mpt"](), token_ids(1, 60)
    attention = model.transformer.blocks[0].attn
    class_forward = attention.forward
    attention.forward = hooked = lambda *args, **kwargs: class_forward(*args, **kwargs)
    with apply_scheme(model, make_scheme("rerope", WINDOW)):
        model(tokens)
    assert attention.__dict__["forward"] is hooked


# Layers that are local by design.


@pytest.mark.parametrize("name", [*MIXED, *LOCAL])
@torch.no_grad()
def test_local_layers_are_left_as_trained(name: str) -> None:
    """The first layer is local: its attention is the stock model's under every scheme, far past the trained window."""
    model, tokens = TINY[name]().double(), token_ids(1, 190)
    local = model.config.layer_types[0] == "sliding_attention" if getattr(model.config, "layer_types", None) else True
    first = 1 if local else 2
    assert is_own_window(40, WINDOW) and FAMILIES[model.config.model_type].layer_windows(model)[first - 1] == 40
    states = {}
    for spec in ("origin", "rerope(N=20)", "stair(N=20,E=7)", "mesa", "streaming-llm"):
        with (
            apply_scheme(model, parse_scheme(spec, WINDOW), exact_angles=True),
            record(model, ["attn"], [1], range(48)) as seen,
        ):
            out = model(tokens).logits
        states[spec] = seen.values("attn", 1), out
    if first == 1:
        assert all(relative(attn, states["origin"][0]) < 1e-11 for attn, _ in states.values())
    changed = relative(states["rerope(N=20)"][1], states["origin"][1])
    assert changed < 1e-11 if name in (*LOCAL, *NOWHERE) else changed > 1e-4


@pytest.mark.parametrize("name", [*MIXED, *LOCAL])
@torch.no_grad()
def test_local_layers_can_be_woven_within_their_window(name: str) -> None:
    model, tokens = TINY[name]().double(), token_ids(1, 150)
    for spec in ("rerope(N=20)", "stair(N=20,E=7)", "dynamic-ntk", "origin"):
        left = None if spec == "dynamic-ntk" and name in NOWHERE else logits(model, spec, tokens)
        fast = logits(model, spec, tokens, weave_local=True)
        assert relative(fast, logits(model, spec, tokens, weave_local=True, backend="dense")) < 1e-10, spec
        if left is not None:
            assert (relative(fast, left) > 1e-4) == (spec != "origin"), spec


@pytest.mark.parametrize("name", [*MIXED, *LOCAL])
@torch.no_grad()
def test_decoding_goes_on_past_a_sliding_window(name: str) -> None:
    """Under `origin` it is the stock model with its own sliding cache; under weaves one pass."""
    model, tokens = TINY[name]().double(), token_ids(2, 108)
    mask = torch.ones_like(tokens)
    mask[1, :33] = 0
    for spec in ("origin", "rerope(N=20)", "mesa"):
        with apply_scheme(model, parse_scheme(spec, WINDOW), exact_angles=True, prompt=100):
            whole = model(tokens).logits
            cache = model(tokens[:, :100], use_cache=True).past_key_values
            steps = [model(tokens[:, n : n + 1], past_key_values=cache, use_cache=True).logits for n in range(100, 108)]
            padded = model(tokens, attention_mask=mask).logits[1, 33:]
        with apply_scheme(model, parse_scheme(spec, WINDOW), exact_angles=True, prompt=67):
            alone = model(tokens[1:, 33:]).logits[0]
        assert relative(torch.cat(steps, dim=1), whole[:, 100:]) < 1e-10, spec
        assert relative(padded, alone) < 1e-11, spec
    settings = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model = model.float()  # padded rows of the stock Gemma 2 are NaN in float64
    expected = model.generate(tokens, attention_mask=mask, **settings)
    with apply_scheme(model, make_scheme("origin", WINDOW)):
        assert torch.equal(model.generate(tokens, attention_mask=mask, **settings), expected)


@torch.no_grad()
def test_a_sliding_window_wider_than_the_trained_one_is_refused_past_its_end() -> None:
    """There distances are unseen, so a scheme acts, and a window of its own beside it is none of its choices."""
    model, tokens = TINY["mistral"](sliding_window=80), token_ids(1, 81)
    with apply_scheme(model, make_scheme("rerope", WINDOW)):
        cache = model(tokens[:, :80], use_cache=True).past_key_values
        with pytest.raises(
            ProbeError, match="sliding attention window is 80 tokens: expected at most that many, got 81"
        ):
            model(tokens[:, 80:], past_key_values=cache)
