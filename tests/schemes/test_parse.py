"""The text form of schemes, and what is said about text that is not one."""

from __future__ import annotations

import pytest

from constructions.weave import Clamp, Stair
from probe.errors import ProbeError
from probe.schemes import PRESETS, make_scheme, parse_scheme, parse_schemes
from probe.schemes.scheme import LogN


def test_parameters_override_the_defaults_of_the_window() -> None:
    assert parse_scheme("stair", 4096).weave == Stair(512, 50)
    assert parse_scheme("stair", 512).weave == Stair(128, 12)
    assert parse_scheme("stair( N=64, E = 8 )", 512).weave == Stair(64, 8)
    assert parse_scheme("rerope(N=9)+logn", 512).weave == Clamp(9)
    assert isinstance(parse_scheme("rerope+logn", 512).scale, LogN)


def test_a_list_splits_outside_parentheses_only() -> None:
    specs = [scheme.spec for scheme in parse_schemes("origin, stair(N=64,E=8),rerope+logn", 512)]
    assert specs == ["origin", "stair(N=64,E=8)", "rerope+logn"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_spec_makes_the_same_scheme_again(name: str) -> None:
    scheme = make_scheme(name, 512, **PRESETS[name].defaults(512))
    assert parse_scheme(scheme.spec, 512).weave_at(2000) == scheme.weave_at(2000)
    assert parse_scheme(scheme.spec, 512).frequencies == scheme.frequencies


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rope", "unknown scheme 'rope'; known: origin, dynamic-ntk"),
        ("rerope(M=3)", "unknown parameter 'M'; known: N"),
        ("origin(N=3)", "it takes none"),
        ("rerope(N=0)", "expected an integer >= 1, got 0"),
        ("rerope(N=2.5)", "expected an integer, got 2.5"),
        ("rerope(N=nan)", "expected an integer, got nan"),
        ("rerope(N)", "expected parameters as name=number, got 'N'"),
        ("rerope(N=64", "expected name, name(N=64,E=8) or name+logn"),
        ("rerope+stairs", "unknown part 'stairs' after '+'; known: logn"),
        ("rerope,rerope", "rerope is named twice"),
        (" , ", "expected at least one scheme"),
    ],
)
def test_bad_text_is_answered_with_what_was_expected(text: str, says: str) -> None:
    with pytest.raises(ProbeError) as caught:
        parse_schemes(text, 512)
    assert says in str(caught.value) and "\n" not in str(caught.value)
