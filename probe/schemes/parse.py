"""The text form of a scheme.

    name                 a preset with its defaults:               stair
    name(key=value,..)   with some of its parameters:              stair(N=64,E=8), mesa(last=rerope)
    ...+part             with an option added:                     rerope+logn, streaming-llm+bottom(L=64,N=32,E=8)
    ...+preset           with another preset's choices added:      stair+yarn(s=4), star(B=256)+rerope

Parts apply from left to right, as many as wanted. Options are logn and mscale (temperatures, which multiply), lambda
(sinks and recent keys only) and bottom, bottom-plain or bottom-WEAVE (the prompt's last L tokens, and all that is
generated, see every key). Frequencies, weave and visibility can each be chosen once: `rerope+stair` is an error.
Several schemes are separated by commas. `probe schemes` lists every name, parameter and default.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from probe.errors import FieldError, ProbeError, literal
from probe.schemes.options import add_part, part_named
from probe.schemes.presets import make_scheme, preset_named
from probe.schemes.scheme import Scheme, Value

_PLUS = re.compile(r"\+(?![^()]*\))")  # outside parentheses: 1e+3 is a number
_PAIR = re.compile(r"(?P<key>[A-Za-z_]\w*)\s*=\s*(?P<value>[\w.+-]+)")
_CALL = re.compile(r"(?P<name>[a-z][a-z0-9-]*)\s*(\((?P<inner>[^()]*)\))?\s*")


def split_specs(text: str) -> list[str]:
    """Split at commas that are outside parentheses.

    Raises:
        ProbeError: nothing between two of them, or nothing at all.
    """
    specs = [part.strip() for part in re.split(r",(?![^()]*\))", text)]
    if not any(specs):
        raise FieldError("schemes", "at least one scheme", "none")
    if not all(specs):
        raise FieldError("schemes", "a scheme before and after every comma", repr(text))
    return specs


def _overrides(spec: str, inner: str | None) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for pair in filter(None, (part.strip() for part in (inner or "").split(","))):
        match = _PAIR.fullmatch(pair)
        if match is None or match["key"] in ("name", "window"):
            raise ProbeError(f"scheme {spec!r}: expected parameters as name=number, got {pair!r}")
        values[match["key"]] = _value(match["value"])
    return values


def _value(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text


def _calls(spec: str) -> list[tuple[str, dict[str, Value]]]:
    """Name and parameters of every part.

    Raises:
        ProbeError: the text does not parse, or a name is unknown.
    """
    calls = []
    for text in (part.strip() for part in _PLUS.split(spec)):
        match = _CALL.fullmatch(text)
        if match is None:
            raise ProbeError(f"scheme {spec!r}: expected name, name(N=64,E=8) or name+logn")
        calls.append((match["name"], _overrides(spec, match["inner"])))
    preset_named(calls[0][0])
    for name, _ in calls[1:]:
        part_named(name, spec)
    return calls


def check_texts(text: str) -> None:
    """Refuse a list of schemes whose text is wrong for every window; needs no model.

    Raises:
        ProbeError: a text that does not parse, or an unknown name.
    """
    for spec in split_specs(text):
        _calls(spec)


def parse_scheme(spec: str, window: int) -> Scheme:
    """Build the scheme that `spec` names, for a window M.

    Raises:
        ProbeError: the text does not parse, or names something unknown.
    """
    (name, overrides), *extras = _calls(spec)
    scheme = make_scheme(name, window, **overrides)
    for name, overrides in extras:
        scheme = add_part(scheme, name, **overrides)
    return scheme


def parse_schemes(text: str, window: int) -> list[Scheme]:
    """Build every scheme of a comma-separated list.

    Raises:
        ProbeError: as `parse_scheme`; also if the list is empty or names one scheme twice.
    """
    return _unique([parse_scheme(spec, window) for spec in split_specs(text)])


def resolve_schemes(schemes: str | Scheme | Sequence[str | Scheme], window: int) -> list[Scheme]:
    """Schemes given as text, as objects, or both, for a window M.

    Args:
        schemes: text such as "origin,rerope(N=64)", objects, or a list of either.
        window: trained window M of the model that they are for.

    Raises:
        ProbeError: as `parse_schemes`; also an object that was made for another window, or that has the name of a
            scheme that it is not.
    """
    given = [schemes] if isinstance(schemes, str | Scheme) else list(schemes)
    found: list[Scheme] = []
    for one in given:
        if isinstance(one, Scheme):
            found.append(_checked_object(one, window))
        elif isinstance(one, str):
            found += [parse_scheme(spec, window) for spec in split_specs(one)]
        else:
            raise FieldError("schemes", "text such as rerope(N=64), or Scheme objects", type(one).__name__)
    if not found:
        raise FieldError("schemes", "at least one scheme", "none")
    return _unique(found)


def _checked_object(scheme: Scheme, window: int) -> Scheme:
    """The object, once it is known to be for this window and to be what its name says.

    Raises:
        ProbeError: it is not.
    """
    if scheme.window != window:
        raise FieldError(
            "schemes",
            f"{scheme.spec} made for the model's window of {window}",
            scheme.window,
            "make it for that window",
        )
    try:
        named = parse_scheme(scheme.spec, window)
    except ProbeError:
        return scheme  # a name of its own
    parts = ("frequencies", "weave", "visibility", "scale")
    same = all(type(getattr(named, part)) is type(getattr(scheme, part)) for part in parts)
    if not same or named.parameters != scheme.parameters:
        raise FieldError("schemes", f"a name of its own for a scheme that is not {scheme.spec}", value=scheme.spec)
    return scheme


def _unique(schemes: list[Scheme]) -> list[Scheme]:
    specs = [scheme.spec for scheme in schemes]
    for spec in specs:
        if specs.count(spec) > 1:
            raise FieldError("schemes", hint=f"{literal(spec)} is named twice")
    return schemes
