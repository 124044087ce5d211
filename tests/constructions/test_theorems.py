"""The theorems, each test named after its statement. What is expected is written out here, not taken from the code."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constructions import theorem_33
from constructions.errors import ConstructionError
from constructions.horizon import is_subadditive
from constructions.layernorm import as_written, repaired
from constructions.table import Table, subadditive_closure
from constructions.toy import Parameters, build
from constructions.transformer import Transformer, run_mpmath
from constructions.verify import measure, words
from constructions.weave import Clamp, Grouped, Leaky, Linear, Stair
from constructions.weights import BOS, ONE, READ, RESERVED, STATE, Fillers

SIZES = [(2, 0.5), (3, -1.0), (32, 0.5), (100, 7.25)]
FILLERS = [Fillers(seed=1), Fillers(0, 0, 0, 1, seed=2), Fillers(9, 5, 7, 12, seed=3)]


def head_output(built, length: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    """o_T for T = 0..length-1, as measured."""
    return measure(built, words(built, length, seed), dtype)[0].astype(float)


def brute_force_o(weave, value: int, H: float, s: float, length: int, exact: bool) -> np.ndarray:
    """o_T from scratch, in plain Python floats: both layers' softmax, and a position found by search on f."""

    def f(t: int) -> float:
        return math.exp(-s * (t - 1)) / sum(math.exp(-s * j) for j in range(t))

    knots = [f(t) for t in range(1, min(length, int(600 / s)) + 2)]

    def position(x: float, t: int) -> float:
        if exact:
            return float(weave(t, 0)) + 1
        k = max(n for n in range(len(knots) - 1) if knots[n] >= x * (1 - 1e-12))
        return k + 1 + (knots[k] - x) / (knots[k] - knots[k + 1])

    out, p = [], []
    for t in range(length):
        scores = [math.exp(-s * float(weave(t, i))) for i in range(t + 1)]
        p.append(position(scores[0] / sum(scores), t))
        second = [-s * (p[i] + float(weave(t, i))) for i in range(t + 1)]
        powers = [math.exp(score - max(second)) for score in second]
        out.append(value * powers[0] / sum(powers) - 1 + H)
    return np.array(out)


# Theorem 3.1 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "H"), SIZES)
@pytest.mark.parametrize("fillers", FILLERS)
def test_theorem_31_o_is_above_h_before_m_and_below_after(M, H, fillers):
    o = head_output(build("3.1", Parameters(M=M, H=H, fillers=fillers)), 3 * M + 5)
    assert (o[:M] > H + 0.5 / (M + 1)).all()
    assert o[M] == pytest.approx(H, abs=1e-12)
    assert (o[M + 1 :] < H - 0.5 / (3 * M + 5)).all()


@pytest.mark.parametrize("M", [2, 5, 32])
def test_theorem_31_o_is_m_plus_1_over_t_plus_1(M):
    o = head_output(build("3.1", Parameters(M=M, H=0.25)), 80)
    assert o == pytest.approx([(M + 1) / (T + 1) - 1 + 0.25 for T in range(80)], abs=1e-13)


@pytest.mark.parametrize("theorem", ["3.1", "3.2"])
@pytest.mark.parametrize("M", [2, 8, 31])
def test_index_convention_as_printed_fails_at_m_minus_1_and_as_corrected_holds(theorem, M):
    printed = head_output(build(theorem, Parameters(M=M, convention="printed")), M + 2)
    corrected = head_output(build(theorem, Parameters(M=M)), M + 2)
    assert printed[M - 1] == pytest.approx(0.5, abs=1e-12)  # the statement wants o > H for T < M
    assert corrected[M - 1] == pytest.approx(0.5 + 1 / M, abs=1e-12)
    assert printed == pytest.approx([M / t - 0.5 for t in range(1, M + 3)], abs=1e-12)


# Theorem 3.2 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "H"), SIZES)
@pytest.mark.parametrize("slope", [1.0, 0.25])
@pytest.mark.parametrize("fillers", FILLERS)
def test_theorem_32_o_is_above_h_before_m_and_below_after(M, H, slope, fillers):
    o = head_output(build("3.2", Parameters(M=M, H=H, slope=slope, fillers=fillers)), 3 * M + 5)
    assert (o[:M] > H + 0.5 / (M + 1)).all()
    assert o[M] == pytest.approx(H, abs=1e-11)
    assert (o[M + 1 :] < H - 1e-3 / M).all()


