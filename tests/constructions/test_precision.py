"""The precision map against runs: what it allows works, what it refuses does not, and what it recommends does."""

from __future__ import annotations

import re

import numpy as np
import pytest

from constructions.errors import ConstructionError
from constructions.horizon import predicted
from constructions.precision import ERROR, NUMBERS, largest_m, largest_slope, tolerance
from constructions.toy import Parameters, build, load
from constructions.verify import check_theorem, measure, words


@pytest.mark.parametrize(
    ("dtype", "slope"), [("float32", 1.0), ("float32", 0.25), ("float64", 1.0), ("float64", 0.6), ("float32", 0.06)]
)
def test_the_largest_m_verifies_and_the_next_is_refused(dtype, slope):
    M = largest_m(dtype, slope)
    result = check_theorem("3.2", Parameters(M=M, slope=slope, length=M + 40), dtype)
    assert result.ok, result.problems
    with pytest.raises(ConstructionError, match=f"largest M: {M}"):
        check_theorem("3.2", Parameters(M=M + 1, slope=slope), dtype)


@pytest.mark.parametrize(("dtype", "M"), [("float32", 110), ("float64", 760)])
def test_past_the_map_theorem_32_breaks(dtype, M):
    built = build("3.2", Parameters(M=M, slope=1.0))
    try:
        o, _ = measure(built, words(built, M + 2), dtype)
    except ConstructionError as error:
        assert "overflows" in str(error)
        return
    # Where f underflows every position is taken for the last knot; the keys there lose weight, and o_T stays above H.
    assert o[M + 1] > built.H + 0.01


@pytest.mark.parametrize(
    ("dtype", "M", "slope"), [("float32", 300, 1.0), ("float64", 1500, 1.0), ("float32", 1200, 0.5)]
)
def test_the_slope_that_the_error_names_would_do(dtype, M, slope):
    with pytest.raises(ConstructionError, match="use slope") as refused:
        load("3.2", dtype, M=M, slope=slope)
    named = float(re.search(r"use slope ([0-9.e-]+) or less", str(refused.value)).group(1))
    assert named == largest_slope(dtype, M)
    assert largest_m(dtype, named) >= M > largest_m(dtype, named * 1.2)
    assert check_theorem("3.2", Parameters(M=M, slope=named, length=M + 10), dtype).ok


def test_the_largest_m_grows_as_the_slope_shrinks_until_the_resolution_sets_it():
    for dtype in ("float32", "float64"):
        limits = [largest_m(dtype, 2.0**-k) for k in range(40)]
        assert limits == sorted(limits)
        assert limits[-1] <= largest_m(dtype, 0.0)
    assert largest_m("mpmath", 1.0) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("slope", [1.0, 0.3, 0.05])
def test_rounding_errors_stay_below_the_tolerance(dtype, slope):
    M = min(400, largest_m(dtype, slope))
    built = build("3.2", Parameters(M=M, slope=slope))
    length = M + 20
    formula = predicted(built, length)
    deviation = np.abs(measure(built, words(built, length), dtype)[0] - formula)
    scale = np.abs(formula - built.H + 1) + abs(1 - built.H)
    units = deviation / scale / (NUMBERS[dtype].eps * (1 + slope * length + length**0.5))
    assert 0.01 < units.max() < ERROR
    assert units.max() * tolerance(dtype, slope, length) / ERROR == pytest.approx((deviation / scale).max())


def test_a_large_h_is_refused_where_the_dtype_cannot_tell_o_from_it():
    assert check_theorem("3.1", Parameters(M=8, H=1e6)).ok
    with pytest.raises(ConstructionError, match="smaller \\|H\\|"):
        check_theorem("3.1", Parameters(M=8, H=1e6), "float32")


def test_exact_recovery_of_rerope_is_not_bound_by_underflow():
    """Its knots end at N + 1: M may be far past what float32 could recover one by one."""
    assert largest_m("float32", 1.0) < 500
    assert check_theorem("3.3", Parameters(M=500, N=3, recovery="exact", length=700), "float32").ok
