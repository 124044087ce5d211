"""What may follow a `+`: parts that change a scheme, and every preset's own parts.

A preset after `+` brings the choices it makes (`stair+yarn` is Stair's positions on YaRN's frequencies and
temperature). An option changes what is there: a temperature, a mask, bottom attention. Temperatures multiply; any other
choice can be made only once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from constructions.weave import Switched, Weave
from probe.errors import ProbeError
from probe.schemes.presets import PRESETS, Parameter, Preset, SchemeRow, checked, preset_parts
from probe.schemes.scheme import ORIGIN, Extent, LogN, MScale, Product, Scale, Scheme, Value, WeaveAt, published
from probe.schemes.visibility import Bottom, Lambda, Visibility
from probe.tables import Table

Change = Callable[[Scheme, dict], dict[str, object]]
"""What an option makes of a scheme, given its parameters: the fields that change."""


@dataclass(frozen=True)
class Option(SchemeRow):
    """A row that changes a scheme."""

    change: Change
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def takes(self) -> Mapping[str, Parameter]:
        """The parameters by name."""
        return self.parameters


def _merged(scheme: Scheme, parts: Mapping[str, object], name: str) -> dict[str, object]:
    """Fields of a scheme after other parts: temperatures multiply, anything else must have been free.

    Raises:
        ProbeError: a choice is made twice.
    """
    untouched, fields = Scheme(ORIGIN, scheme.window), dict(parts)
    for kind, part in parts.items():
        mine = getattr(scheme, kind)
        if mine == getattr(untouched, kind):
            continue
        if not isinstance(part, Scale):
            raise ProbeError(f"scheme {scheme.spec}+{name}: both sides choose the {kind}; expected one of them to")
        fields[kind] = Product(mine, part)
    return fields


def _added(scheme: Scheme, preset: Preset, values: dict[str, Value]) -> dict[str, object]:
    return _merged(scheme, preset_parts(preset, values), preset.name)


def _last(extent: Extent, tokens: int) -> int:
    return max(0, extent.prompt - tokens)


def _bottom(weave: Preset | None) -> Change:
    """Bottom attention: the prompt's last L tokens, and all that is generated, see every key, by `weave` (None: the
    base's).
    """

    def change(scheme: Scheme, p: dict) -> dict[str, object]:
        rest = dict(p)
        last = rest.pop("L")
        if last < 1:
            raise ProbeError(f"bottom attention: L: expected an integer >= 1, got {last}")

        def visible(extent: Extent) -> Visibility:
            return Bottom(scheme.visibility_at(extent.length, extent.prompt), _last(extent, last))

        if weave is None:
            return {"visibility": visible}
        chosen = preset_parts(weave, rest)["weave"]

        def woven(extent: Extent) -> Weave:
            after = chosen if isinstance(chosen, Weave) else _resolve(chosen, extent)
            return Switched(_last(extent, last), scheme.weave_at(extent.length, extent.prompt), after)

        return {"visibility": visible, "weave": woven}

    return change


def _resolve(chosen: object, extent: Extent) -> Weave:
    at: WeaveAt = chosen  # type: ignore[assignment]
    return at(extent)


_LAST = Parameter(published(512), "tokens at the prompt's end that see every key")
_BOTTOM_SOURCE = "Mesa-Extrapolation's authors, in review; L = 512 is Mesa's (https://arxiv.org/abs/2410.15859)"
_WOVEN = ("stair", "rerope", "leaky-rerope", "self-extend", "dual-chunk")


def _bottom_row(name: str, weave: str) -> Option:
    return Option(
        name,
        f"the last L tokens see every key, by the weave of {weave}",
        _BOTTOM_SOURCE,
        _bottom(PRESETS[weave]),
        {"L": _LAST, **PRESETS[weave].parameters},
    )


OPTIONS: Table[Option] = Table(
    "part of a scheme",
    Option,
    (
        Option(
            "logn",
            "queries times max(1, ln(t + 1)/ln M)",
            "https://kexue.fm/archives/8823",
            lambda scheme, p: _merged(scheme, {"scale": LogN()}, "logn"),
        ),
        Option(
            "mscale",
            "logits times (0.1 ln s + 1)^2",
            "YaRN, Sec. 3.4 (https://arxiv.org/abs/2309.00071)",
            lambda scheme, p: _merged(scheme, {"scale": MScale(**p)}, "mscale"),
            dict(PRESETS["pi"].parameters),
        ),
        Option(
            "lambda",
            "sees x sinks and the y most recent keys, at the scheme's own positions",
            "as streaming-llm, less its positions",
            lambda scheme, p: _merged(scheme, {"visibility": Lambda(**p)}, "lambda"),
            dict(PRESETS["streaming-llm"].parameters),
        ),
        _bottom_row("bottom", "stair"),
        *(_bottom_row(f"bottom-{weave}", weave) for weave in _WOVEN),
        Option(
            "bottom-plain",
            "the last L tokens see every key, by the scheme's own weave",
            _BOTTOM_SOURCE,
            _bottom(None),
            {"L": _LAST},
        ),
    ),
)


def part_named(name: str, before: str) -> Option | Preset:
    """The option or preset of that name, to be added to the scheme `before`.

    Raises:
        ProbeError: there is none.
    """
    for table in (OPTIONS, PRESETS):
        if name in table:
            found: Option | Preset = table[name]
            return found
    known = ", ".join((*OPTIONS, *PRESETS))
    raise ProbeError(f"scheme {before}: unknown part {name!r} after '+'; known: {known}")


def add_part(scheme: Scheme, name: str, **overrides: Value) -> Scheme:
    """The scheme with one more part: an option, or the choices of another preset.

    Raises:
        ProbeError: unknown part or parameter, a value outside its domain, or a choice that is made already.
    """
    row = part_named(name, scheme.spec)
    values = row.values(scheme.window, overrides)
    fields = row.change(scheme, values) if isinstance(row, Option) else _added(scheme, row, values)
    spec = f"{scheme.spec}+{row.spec(overrides)}"
    parameters = scheme.parameters | {f"{name}.{key}": value for key, value in values.items()}
    return checked(spec, replace(scheme, spec=spec, parameters=parameters, **fields))  # type: ignore[arg-type]
