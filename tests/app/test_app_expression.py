"""The parser of a reader's own weave: arithmetic and nothing else, whatever is typed."""

import ast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.expression import LONGEST, NAMES, OwnWeave, evaluate, parse
from constructions.weave import Clamp, Stair
from probe.errors import ProbeError

NUMBERS = st.one_of(st.integers(0, 50).map(str), st.floats(0.1, 9).map(lambda x: f"{x:.3g}"))
EXPRESSIONS = st.recursive(
    NUMBERS | st.sampled_from(NAMES),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda part: f"({part[0]} {part[1]} {part[2]})"),
        st.tuples(st.sampled_from(("min", "max")), inner, inner).map(lambda part: f"{part[0]}({part[1]}, {part[2]})"),
        st.tuples(inner, st.sampled_from(("<", ">=", "==")), inner).map(lambda p: f"(1.0 * ({p[0]} {p[1]} {p[2]}))"),
        inner.map(lambda one: f"floor({one})"),
        inner.map(lambda one: f"-{one}"),
    ),
    max_leaves=8,
)


@given(text=EXPRESSIONS, d=st.integers(0, 99))
def test_it_is_pythons_own_arithmetic(text, d):
    if len(text) > LONGEST:
        return
    space = {"d": np.float64(d), "N": np.float64(4), "E": np.float64(3), "M": np.float64(32), "floor": np.floor,
             "min": min, "max": max, "__builtins__": {}}  # fmt: skip
    with np.errstate(all="ignore"):
        found = evaluate(parse(text), {"d": np.array([float(d)]), "N": 4.0, "E": 3.0, "M": 32.0})
        try:
            expected = float(eval(text, space))  # of an expression that this test made
        except ZeroDivisionError:
            return  # between Python's own numbers, which NumPy divides to infinity
    np.testing.assert_allclose(np.broadcast_to(found, 1)[0], expected, rtol=1e-12)


@given(text=st.text(max_size=220))
def test_whatever_is_typed_is_a_weave_or_a_message(text):
    try:
        weave = OwnWeave(text, 4, 4, 32, 64)
    except ProbeError as error:
        assert str(error).startswith("W(d)")
        return
    values = weave.of(np.arange(65))
    assert np.isfinite(values).all() and (values >= 0).all()


CODE = [
    "__import__('os').system('true')", "d.__class__.__mro__", "().__class__", "[x for x in (1,)]", "lambda: d",
    "d if d else 1", "(d := 3)", "f'{d}'", "d[0]", "open('x')", "exec('1')", "min(d, N, E)", "min(*[d, N])",
    "max(d, N, key=d)", "d and N", "not d", "~d", "d << 3", "d @ N", "'a' * 9", "b'a'", "None", "True", "...", "1j",
    "d < N < E", "print(d)", "globals()", "x", "d; N", "d\nN", "#", "", "d = 3", "await d", "yield",
]  # fmt: skip


@pytest.mark.parametrize("text", CODE)
def test_code_is_refused(text):
    with pytest.raises(ProbeError, match=r"^W\(d\): "):
        OwnWeave(text, 4, 4, 32, 64)


@pytest.mark.parametrize(
    "text", ["9**9**9**9", "10**400", "1e400", "(((d+1)**99)**99)**99", "log(d)", "-d", "1/(d-3)", "0/0", "d % 0"]
)
def test_what_is_no_finite_position_is_refused_quickly(text):
    with pytest.raises(ProbeError, match=r"^W\(d\): (expected a finite|a number is too large)"):
        OwnWeave(text, 4, 4, 32, 64)


def test_depth_and_length_have_a_bound():
    with pytest.raises(ProbeError, match="parts within parts"):
        parse("-" * 60 + "d")
    with pytest.raises(ProbeError, match="characters"):
        parse("d+" * 200 + "d")
    assert isinstance(parse("(" * 60 + "d" + ")" * 60), ast.Name)


@given(N=st.integers(1, 20), E=st.integers(1, 9))
def test_the_published_weaves_can_be_written(N, E):
    d = np.arange(200)
    own = OwnWeave("min(d, N)", N, E, 32, 199)
    np.testing.assert_array_equal(own.of(d), Clamp(N).of(d))
    stair = OwnWeave("min(d, N) + ceil(max(d - N, 0) / E)", N, E, 32, 199)
    np.testing.assert_array_equal(stair.of(d), Stair(N, E).of(d))
    assert own(150, 20) == Clamp(N)(150, 20)