@pytest.mark.parametrize("slope", [1.0, 0.5, 0.01])
def test_theorem_32_layer_1_gives_f_and_its_mlp_gives_t(slope):
    built = build("3.2", Parameters(M=60, slope=slope))
    model = Transformer(built)
    wrote, stream = [], []
    model.layers[0].attn.register_forward_hook(lambda *call: wrote.append(call[-1]))
    model.layers[0].register_forward_hook(lambda *call: stream.append(call[-1]))
    model(torch.tensor([words(built, 62)]))
    f = [math.exp(-slope * (t - 1)) / sum(math.exp(-slope * j) for j in range(t)) for t in range(1, 63)]
    assert wrote[0][0, :, STATE].numpy() == pytest.approx(f, rel=1e-12)
    assert stream[0][0, :, STATE].numpy() == pytest.approx(range(1, 63), abs=1e-9)


@pytest.mark.parametrize("extra", [0, 1, 20])
def test_theorem_32_m_plus_2_recoverable_positions_are_enough_for_every_length(extra):
    M = 12
    built = build("3.2", Parameters(M=M, capacity=M + 2 + extra))
    o = head_output(built, 900)  # far past the last knot, and past where f(t) underflows
    assert (o[:M] > 0.5).all()
    assert (o[M + 1 :] < 0.5 - 1e-3).all()
    assert (np.diff(o[: M + 2 + extra]) < 0).all()


def test_theorem_32_fewer_recoverable_positions_are_refused():
    with pytest.raises(ConstructionError, match="at least M \\+ 2 = 14"):
        build("3.2", Parameters(M=12, capacity=13))


# Theorem 3.3 and Corollary 4.1 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "N", "slope"), [(8, 2, 1.0), (8, 7, 1.0), (20, 3, 0.5), (12, 1, 1.0)])
@pytest.mark.parametrize("recovery", ["exact", "mlp"])
@pytest.mark.parametrize("fillers", FILLERS[:2])
def test_theorem_33_o_stays_above_h_past_m(M, N, slope, recovery, fillers):
    p = Parameters(M=M, N=N, slope=slope, recovery=recovery, length=120, fillers=fillers)
    o = head_output(build("3.3", p), 120)
    expected = brute_force_o(Clamp(N), M + 1, 0.5, slope, 120, recovery == "exact")
    assert o == pytest.approx(expected, abs=1e-10)
    plain = head_output(build("3.2", replace(p, capacity=130)), 120)
    assert (o >= plain - 1e-10).all()
    assert o[M + 1] > 0.5 > plain[M + 1]


@pytest.mark.parametrize(("M", "N", "E"), [(8, 2, 4), (10, 4, 3), (9, 8, 2), (12, 1, 7)])
@pytest.mark.parametrize("recovery", ["exact", "mlp"])
def test_corollary_41_o_stays_above_h_past_m(M, N, E, recovery):
    o = head_output(build("4.1", Parameters(M=M, N=N, E=E, recovery=recovery, length=120)), 120)
    assert o == pytest.approx(brute_force_o(Stair(N, E), M + 1, 0.5, 1.0, 120, recovery == "exact"), abs=1e-10)
    assert o[M + 1] > 0.5


def test_corollary_41_with_e_equal_1_is_the_plain_pe_and_extends_nothing():
    o = head_output(build("4.1", Parameters(M=8, N=4, E=1, recovery="exact", length=60)), 60)
    assert o == pytest.approx([9 / t - 0.5 for t in range(1, 61)], abs=1e-11)


@pytest.mark.parametrize(("slope", "extends"), [(0.0088, True), (0.0087, False)])
def test_theorem_33_needs_a_slope_that_is_not_too_small(slope, extends):
    o = head_output(build("3.3", Parameters(M=32, N=4, slope=slope, recovery="exact")), 40)
    assert (o[33] > 0.5) == extends


def test_theorem_33_changes_nothing_but_the_weave():
    plain = build("3.2", Parameters(M=20, capacity=30))
    woven = build("3.3", Parameters(M=20, capacity=30, length=200))
    for a, b in zip(plain.weights.layers, woven.weights.layers, strict=True):
        for first, second in zip((a.mlp, *a.heads), (b.mlp, *b.heads), strict=True):
            for name in first.__dataclass_fields__:
                assert np.array_equal(getattr(first, name), getattr(second, name))
    assert (plain.weights.embedding == woven.weights.embedding).all()


@pytest.mark.parametrize(
    ("theorem", "M", "N", "E", "recovery", "first", "settled", "length"),
    [
        # ReRoPE: ceil(2N + e^N (M + 1 - 2 S(N))) - 1 by hand.
        ("3.3", 32, 4, None, "exact", 1640, 1640, 1700),
        ("3.3", 8, 2, None, "exact", 50, 50, 120),
        ("3.3", 6, 2, None, "mlp", 521, 521, 700),
        ("4.1", 32, 2, 4, "exact", 119, 267, 400),
        ("4.1", 32, 2, 4, "mlp", 147, 331, 500),
        ("4.1", 32, 2, 4, "rounded", 119, 267, 400),
    ],
)
def test_horizon_o_falls_below_h_at_t_star_and_stays_there(theorem, M, N, E, recovery, first, settled, length):
    p = Parameters(M=M, N=N, E=E or 1, recovery=recovery, length=length)
    o = head_output(build(theorem, p), length)
    above = o > 0.5
    assert above[:first].all()
    assert not above[first]
    assert above[settled - 1]
    assert not above[settled:].any()


