"""The table of named schemes. A new scheme is a new row.

Defaults that a source gives for windows of 2048 and more (N = 512, ...) are scaled in proportion below that. A default
of 0 for a stretch `s`, and for star's `B` and `L`, means that it follows the input.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from constructions.weave import CacheIndex, Clamp, DualChunk, Grouped, Stair, WeaveError
from probe.errors import ProbeError, unknown
from probe.schemes.frequencies import NTK, DynamicNTK, Interpolation, Unrotated, YaRN
from probe.schemes.mesa import DEFAULT_STEP, LAST, mesa
from probe.schemes.scheme import (
    Extent,
    MScale,
    Scheme,
    Value,
    VisibilityAt,
    dual_chunk_sizes,
    leaky_to_length,
    published,
)
from probe.schemes.visibility import Blocks, Bottom, Lambda, Visibility
from probe.tables import Table


@dataclass(frozen=True)
class Parameter:
    """A preset's parameter: its default as a function of the window M.

    One with `choices` is a name, any other a number.
    """

    default: Callable[[int], Value]
    help: str
    integer: bool = True
    choices: tuple[str, ...] = ()

    def checked(self, value: Value) -> Value:
        """The value, as an int where the parameter is one.

        Raises:
            ProbeError: a value of the wrong kind: what was expected, and what came.
        """
        if self.choices:
            if value not in self.choices:
                raise ProbeError(f"expected one of {', '.join(self.choices)}, got {value}")
            return value
        kind = "an integer" if self.integer else "a finite number"
        if isinstance(value, str) or not math.isfinite(value) or (self.integer and value != int(value)):
            raise ProbeError(f"expected {kind}, got {value}")
        return int(value) if self.integer else value


def shown(value: Value) -> str:
    """A parameter's value as text that gives it back."""
    return value if isinstance(value, str) else f"{value:.12g}"


@dataclass(frozen=True)
class SchemeRow(ABC):
    """What every table of schemes says of a name."""

    name: str
    summary: str
    source: str

    @property
    @abstractmethod
    def takes(self) -> Mapping[str, Parameter]:
        """The parameters by name."""

    def defaults(self, window: int) -> dict[str, Value]:
        """Parameter values for a window M."""
        return {name: parameter.default(window) for name, parameter in self.takes.items()}

    def values(self, window: int, overrides: Mapping[str, Value]) -> dict[str, Value]:
        """Parameter values for a window M, after overrides.

        Raises:
            ProbeError: an unknown parameter, or a value of the wrong kind.
        """
        return self.defaults(window) | {key: self._checked(key, value) for key, value in overrides.items()}

    def _checked(self, name: str, value: Value) -> Value:
        if name not in self.takes:
            known = ", ".join(self.takes) or "it takes none"
            raise ProbeError(f"scheme {self.name}: unknown parameter {name!r}; known: {known}")
        try:
            return self.takes[name].checked(value)
        except ProbeError as error:
            raise ProbeError(f"scheme {self.name}: parameter {name}: {error}") from None

    def spec(self, overrides: Mapping[str, Value]) -> str:
        """The text form, with what was overridden."""
        inner = ",".join(f"{key}={shown(value)}" for key, value in overrides.items())
        return f"{self.name}({inner})" if inner else self.name


@dataclass(frozen=True)
class Preset(SchemeRow):
    """A scheme: `parts(parameters)` gives the fields of `Scheme` that differ from the model as trained."""

    parts: Callable[[dict], dict[str, object]] = lambda p: {}
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def takes(self) -> Mapping[str, Parameter]:
        """The parameters by name."""
        return self.parameters


def _constant(value: Value) -> Callable[[int], Value]:
    return lambda window: value


def star(B: int, L: int) -> VisibilityAt:
    """Star Attention's blocks: each sees itself and the first (the anchor); the prompt's end and what follows see
    everything.

    Args:
        B: tokens in a block, the anchor included; 0 for a quarter of the prompt, as in the source's experiments.
        L: tokens at the prompt's end (the source's query) that see everything; 0 for the last block.

    Raises:
        ProbeError: B or L is negative.
    """
    if min(B, L) < 0:
        raise ProbeError(f"star: expected B and L >= 0, got {min(B, L)}")

    def at(extent: Extent) -> Visibility:
        size = B or max(1, math.ceil(extent.prompt / 4))
        start = extent.prompt - L if L else (extent.prompt - 1) // size * size
        return Bottom(Blocks(size, size), max(0, start))

    return at


_EXACT = Parameter(published(512), "distances up to this are exact")
_STRETCH = Parameter(_constant(0), "how many windows long; 0 follows the input: max(1, T/M)", integer=False)

