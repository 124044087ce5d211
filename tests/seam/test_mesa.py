"""Mesa on real tiny models against a dense T x T matrix written here from the paper's definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions.weave import Weave
from probe.errors import ProbeError
from probe.schemes import make_scheme, parse_scheme
from probe.schemes.scheme import Scheme
from probe.schemes.visibility import Visibility
from probe.seam.apply import apply_scheme

PAST = 10**9


@dataclass(frozen=True)
class Paper:
    """A setting of Mesa, with the paper's algorithms in plain Python."""

    M: int
    F: int
    L: int
    M_max: int
    N: int
    E: int

    @property
    def spec(self) -> str:
        return f"mesa(F={self.F},L={self.L},M_max={self.M_max},N={self.N},E={self.E})"

    def scheme(self) -> Scheme:
        return parse_scheme(self.spec, self.M)

    def width(self, prompt: int) -> tuple[int, int]:
        """C of Algorithm 2, and how many chunks have it; a prompt shorter than L + F has no middle chunk."""
        between = max(0, prompt - self.L - self.F)
        n, m = between // (self.M - self.F), between % (self.M - self.F)
        if m < self.M_max:
            return self.M - self.F, n
        return between // (n + 1), n + 1

    def chunks(self, prompt: int) -> list[int]:
        """Chunk number of every prompt token; PAST for the last chunk."""
        (C, count), owner = self.width(prompt), []
        whole = count if C else 0
        for token in range(prompt):
            number = 0 if token < self.F else 1 + (token - self.F) // max(C, 1)
            owner.append(PAST if number > whole else number)
        return owner

    def matrices(self, length: int, prompt: int) -> tuple[Tensor, Tensor]:
        """Relative position and visibility of every pair."""
        W = torch.zeros(length, length, dtype=torch.float64)
        sees = torch.zeros(length, length, dtype=torch.bool)
        plain = prompt <= self.M
        owner = [] if plain else self.chunks(prompt)
        C = 0 if plain else self.width(prompt)[0]
        for t in range(length):
            for i in range(t + 1):
                if plain and t < self.M:
                    sees[t, i], W[t, i] = True, t - i
                elif plain or t >= prompt or owner[t] == PAST:
                    d = t - i
                    sees[t, i], W[t, i] = True, d if d <= self.N else self.N + -(-(d - self.N) // self.E)
                elif owner[i] == owner[t]:
                    sees[t, i], W[t, i] = True, t - i
                elif owner[i] == 0:
                    sees[t, i], W[t, i] = True, self.F + (t - self.F) % C - i
        return W, sees


@dataclass(frozen=True, eq=False)
class Table(Weave):
    matrix: Tensor
    name: ClassVar[str] = "table"

    def __call__(self, t, i):
        return self.matrix[t.long(), i.long()]


@dataclass(frozen=True, eq=False)
class Seen(Visibility):
    matrix: Tensor

    def sees(self, t, i):
        return self.matrix[t.long(), i.long()]


def reference(model: nn.Module, paper: Paper, tokens: Tensor, prompt: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits and hidden states of one row from the dense matrices, in one pass."""
    W, sees = paper.matrices(tokens.shape[1], prompt)
    scheme = Scheme("table", paper.M, weave=Table(W), visibility=Seen(sees))
    with apply_scheme(model, scheme, backend="dense", exact_angles=True):
        out = model(tokens, output_hidden_states=True, use_cache=False)
    return out.logits, out.hidden_states


def tiny(model_type: str) -> nn.Module:
    fields = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    if model_type != "gpt_neox":
        fields["num_key_value_heads"] = 2
    config = transformers.AutoConfig.for_model(model_type, **fields)
    return transformers.AutoModelForCausalLM.from_config(config).eval().double()


MODELS = {name: tiny(name) for name in ("llama", "qwen3", "gpt_neox")}


def ids(length: int, batch: int = 1, seed: int = 1) -> Tensor:
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@st.composite
def papers(draw: st.DrawFn) -> tuple[Paper, int]:
    M = draw(st.integers(8, 32))
    F, L, N = draw(st.integers(1, M - 1)), draw(st.integers(1, 30)), draw(st.integers(0, M - 2))
    prompt = draw(st.integers(1, 4 * M))
    least = -(-max(1, prompt - 1 - N) // (M - 1 - N))
    return Paper(M, F, L, draw(st.integers(0, 12)), N, least + draw(st.integers(0, 3))), prompt


@given(drawn=papers(), family=st.sampled_from(sorted(MODELS)), batch=st.integers(1, 4), pad=st.integers(0, 30))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@torch.no_grad()
def test_logits_and_hidden_states_are_the_papers(drawn: tuple[Paper, int], family: str, batch: int, pad: int) -> None:
    """Every position, every layer, float64, a padded row beside a full one, whatever the chunk batch."""
    (paper, prompt), model = drawn, MODELS[family]
    pad = min(pad, prompt - 1)
    tokens, mask = ids(prompt, 2), torch.ones(2, prompt, dtype=torch.long)
    mask[1, :pad] = 0
    with apply_scheme(model, paper.scheme(), exact_angles=True, chunk_batch=batch):
        out = model(tokens, attention_mask=mask, output_hidden_states=True)
    for row, skip in ((0, 0), (1, pad)):
        logits, hidden = reference(model, paper, tokens[row : row + 1, skip:], prompt - skip)
        assert relative(out.logits[row, skip:], logits[0]) < 1e-10
        for mine, theirs in zip(out.hidden_states, hidden, strict=True):
            assert relative(mine[row, skip:], theirs[0]) < 1e-10


@pytest.mark.parametrize("prompt", [90, 20])
@torch.no_grad()
def test_two_hundred_decoded_tokens_are_the_dense_ones(prompt: int) -> None:
    """Greedy, past many windows; from a prompt longer than the window, and from one inside it."""
    model, paper = MODELS["llama"], Paper(M=32, F=4, L=9, M_max=3, N=12, E=20)
    tokens = ids(prompt)
    with apply_scheme(model, paper.scheme(), exact_angles=True):
        out = model.generate(tokens, max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0)
        cache = model(tokens, use_cache=True).past_key_values
        steps = [model(out[:, n : n + 1], past_key_values=cache).logits for n in range(prompt, prompt + 200)]
    logits, _ = reference(model, paper, out, prompt)
    assert torch.equal(out[:, prompt:], logits[:, prompt - 1 : -1].argmax(-1))
    assert relative(torch.cat(steps, dim=1), logits[:, prompt:]) < 1e-10


@pytest.mark.parametrize("length", [1, 5, 63, 64])
@torch.no_grad()
def test_inside_the_window_it_is_the_plain_model_to_the_bit(length: int) -> None:
    model, tokens = MODELS["llama"].float(), ids(length)
    with apply_scheme(model, make_scheme("origin", 64)):
        plain = model(tokens).logits
    with apply_scheme(model, make_scheme("mesa", 64)):
        woven = model(tokens).logits
    MODELS["llama"].double()
    assert torch.equal(plain, woven)


@torch.no_grad()
def test_the_cache_of_a_fed_prompt_is_that_of_one_pass() -> None:
    model, tokens, scheme = MODELS["llama"], ids(300), parse_scheme("mesa", 64)
    caches = []
    for batch in (1, 1000):
        with apply_scheme(model, scheme, chunk_batch=batch):
            caches.append(model(tokens, use_cache=True).past_key_values)
    for fed, whole in zip(*(cache.layers for cache in caches), strict=True):
        assert fed.keys.shape == (1, 2, 300, 8)
        assert relative(fed.keys, whole.keys) < 1e-12 and relative(fed.values, whole.values) < 1e-12


@torch.no_grad()
def test_a_prompt_in_two_calls_is_one_call_if_its_length_is_told() -> None:
    model, tokens, scheme = MODELS["llama"], ids(200), parse_scheme("mesa", 64)
    with apply_scheme(model, scheme):
        whole = model(tokens).logits
    with apply_scheme(model, scheme, prompt=200):
        first = model(tokens[:, :130], use_cache=True)
        second = model(tokens[:, 130:], past_key_values=first.past_key_values)
    assert relative(torch.cat([first.logits, second.logits], dim=1), whole) < 1e-10


@torch.no_grad()
def test_untold_what_follows_a_prompt_counts_as_decoded() -> None:
    model, tokens, scheme = MODELS["llama"], ids(140), parse_scheme("mesa", 64)
    with apply_scheme(model, scheme):
        cache = model(tokens[:, :130], use_cache=True).past_key_values
        together = model(tokens[:, 130:], past_key_values=cache).logits
        cache = model(tokens[:, :130], use_cache=True).past_key_values
        single = [model(tokens[:, n : n + 1], past_key_values=cache).logits for n in range(130, 140)]
    assert relative(together, torch.cat(single, dim=1)) < 1e-10


@torch.no_grad()
def test_only_the_logits_asked_for_are_kept() -> None:
    model, tokens, scheme = MODELS["llama"], ids(300), parse_scheme("mesa", 64)
    with apply_scheme(model, scheme, chunk_batch=1):
        whole = model(tokens).logits
        for keep in (1, 70):
            kept = model(tokens, logits_to_keep=keep).logits
            assert kept.shape[1] == keep and relative(kept, whole[:, -keep:]) < 1e-12
        assert model(tokens, use_cache=False).past_key_values is None


@pytest.mark.parametrize("last", ["paper", "official", "rerope", "leaky", "self-extend", "dual-chunk", "plain"])
@torch.no_grad()
def test_variants_equal_dense_and_differ_from_exact(last: str) -> None:
    model, tokens, scheme = MODELS["llama"], ids(260), parse_scheme(f"mesa(last={last})", 64)
    with apply_scheme(model, scheme, exact_angles=True):
        fast = model(tokens).logits
    with apply_scheme(model, scheme, exact_angles=True, backend="dense", chunk_batch=99):
        assert relative(fast, model(tokens).logits) < 1e-10
    with apply_scheme(model, parse_scheme("mesa", 64), exact_angles=True):
        exact = model(tokens).logits
    assert relative(fast[:, -1], exact[:, -1]) > 1e-6 or last == "paper"
    start = scheme.borders_at(260)[-1]
    assert relative(fast[:, :start], exact[:, :start]) < 1e-10


@torch.no_grad()
def test_the_papers_variant_is_exact_for_the_last_query_of_one_layer() -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "llama", vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    model, tokens = transformers.AutoModelForCausalLM.from_config(config).eval().double(), ids(260)
    logits = {}
    for last in ("exact", "paper"):
        with apply_scheme(model, parse_scheme(f"mesa(last={last})", 64), exact_angles=True):
            logits[last] = model(tokens).logits
    assert relative(logits["paper"][:, -1], logits["exact"][:, -1]) < 1e-10
    assert relative(logits["paper"][:, -9:-1], logits["exact"][:, -9:-1]) > 1e-4


@torch.no_grad()
def test_official_positions_are_those_of_the_authors_code() -> None:
    """Key j at j from b on, below at b-1-floor((b-1-j)/E), b = C*floor((K-1)/C) + 1, written out for one prompt and one
    step.
    """
    scheme = parse_scheme("mesa(last=official,E=5)", 64)
    borders = scheme.borders_at(260)
    C = borders[1] - borders[0]
    for keys in (260, 261, 300):
        b = C * ((keys - 1) // C) + 1
        place = [j if j >= b else b - 1 - (b - 1 - j) // 5 for j in range(keys)]
        weave = scheme.weave_at(keys, 260)
        assert [weave(keys - 1, i) for i in range(keys)] == [place[-1] - p for p in place]


def test_a_step_that_leaves_the_trained_range_is_refused_with_one_that_does_not() -> None:
    scheme = parse_scheme("mesa(N=16,E=3)", 64)
    with pytest.raises(ProbeError, match="E = 3 leaves the trained range at 260 tokens: expected E >= 6"):
        scheme.weave_at(260)
    for spec in ("mesa(N=16)", "mesa(N=16,E=6)"):
        weave = parse_scheme(spec, 64).weave_at(260)
        assert max(weave(259, i) for i in range(260)) <= 63


@given(window=st.integers(4, 3000), share=st.floats(0, 1), tokens=st.integers(1, 10**6))
def test_the_step_grows_only_as_far_as_it_must(window: int, share: float, tokens: int) -> None:
    from probe.schemes.mesa import least_step

    N = int(share * (window - 2))
    E = least_step(N, tokens, window)
    reach = lambda e: N + max(0, -(-(tokens - 1 - N) // e))  # noqa: E731
    assert reach(E) <= max(window - 1, N) and (E == 1 or reach(E - 1) > window - 1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mesa(F=64)", "F: expected 1 to 63 .*got 64"), ("mesa(F=0)", "F: expected 1 to 63"),
        ("mesa(L=0)", "L: expected an integer >= 1, got 0"),
        ("mesa(M_max=-1)", "M_max: expected an integer >= 0, got -1"),
        ("mesa(N=-1)", "N: expected an integer >= 0"),
        ("mesa(last=best)", "last: expected one of exact, paper, .*got best"),
        ("mesa(last=3)", "last: expected one of exact"), ("mesa(N=abc)", "parameter N: expected an integer, got abc"),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        parse_scheme(spec, 64)


def test_an_n_that_fills_the_window_is_refused_where_it_matters() -> None:
    with pytest.raises(ProbeError, match="N: expected at most 62 for a window of 64, got 63"):
        parse_scheme("mesa(N=63)", 64).weave_at(65)


@torch.no_grad()
def test_out_of_memory_halves_the_batch_and_goes_on(tiny_llama: Callable[..., nn.Module]) -> None:
    """A layer that cannot take more than 100 tokens at once, in the middle of the stack, so that a half-filled cache is
    cleaned up.
    """
    model, tokens, scheme = tiny_llama().double(), ids(400), parse_scheme("mesa", 64)
    seen = []
    with apply_scheme(model, scheme):
        whole = model(tokens).logits

    def limited(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].shape[1])
        if inputs[0].shape[1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    handle = model.model.layers[1].mlp.gate_proj.register_forward_pre_hook(limited)
    with apply_scheme(model, scheme, chunk_batch=8):
        fed = model(tokens).logits
    handle.remove()
    assert relative(fed, whole) < 1e-12 and max(seen) > 100


def test_other_errors_pass_through(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama()

    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    forward = type(model).forward
    model.model.layers[0].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes cannot"), apply_scheme(model, parse_scheme("mesa", 64)):
        model(ids(200))
    assert "forward" not in model.__dict__ and "forward" not in model.model.__dict__ and type(model).forward is forward


def test_a_chunk_batch_is_auto_or_a_count(tiny_llama: Callable[..., nn.Module]) -> None:
    for bad in ("many", 0, "1.5"):
        with (
            pytest.raises(ProbeError, match="chunk_batch: expected auto or an integer >= 1"),
            apply_scheme(tiny_llama(), parse_scheme("mesa", 64), chunk_batch=bad),
        ):
            pass
