"""The table of named schemes. A new scheme is a new row.

Defaults that the paper gives for windows of 2048 and more (N = 512, ...) are scaled in proportion below that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from constructions.weave import Clamp, Stair, WeaveError
from probe.errors import ProbeError
from probe.schemes.frequencies import DynamicNTK
from probe.schemes.scheme import Scheme, leaky_to_length


@dataclass(frozen=True)
class Parameter:
    """A preset's parameter: its default as a function of the window M."""

    default: Callable[[int], float]
    help: str
    integer: bool = True


@dataclass(frozen=True)
class Preset:
    """One row: `parts(parameters)` gives the fields of `Scheme` that differ from the model as trained."""

    name: str
    summary: str
    source: str
    parts: Callable[[dict], dict[str, object]] = lambda p: {}
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def defaults(self, window: int) -> dict[str, float]:
        """Parameter values for a window M."""
        return {name: parameter.default(window) for name, parameter in self.parameters.items()}


def published(value: int) -> Callable[[int], int]:
    """A default published for M >= 2048, in proportion (at least 1) below."""
    return lambda window: value if window >= 2048 else max(1, value * window // 2048)


_EXACT = Parameter(published(512), "distances up to this are exact")

PRESETS: dict[str, Preset] = {
    row.name: row
    for row in (
        Preset("origin", "the model as trained", "the model's own paper"),
        Preset(
            "dynamic-ntk",
            "W(d) = d; RoPE base grows with T/M",
            "https://www.reddit.com/r/LocalLLaMA/comments/14mrgpr/",
            lambda p: {"frequencies": DynamicNTK(**p)},
            {"a": Parameter(lambda window: 1.0, "base * (a*T/M - (a-1))^(D/(D-2))", integer=False)},
        ),
        Preset(
            "rerope",
            "W(d) = min(d, N)",
            "https://kexue.fm/archives/9708",
            lambda p: {"weave": Clamp(**p)},
            {"N": _EXACT},
        ),
        Preset(
            "leaky-rerope",
            "W(d) = d up to w, then w + (d - w)/k with 1/k = (M - w)/(T - w)",
            "https://kexue.fm/archives/9728",
            lambda p: {"weave": leaky_to_length(**p)},
            {"w": _EXACT},
        ),
        Preset(
            "stair",
            "W(d) = d up to N, then N + ceil((d - N)/E)",
            "Mesa-Extrapolation, Eq. 3 (https://arxiv.org/abs/2410.15859)",
            lambda p: {"weave": Stair(**p)},
            {"N": _EXACT, "E": Parameter(published(50), "keys that share a step")},
        ),
    )
}


def _checked(preset: Preset, name: str, value: float) -> float:
    """The value, as an int where the parameter is one."""
    if name not in preset.parameters:
        known = ", ".join(preset.parameters) or "it takes none"
        raise ProbeError(f"scheme {preset.name}: unknown parameter {name!r}; known: {known}")
    if not math.isfinite(value) or (preset.parameters[name].integer and value != int(value)):
        kind = "an integer" if preset.parameters[name].integer else "a finite number"
        raise ProbeError(f"scheme {preset.name}: parameter {name}: expected {kind}, got {value}")
    return int(value) if preset.parameters[name].integer else value


def _spec(name: str, overrides: Mapping[str, float]) -> str:
    inner = ",".join(f"{key}={value:g}" for key, value in overrides.items())
    return f"{name}({inner})" if inner else name


def make_scheme(name: str, window: int, **overrides: float) -> Scheme:
    """Build a preset for a window M.

    Raises:
        ProbeError: unknown preset or parameter, or a value outside its domain.
    """
    if name not in PRESETS:
        raise ProbeError(f"unknown scheme {name!r}; known: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    checked = {key: _checked(preset, key, value) for key, value in overrides.items()}
    values = preset.defaults(window) | checked
    try:
        parts = preset.parts(values)
        scheme = Scheme(_spec(name, checked), window, parameters=values, **parts)  # type: ignore[arg-type]
        scheme.weave_at(window)
    except WeaveError as error:
        raise ProbeError(f"scheme {name}: {error}") from None
    return scheme
