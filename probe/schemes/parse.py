"""The text form of a scheme: `name`, `name(N=64,E=8)`, `name+logn`; several are separated by commas."""

from __future__ import annotations

import re
from dataclasses import replace

from probe.errors import ProbeError
from probe.schemes.presets import make_scheme
from probe.schemes.scheme import LogN, Scale, Scheme

SCALES: dict[str, Scale] = {"logn": LogN()}
"""What may follow a `+`."""

_CALL = re.compile(r"(?P<name>[a-z][a-z0-9-]*)\s*(\((?P<inner>[^()]*)\))?\s*")


def split_specs(text: str) -> list[str]:
    """Split at commas that are outside parentheses."""
    specs = [part.strip() for part in re.split(r",(?![^()]*\))", text)]
    return [spec for spec in specs if spec]


def _overrides(spec: str, inner: str | None) -> dict[str, float]:
    values = {}
    for pair in filter(None, (part.strip() for part in (inner or "").split(","))):
        key, sign, value = (part.strip() for part in pair.partition("="))
        try:
            values[key] = float(value)
        except ValueError:
            sign = ""
        if not sign or key in ("", "name", "window"):
            raise ProbeError(f"scheme {spec!r}: expected parameters as name=number, got {pair!r}")
    return values


def parse_scheme(spec: str, window: int) -> Scheme:
    """Build the scheme that `spec` names, for a window M.

    Raises:
        ProbeError: the text does not parse, or names something unknown.
    """
    first, *extras = (part.strip() for part in spec.split("+"))
    match = _CALL.fullmatch(first)
    if match is None:
        raise ProbeError(f"scheme {spec!r}: expected name, name(N=64,E=8) or name+logn")
    scheme = make_scheme(match["name"], window, **_overrides(spec, match["inner"]))
    for extra in extras:
        if extra not in SCALES:
            raise ProbeError(f"scheme {spec!r}: unknown part {extra!r} after '+'; known: {', '.join(SCALES)}")
        scheme = replace(scheme, scale=SCALES[extra], spec=f"{scheme.spec}+{extra}")
    return scheme


def parse_schemes(text: str, window: int) -> list[Scheme]:
    """Build every scheme of a comma-separated list.

    Raises:
        ProbeError: as `parse_scheme`; also if the list is empty or names one scheme twice.
    """
    schemes = [parse_scheme(spec, window) for spec in split_specs(text)]
    if not schemes:
        raise ProbeError("--scheme: expected at least one scheme, got none")
    specs = [scheme.spec for scheme in schemes]
    for spec in specs:
        if specs.count(spec) > 1:
            raise ProbeError(f"--scheme: {spec} is named twice")
    return schemes
