"""Frequencies and temperatures: against transformers' own rope types, and against the formulas of their sources."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from probe.errors import ProbeError
from probe.schemes import parse_scheme
from probe.schemes.frequencies import NTK, DynamicNTK, Frequencies, Interpolation, Unrotated, YaRN
from probe.schemes.scheme import LogN, MScale, Product, Scale
from probe.seam.apply import apply_scheme

WINDOW = 64
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "original_max_position_embeddings": WINDOW}
STOCK = {
    "pi(s=4)": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "ntk(a=8)": {"rope_type": "default", "rope_theta": 10000.0 * 8 ** (12 / 10)},
    "yarn(s=4)": YARN | {"factor": 4.0},
    "yarn(s=3.5,beta_fast=4,beta_slow=0.5)": YARN | {"factor": 3.5, "beta_fast": 4.0, "beta_slow": 0.5},
}


def ids(length: int) -> torch.Tensor:
    return torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(2))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("spec", STOCK)
@pytest.mark.parametrize("length", [40, 200])
@torch.no_grad()
def test_logits_are_those_of_transformers_own_rope_type(
    spec: str, length: int, tiny_llama: Callable[..., nn.Module]
) -> None:
    tokens, trained = ids(length), tiny_llama()
    stock = tiny_llama(rope_parameters=STOCK[spec])
    stock.load_state_dict(trained.state_dict())
    expected = stock(tokens).logits
    with apply_scheme(trained, parse_scheme(spec, WINDOW)):
        assert relative(trained(tokens).logits, expected) < 1e-5
    assert relative(trained(tokens).logits, expected) > 1e-4


@torch.no_grad()
def test_a_stretch_of_0_follows_the_length_and_is_1_inside_the_window(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama()
    for name in ("pi", "yarn"):
        logits = {}
        for spec, length in ((name, 256), (f"{name}(s=4)", 256), (name, 60), ("origin", 60)):
            with apply_scheme(model, parse_scheme(spec, WINDOW)):
                logits[spec, length] = model(ids(length)).logits
        assert torch.equal(logits[name, 256], logits[f"{name}(s=4)", 256])
        assert torch.equal(logits[name, 60], logits["origin", 60])


@torch.no_grad()
def test_without_rotation_the_order_of_earlier_tokens_does_not_matter_to_one_layer(
    tiny_llama: Callable[..., nn.Module],
) -> None:
    model, tokens = tiny_llama(num_hidden_layers=1).double(), ids(30)
    shuffled = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], dim=1)
    with apply_scheme(model, parse_scheme("nope", WINDOW)):
        assert relative(model(shuffled).logits[:, -1], model(tokens).logits[:, -1]) < 1e-12
    assert relative(model(shuffled).logits[:, -1], model(tokens).logits[:, -1]) > 1e-3


FREQUENCIES = st.one_of(
    st.just(Frequencies()),
    st.just(Unrotated()),
    st.builds(Interpolation, s=st.floats(1, 100)),
    st.builds(NTK, a=st.floats(1, 100)),
    st.builds(DynamicNTK, a=st.floats(0, 10)),
    st.builds(YaRN, s=st.floats(1, 100), beta_fast=st.floats(2, 64), beta_slow=st.floats(0.1, 1.9)),
)


@given(
    kind=FREQUENCIES, half=st.integers(1, 64), base=st.floats(100, 1e7),
    length=st.integers(1, 10**6), window=st.integers(2, 10**5),
)  # fmt: skip
def test_factors_only_slow_down_and_the_slow_ones_most(
    kind: Frequencies, half: int, base: float, length: int, window: int
) -> None:
    factors = kind.factors(2 * half, base, length, window)
    assert factors.shape == (half,) and factors.dtype == torch.float64
    assert bool((factors >= 0).all() and (factors <= 1 + 1e-12).all() and (factors.diff() <= 1e-12).all())


@given(half=st.integers(2, 64), base=st.floats(100, 1e6), a=st.floats(1, 64))
def test_ntk_leaves_the_highest_frequency_and_divides_the_lowest_by_a(half: int, base: float, a: float) -> None:
    factors = NTK(a).factors(2 * half, base, 1, 64)
    assert float(factors[0]) == 1 and float(factors[-1]) == pytest.approx(1 / a)
    own = base ** -(torch.arange(0, 2 * half, 2, dtype=torch.float64) / (2 * half))
    changed = (base * a ** (half / (half - 1))) ** -(torch.arange(0, 2 * half, 2, dtype=torch.float64) / (2 * half))
    assert torch.allclose(own * factors, changed, rtol=1e-12, atol=0)


@given(a=st.floats(1, 64), half=st.integers(2, 64))
def test_dynamic_ntk_with_a_1_is_ntk_at_the_lengths_own_factor(a: float, half: int) -> None:
    dynamic = DynamicNTK(1.0).factors(2 * half, 1e4, round(64 * a), 64)
    assert torch.allclose(dynamic, NTK(round(64 * a) / 64).factors(2 * half, 1e4, 1, 64), rtol=1e-12)


def test_temperatures_are_their_formulas_and_multiply() -> None:
    t = torch.arange(300)
    logn = [max(1.0, math.log(n + 1) / math.log(WINDOW)) for n in range(300)]
    mscale = (0.1 * math.log(4) + 1) ** 2
    got = Product(MScale(4), LogN()).factors(t, 300, WINDOW)
    assert got is not None and got.tolist() == pytest.approx([mscale * n for n in logn])
    assert MScale().factors(t, WINDOW, WINDOW) is None and Scale().factors(t, 300, WINDOW) is None
    follows = MScale().factors(t, 4 * WINDOW, WINDOW)
    assert follows is not None and follows.tolist() == pytest.approx([mscale] * 300)
    alone = Product(Scale(), LogN()).factors(t, 300, WINDOW)
    assert alone is not None and alone.tolist() == pytest.approx(logn)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("pi(s=0.5)", "pi: s: expected a number >= 1, or 0 to follow T/M, got 0.5"),
        ("yarn(s=-1)", "yarn: s: expected a number >= 1, or 0"),
        ("yarn(beta_fast=1)", "expected beta_fast > beta_slow > 0, got 1 and 1"),
        ("ntk(a=0.1)", "ntk: a: expected a number >= 1, got 0.1"),
        ("dynamic-ntk(a=-1)", "dynamic-ntk: a: expected a number >= 0, got -1"),
        ("origin+mscale(s=0.2)", "mscale: s: expected a number >= 1"),
    ],
)
def test_what_would_shrink_the_window_is_refused(spec: str, says: str) -> None:
    with pytest.raises(ProbeError) as caught:
        parse_scheme(spec, WINDOW)
    assert says in str(caught.value)