def test_horizon_of_rerope_is_2n_plus_e_to_the_n_times_the_rest():
    S = sum(math.exp(-j) for j in range(4))
    assert math.ceil(8 + math.exp(4) * (33 - 2 * S)) - 1 == 1640
    assert math.ceil(8 + math.exp(4) * (32 - 2 * S)) == 1586  # as printed, in t


def test_horizon_with_m_in_w_v_is_116_exact_and_144_with_the_real_mlp():
    for recovery, t_star in (("exact", 116), ("mlp", 144)):
        built = build("4.1", Parameters(M=32, N=2, E=4, recovery=recovery, convention="printed", length=300))
        o = head_output(built, 300)
        assert int(np.argmin(o > 0.5)) + 1 == t_star


def test_rounding_the_recovered_position_holds_rerope_only_while_the_drift_is_below_one_half():
    built = build("3.3", Parameters(M=32, N=4, recovery="rounded", length=400))
    stream = []
    model = Transformer(built)
    model.layers[0].register_forward_hook(lambda *call: stream.append(call[-1]))
    model(torch.tensor([words(built, 400)]))
    p = stream[0][0, :, STATE].numpy()
    assert p[4:43] == pytest.approx(5, abs=1e-9)
    assert p[-1] == pytest.approx(7, abs=1e-9)


@pytest.mark.parametrize(
    "weave", [Linear(), Clamp(3), Leaky(3, 4.0), Stair(3, 5), Grouped(6, 2), Grouped(7, 3), Leaky(0, 2.0)], ids=repr
)
@pytest.mark.parametrize("recovery", ["exact", "mlp"])
def test_every_weave_gives_the_o_of_its_two_softmaxes(weave, recovery):
    built = theorem_33.build_woven("3.3", weave, 12, 0.5, length=70, recovery=recovery)
    assert head_output(built, 70) == pytest.approx(
        brute_force_o(weave, 13, 0.5, 1.0, 70, recovery == "exact"), abs=1e-10
    )


steps = st.lists(st.floats(0, 3), min_size=2, max_size=40)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_no_subadditive_weave_is_worse_than_the_plain_pe(values):
    """Exact recovery, W monotone and subadditive with W(0) = 0: o_t >= value/t - 1 + H in the running model."""
    weave = subadditive_closure(np.maximum.accumulate([0.0, *values]))
    length = len(weave.values)
    assert is_subadditive(weave, length)
    try:
        built = theorem_33.build_woven("3.3", weave, 8, 0.5, length=length, capacity=64, recovery="exact")
    except ConstructionError as error:  # f_W the same to 50 digits where W rises: no MLP can tell those apart
        assert "f_W is the same" in str(error)
        return
    o = head_output(built, length)
    assert (o >= np.array([9 / t for t in range(1, length + 1)]) - 0.5 - 1e-9).all()


@settings(max_examples=200, deadline=None)
@given(steps, st.floats(0.05, 3))
def test_growth_is_at_most_t_for_every_subadditive_weave(values, slope):
    w = subadditive_closure([0.0, *values]).values
    for t in range(1, len(w) + 1):
        G = sum(math.exp(slope * (w[t - 1] - w[i - 1] - w[t - i])) for i in range(1, t + 1))
        assert t * (1 + 1e-9) >= G


def test_a_weave_that_is_not_subadditive_can_be_worse_than_the_plain_pe():
    weave = Table(tuple(0.05 * d**2 for d in range(20)))
    assert not is_subadditive(weave, 20)
    built = theorem_33.build_woven("3.3", weave, 8, 0.5, length=20, capacity=80, recovery="exact")
    assert head_output(built, 20)[4] < 9 / 5 - 0.5 - 0.1


# What the proofs leave arbitrary ---------------------------------------------------------------------------------


@pytest.mark.parametrize("theorem", ["3.1", "3.2", "3.3", "4.1"])
def test_o_does_not_depend_on_the_words_the_fillers_or_the_extra_heads(theorem):
    runs = [
        head_output(build(theorem, Parameters(M=12, fillers=fillers, length=60)), 60, seed)
        for fillers in FILLERS
        for seed in (0, 1)
    ]
    for other in runs[1:]:
        assert other == pytest.approx(runs[0], abs=1e-11)


