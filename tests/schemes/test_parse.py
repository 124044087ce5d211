"""The text form of schemes, and what is said about text that is not one."""

from __future__ import annotations

import pytest

from constructions.weave import Clamp, Stair
from probe.errors import ProbeError
from probe.schemes import PRESETS, Scheme, make_scheme, parse_scheme, parse_schemes, resolve_schemes
from probe.schemes.frequencies import NTK, YaRN
from probe.schemes.scheme import LogN, MScale, Product


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
    assert parse_scheme(scheme.spec, 512).visibility_at(2000) == scheme.visibility_at(2000)
    assert parse_scheme(scheme.spec, 512).scale == scheme.scale


@pytest.mark.parametrize(
    "spec",
    [
        "stair(N=64,E=8)+yarn(s=4)",
        "lm-infinite(n_local=90)+bottom-rerope(L=9)+logn",
        "star(B=6)+stair+mscale(s=2)",
        "nope+lambda(x=1,y=7)",
    ],
)
def test_parts_recombine_and_their_text_makes_the_same_scheme_again(spec: str) -> None:
    scheme = parse_scheme(spec, 512)
    assert scheme.spec == spec
    again = parse_scheme(scheme.spec, 512)
    assert again.weave_at(2000) == scheme.weave_at(2000)
    assert again.visibility_at(2000) == scheme.visibility_at(2000)
    assert (again.frequencies, again.scale, again.parameters) == (scheme.frequencies, scheme.scale, scheme.parameters)


def test_a_part_brings_the_choices_of_its_preset() -> None:
    both = parse_scheme("stair(N=64,E=8)+yarn(s=4)", 512)
    assert both.weave == Stair(64, 8) and both.frequencies == YaRN(4) and both.scale == MScale(4)
    assert both.parameters["yarn.s"] == 4
    assert parse_scheme("yarn(s=4)+logn", 512).scale == Product(MScale(4), LogN())


def test_a_spec_keeps_every_digit() -> None:
    for spec in ("rerope(N=1234567)", "yarn(s=3.0000001)"):
        assert parse_scheme(spec, 512).spec == spec


def test_a_plus_inside_parentheses_is_a_number() -> None:
    assert parse_scheme("ntk(a=1e+1)", 512).frequencies == NTK(10)


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
        ("rerope+", "expected name, name(N=64,E=8) or name+logn"),
        ("rerope+logn(N=3)", "scheme logn: unknown parameter 'N'; known: it takes none"),
        ("rerope+stair", "scheme rerope+stair: both sides choose the weave"),
        ("yarn+pi", "scheme yarn+pi: both sides choose the frequencies"),
        ("star+lambda", "scheme star+lambda: both sides choose the visibility"),
        ("dual-chunk(s=9,c=8)", "dual-chunk: c: expected an integer >= 9, got 8"),
        ("streaming-llm(y=0)", "expected an integer >= 1, got 0"),
        ("lm-infinite(n_global=-1)", "expected an integer >= 0, got -1"),
        ("lm-infinite+bottom(L=0)", "bottom attention: L: expected an integer >= 1, got 0"),
        ("star(B=-2)", "star: expected B and L >= 0, got -2"),
    ],
)
def test_bad_text_is_answered_with_what_was_expected(text: str, says: str) -> None:
    with pytest.raises(ProbeError) as caught:
        parse_schemes(text, 512)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_combined_text_is_not_one_name() -> None:
    with pytest.raises(
        ProbeError, match=r"unknown scheme 'mesa\+logn'; known: origin, .*; parse_scheme takes combined texts"
    ):
        make_scheme("mesa+logn", 512)


def test_objects_and_text_mix_and_keep_their_order() -> None:
    mine = Scheme("mine", 512, weave=Clamp(7))
    found = resolve_schemes(["origin,stair(N=8)", mine, make_scheme("rerope", 512)], 512)
    assert [scheme.spec for scheme in found] == ["origin", "stair(N=8)", "mine", "rerope"] and found[2] is mine
    assert resolve_schemes(mine, 512) == [mine] and resolve_schemes("mesa+logn", 512)[0].spec == "mesa+logn"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([Scheme("mine", 256)], "schemes: expected mine made for the model's window of 512, got 256"),
        ([Scheme("rerope", 512)], "schemes rerope: expected a name of its own for a scheme that is not rerope"),
        ([Scheme("stair(N=8)", 512, weave=Clamp(7))], r"that is not stair\(N=8\)"),
        (["origin", Scheme("origin", 512)], "origin is named twice"),
        (["rerope", "rerope"], "rerope is named twice"),
        ([], "schemes: expected at least one scheme, got none"),
    ],
)
def test_objects_that_are_not_what_they_say_are_refused(given: list, says: str) -> None:
    with pytest.raises(ProbeError, match=says):
        resolve_schemes(given, 512)


@pytest.mark.parametrize("name", ["", "a/b", "two\nlines", " "])
def test_a_name_that_cannot_name_an_array_is_refused(name: str) -> None:
    with pytest.raises(ProbeError, match="spec: expected a printable name without a slash"):
        Scheme(name, 512)


def test_a_scheme_shows_itself() -> None:
    scheme = parse_scheme("stair(N=8,E=2)+logn", 512)
    assert str(scheme) == "stair(N=8,E=2)+logn"
    assert scheme.choices() == {
        "frequencies": "trained", "weave": "stair(N=8, E=2)", "visibility": "causal", "scale": "logn"
    }  # fmt: skip
    assert "stair(N=8, E=2)" in scheme._repr_html_()
