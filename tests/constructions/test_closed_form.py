"""The sympy formulas against sums written out here, and against each other."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from constructions import closed_form as cf
from constructions.errors import ConstructionError
from constructions.horizon import crossing, recovered, scan
from constructions.horizon import growth as series
from constructions.table import Table, subadditive_closure
from constructions.weave import Clamp, Grouped, Leaky, Linear, Stair


def growth(weave, t: int, s: float = 1.0) -> float:
    """G(t) by its definition, 1-based as in the paper."""
    return sum(math.exp(s * (weave(t - 1, 0) - weave(i - 1, 0) - weave(t - 1, i - 1))) for i in range(1, t + 1))


@pytest.mark.parametrize("proof", cf.proofs(), ids=lambda proof: proof.statement)
def test_every_step_is_proved_or_certified(proof):
    assert proof.ok
    assert proof.how in ("sympy", "enumeration")


@pytest.mark.parametrize("t", [1, 2, 7, 30])
@pytest.mark.parametrize("s", [1, Fraction(1, 3)])
def test_f_is_the_softmax_weight_of_bos(t, s):
    value = float(cf.f.subs({cf.t: t, cf.s: sp.Rational(s)}))
    assert value == pytest.approx(math.exp(-s * (t - 1)) / sum(math.exp(-s * j) for j in range(t)), rel=1e-12)


@pytest.mark.parametrize(("N", "s"), [(1, 1.0), (4, 1.0), (6, 0.3)])
@pytest.mark.parametrize("t", [2, 7, 12, 13, 40])
def test_growth_of_rerope(N, s, t):
    G = cf.FORMS["clamp"].G if t >= 2 * N else cf.middle_clamp() if t > N else cf.t
    assert float(G.subs({cf.N: N, cf.s: s, cf.t: t})) == pytest.approx(growth(Clamp(N), t, s), rel=1e-12)


@pytest.mark.parametrize("t", [10, 30, 41])
def test_growth_of_leaky(t):
    G = cf.FORMS["leaky"].G.subs({cf.w: 5, cf.k: 3, cf.s: 1, cf.t: t})
    assert float(G) == pytest.approx(growth(Leaky(5, 3.0), t), rel=1e-12)


@pytest.mark.parametrize(
    ("weave", "start"), [(Stair(3, 4), 14), (Stair(5, 2), 14), (Grouped(6, 2), 16), (Grouped(7, 3), 20)]
)
def test_growth_of_stair_and_self_extend_is_linear_along_each_residue_class(weave, start):
    form = cf.FORMS[weave.name]
    step = weave.E if isinstance(weave, Stair) else weave.G
    for t0 in range(start, start + step):
        t = t0 + 5 * step
        values = {cf.s: 1, cf.t: t, cf._t0: t0, cf._G0: growth(weave, t0)}
        if isinstance(weave, Stair):
            values |= {cf.N: weave.N, cf.E: weave.E, cf.rho: (2 * weave.N + 1 - t) % step}
        else:
            values |= {cf.W: weave.W, cf.g: weave.G}
        assert float(form.G.subs(values)) == pytest.approx(growth(weave, t), rel=1e-10)


@pytest.mark.parametrize("weave", [Linear(), Clamp(3), Stair(2, 3), Grouped(4, 2), Leaky(3, 2.5)], ids=repr)
@pytest.mark.parametrize("t", [1, 5, 17])
def test_growth_polynomial_is_the_definition(weave, t):
    assert float(cf.growth_polynomial(weave, t).subs(cf.s, 1)) == pytest.approx(growth(weave, t), rel=1e-12)
    assert float(cf.growth_at(weave, t, 1.0)) == pytest.approx(growth(weave, t), rel=1e-12)


@pytest.mark.parametrize(
    "weave",
    [
        Linear(),
        Clamp(1),
        Clamp(3),
        Leaky(3, 8.0),
        Stair(2, 4),
        Stair(4, 3),
        Stair(1, 9),
        Stair(3, 1),
        Grouped(6, 2),
        Grouped(7, 3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("value", [3, 9, 14])
@pytest.mark.parametrize("s", [1.0, 0.4])
def test_exact_crossing_is_where_a_scan_of_g_finds_it(weave, value, s):
    G = np.array([growth(weave, t, s) for t in range(1, 420)])
    found = crossing(value * (1 - 1e-9) > G)
    predicted = cf.exact_crossing(weave, value, s)
    if predicted.settled < 410:
        assert (predicted.first_failure, predicted.settled) == (found.first_failure, found.settled)
    else:
        assert found.settled is None or found.first_failure == predicted.first_failure


def test_exact_crossing_of_a_weave_given_by_values_is_left_to_a_scan():
    weave = subadditive_closure([min(d, 2) for d in range(200)])
    assert cf.exact_crossing(weave, 9, 1.0) is None
    assert scan(weave, 9, 1.0, 200) == cf.exact_crossing(Clamp(2), 9, 1.0)


def test_log_horizon_grows_by_s_per_unit_of_n_for_rerope_and_by_less_for_stair():
    def log_horizon(weave) -> float:
        return math.log(cf.exact_crossing(weave, 200, 1.0).first_failure)

    rerope = [log_horizon(Clamp(N)) for N in (4, 8)]
    assert rerope[1] - rerope[0] == pytest.approx(4, abs=0.01)
    stair = [log_horizon(Stair(N, 4)) for N in (4, 8)]
    assert stair[1] - stair[0] == pytest.approx(4 * (1 - 1 / 4), abs=0.05)


# The drift of the real MLP


@pytest.mark.parametrize(("N", "s", "t"), [(2, 1.0, 30), (4, 1.0, 90), (3, 0.5, 60)])
def test_drifting_growth_of_rerope_is_the_sum_over_smoothly_recovered_positions(N, s, t):
    def tau(i: int) -> float:
        x = math.exp(-s * min(i - 1, N)) / sum(math.exp(-s * min(j, N)) for j in range(i))
        return math.log(1 + math.expm1(s) / x) / s

    total = sum(math.exp(s * (1 - tau(i) + min(t - 1, N) - min(t - i, N))) for i in range(1, t + 1))
    assert float(cf.drifting_growth_clamp(t, N, s)) == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize(("N", "value"), [(1, 5), (2, 6), (2, 7), (3, 6)])
def test_drifting_horizon_bounds_that_of_the_mlp_from_below(N, value):
    found = scan(Clamp(N), value, 1.0, 1500, "mlp")
    bound = float(cf.drifting_horizon_clamp(N, value, 1.0))
    exact = cf.exact_crossing(Clamp(N), value, 1.0)
    assert exact.first_failure < bound <= found.first_failure + 1 < 3 * bound


@pytest.mark.parametrize("polygon", [False, True])
def test_drifting_growth_gains_its_rate_per_unit_of_ln_t(polygon):
    if polygon:
        # From t to e t the polygon passes one whole knot interval, whatever the phase.
        G = series(Clamp(2), recovered(Clamp(2), 2981, 1.0, "mlp"), 1.0)
        measured = G[2980] - G[round(2981 / math.e) - 1]
    else:
        measured = float(cf.drifting_growth_clamp(10**9, 2, 1.0) - cf.drifting_growth_clamp(10**9 / math.e, 2, 1.0))
    assert measured == pytest.approx(float(cf.drifting_rate(1.0, polygon)), rel=0.02)


@pytest.mark.parametrize(("N", "E"), [(2, 4), (3, 2), (1, 3), (2, 50)])
def test_drift_under_stair_tends_to_its_limit(N, E):
    weave = Stair(N, E)
    t = N + 12 * E
    p = recovered(weave, t, 1.0, "mlp")[-1]
    assert float(p) - weave.of(t - 1) - 1 == pytest.approx(float(cf.polygon_drift_stair(N, E, 1.0)), abs=1e-3)


def test_drift_stretches_stairs_horizon_by_its_factor():
    exact, drifting = (scan(Stair(2, 4), 400, 1.0, 2500, kind).first_failure for kind in ("exact", "mlp"))
    assert drifting / exact == pytest.approx(float(cf.drifting_factor_stair(2, 4, 1.0)), rel=0.01)


@pytest.mark.parametrize("name", cf.FORMS)
def test_latex_has_growth_horizon_and_output(name):
    text = cf.FORMS[name].latex()
    assert text.count("\n") == 3
    assert text.startswith("G(t) = ")


def test_growth_polynomial_refuses_t_below_1():
    with pytest.raises(ConstructionError, match="t: expected an integer >= 1, got 0"):
        cf.growth_polynomial(Table((0.0,)), 0)