PRESETS: Table[Preset] = Table(
    "scheme",
    Preset,
    (
        Preset("origin", "the model as trained", "the model's own paper"),
        Preset(
            "dynamic-ntk",
            "W(d) = d; RoPE base grows with T/M",
            "https://www.reddit.com/r/LocalLLaMA/comments/14mrgpr/",
            lambda p: {"frequencies": DynamicNTK(**p)},
            {"a": Parameter(_constant(1), "base * (a*T/M - (a-1))^(D/(D-2))", integer=False)},
        ),
        Preset(
            "pi",
            "W(d) = d; every frequency divided by s",
            "Position Interpolation (https://arxiv.org/abs/2306.15595)",
            lambda p: {"frequencies": Interpolation(**p)},
            {"s": _STRETCH},
        ),
        Preset(
            "ntk",
            "W(d) = d; RoPE base times a^(D/(D-2))",
            "https://www.reddit.com/r/LocalLLaMA/comments/14lz7j5/",
            lambda p: {"frequencies": NTK(**p)},
            {"a": Parameter(_constant(8), "how far the lowest frequency is stretched", integer=False)},
        ),
        Preset(
            "yarn",
            "W(d) = d; slow frequencies divided by s, fast ones kept; logits times (0.1 ln s + 1)^2",
            "YaRN, Sec. 3 (https://arxiv.org/abs/2309.00071)",
            lambda p: {"frequencies": YaRN(**p), "scale": MScale(p["s"])},
            {
                "s": _STRETCH,
                "beta_fast": Parameter(_constant(32), "turns within M from which a frequency is kept", integer=False),
                "beta_slow": Parameter(_constant(1), "turns in the window below which it is divided", integer=False),
            },
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
            {"N": _EXACT, "E": Parameter(DEFAULT_STEP, "keys that share a step")},
        ),
        Preset(
            "self-extend",
            "W = d below W, else (t//G + W - W//G) - i//G",
            "Self-Extend (https://arxiv.org/abs/2401.01325)",
            lambda p: {"weave": Grouped(**p)},
            {
                "W": Parameter(published(1024), "distances below this are exact"),
                "G": Parameter(_constant(4), "positions in a group; the reach is (M - W)*G + W"),
            },
        ),
        Preset(
            "dual-chunk",
            "keys at i mod s; query at t mod s, min(t mod s + s, c) or c, by chunks between",
            "Dual Chunk Attention (https://arxiv.org/abs/2402.17463)",
            lambda p: {"weave": DualChunk(**p)},
            {
                "s": Parameter(lambda window: dual_chunk_sizes(window)[0], "tokens in a chunk"),
                "c": Parameter(lambda window: dual_chunk_sizes(window)[1], "largest position"),
            },
        ),
        Preset(
            "streaming-llm",
            "sees x sinks and the y most recent keys; positions are indices in that cache",
            "StreamingLLM, Sec. 3.2 (https://arxiv.org/abs/2309.17453)",
            lambda p: {"weave": CacheIndex(**p), "visibility": Lambda(**p)},
            {
                "x": Parameter(_constant(4), "sinks: first keys that stay"),
                "y": Parameter(lambda window: max(1, window - 4), "recent keys, the query's own included"),
            },
        ),
        Preset(
            "lm-infinite",
            "sees n_global sinks and n_local recent keys; W(d) = min(d, n_local)",
            "LM-Infinite (https://arxiv.org/abs/2308.16137)",
            lambda p: {"weave": Clamp(p["n_local"]), "visibility": Lambda(p["n_global"], p["n_local"])},
            {
                "n_global": Parameter(published(100), "sinks: first keys that stay"),
                "n_local": Parameter(lambda window: window, "recent keys, and the largest distance"),
            },
        ),
        Preset(
            "star",
            "W(d) = d; blocks of B see themselves and the first; the last L tokens see everything",
            "Star Attention (https://arxiv.org/abs/2411.17116)",
            lambda p: {"visibility": star(**p)},
            {
                "B": Parameter(_constant(0), "tokens in a block; 0 for a quarter of the prompt"),
                "L": Parameter(_constant(0), "tokens at the prompt's end that see everything; 0 for its last block"),
            },
        ),
        Preset(
            "mesa",
            "chunk 0, middle chunks that see it and themselves, a last chunk that sees everything by Stair PE",
            "Mesa-Extrapolation, Algs. 1 and 2 (https://arxiv.org/abs/2410.15859)",
            mesa,
            {
                "F": Parameter(published(100), "tokens of chunk 0, which every chunk sees"),
                "L": Parameter(published(512), "least tokens of the last chunk"),
                "N": Parameter(
                    lambda window: min(published(512)(window), window - 2), "distances up to this are exact"
                ),
                "E": Parameter(
                    _constant(0),
                    "keys that share a step; 0 for 50 (in proportion below M = 2048), more where the input needs it",
                ),
                "M_max": Parameter(published(200), "largest remainder that joins the last chunk"),
                "last": Parameter(
                    _constant("exact"), "positions of the last chunk and after the prompt", choices=tuple(LAST)
                ),
            },
        ),
        Preset(
            "nope",
            "no rotation: scores do not depend on positions (a control)",
            "RoPE taken away; no source",
            lambda p: {"frequencies": Unrotated()},
        ),
    ),
)  # fmt: skip


def checked(name: str, scheme: Scheme) -> Scheme:
    """The scheme, once its parts are known to resolve at its window.

    Raises:
        ProbeError: they do not.
    """
    try:
        scheme.weave_at(scheme.window)
        scheme.visibility_at(scheme.window)
    except WeaveError as error:
        raise ProbeError(f"scheme {name}: {error}") from None
    return scheme


def preset_parts(preset: Preset, values: dict[str, Value]) -> dict[str, object]:
    """The fields of `Scheme` that a preset sets.

    Raises:
        ProbeError: a value outside its domain.
    """
    try:
        return preset.parts(values)
    except WeaveError as error:
        raise ProbeError(f"scheme {preset.name}: {error}") from None


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ProbeError: there is none.
    """
    if name not in PRESETS:
        if not any(sign in name for sign in "+("):
            raise unknown("scheme", name, PRESETS)
        raise ProbeError(f"unknown scheme {name!r}; known: {', '.join(PRESETS)}; parse_scheme takes combined texts")
    return PRESETS[name]


def make_scheme(name: str, window: int, **overrides: Value) -> Scheme:
    """Build a preset for a window M. Texts that combine parts ("mesa+logn") are for `parse_scheme`.

    Raises:
        ProbeError: unknown preset or parameter, or a value outside its domain.
    """
    preset = preset_named(name)
    values = preset.values(window, overrides)
    parts = preset_parts(preset, values)
    scheme = Scheme(preset.spec(overrides), window, parameters=values, **parts)  # type: ignore[arg-type]
    return checked(name, scheme)