def test_the_fillers_are_not_zero_and_are_read():
    built = build("3.2", Parameters(M=12))
    model = Transformer(built)
    a, b = (model(torch.tensor([words(built, 20, seed)]))[0] for seed in (0, 1))
    assert (a[1:, RESERVED:] - b[1:, RESERVED:]).abs().min() > 0
    assert torch.equal(a[:, [ONE, BOS]], b[:, [ONE, BOS]])


@pytest.mark.parametrize("theorem", ["3.1", "3.2", "3.3", "4.1"])
def test_the_residual_stream_holds_o_in_its_own_dimension(theorem):
    built = build(theorem, Parameters(M=12, length=40))
    wrote, stream = measure(built, words(built, 40))
    assert np.array_equal(wrote, stream)


def test_a_batch_gives_each_row_what_it_gets_alone():
    built = build("4.1", Parameters(M=12, length=40))
    rows = [words(built, 40, seed) for seed in range(3)]
    model = Transformer(built)
    together = model(torch.tensor(rows))
    for row, tokens in enumerate(rows):
        assert torch.allclose(together[row], model(torch.tensor([tokens]))[0], atol=1e-10, rtol=0)


def test_the_model_is_causal():
    built = build("3.3", Parameters(M=12, length=40))
    model = Transformer(built)
    tokens = words(built, 40)
    assert torch.allclose(model(torch.tensor([tokens]))[0, :25], model(torch.tensor([tokens[:25]]))[0], atol=1e-10)


# Number types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theorem", "recovery"), [("3.1", "mlp"), ("3.2", "mlp"), ("3.3", "exact"), ("4.1", "mlp")])
def test_mpmath_evaluation_agrees_with_float64_in_every_dimension_of_every_layer(theorem, recovery):
    built = build(theorem, Parameters(M=8, N=3, E=2, recovery=recovery, length=24))
    tokens = words(built, 24)
    model, streams = Transformer(built), []
    for layer in model.layers:
        layer.register_forward_hook(lambda *call: streams.append(call[-1][0].numpy()))
    model(torch.tensor([tokens]))
    for (_, exact), measured in zip(run_mpmath(built, tokens), streams, strict=True):
        assert measured == pytest.approx(exact.astype(float), abs=1e-9)


def test_mpmath_carries_theorem_32_to_40_digits():
    o, _ = measure(build("3.2", Parameters(M=12)), words(build("3.2", Parameters(M=12)), 14), "mpmath")
    with mpmath.workdps(50):
        for t, value in enumerate(o, 1):
            assert abs(mpmath.mpf(str(value)) - (mpmath.mpf(13) / t - 0.5)) < mpmath.mpf("1e-40")


# LayerNorm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "mpmath"])
def test_theorem_31_survives_layernorm_before_the_mlp_as_it_is(dtype):
    built = build("3.1", Parameters(M=6))
    o = head_output(as_written(built, "mlp"), 16, dtype=dtype)
    assert o == pytest.approx([7 / t - 0.5 for t in range(1, 17)], abs=1e-12)


@pytest.mark.parametrize(("theorem", "at"), [("3.1", "pre"), ("3.2", "mlp"), ("3.2", "pre"), ("3.3", "mlp")])
def test_as_written_the_other_constructions_do_not_survive_layernorm(theorem, at):
    built = build(theorem, Parameters(M=6, N=2, length=16))
    assert np.abs(head_output(as_written(built, at), 16) - head_output(built, 16)).max() > 0.1


@pytest.mark.parametrize("theorem", ["3.1", "3.2", "3.3", "4.1"])
@pytest.mark.parametrize("at", ["mlp", "pre"])
def test_mirrored_dimensions_and_a_carrier_let_every_construction_survive_layernorm(theorem, at):
    built = build(theorem, Parameters(M=6, N=2, E=2, length=16))
    free = head_output(built, 16)
    errors = [np.abs(head_output(repaired(built, at, C), 16) - free).max() for C in (1e3, 1e4)]
    assert errors[1] < 0.5 / 8  # half the margin of the strict inequality
    assert errors[1] < errors[0] / 50 or errors[0] < 1e-9  # quadratic in 1/C


@pytest.mark.parametrize("dtype", ["float32", "float64", "mpmath"])
def test_the_repair_costs_no_precision(dtype):
    """The mean of x, -x, C, -C comes out as 0 in floats too, so a large carrier swamps nothing."""
    built = repaired(build("3.2", Parameters(M=12)), "pre", 1e8)
    o = head_output(built, 14, dtype=dtype)
    assert o == pytest.approx([13 / t - 0.5 for t in range(1, 15)], abs=1e-5 if dtype == "float32" else 1e-11)


def test_read_and_state_are_distinct():
    assert len({ONE, BOS, STATE, READ}) == RESERVED
