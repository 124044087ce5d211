"""What there is: schemes and models, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from probe.models.embedded import MODELS
from probe.results import Records
from probe.schemes import OPTIONS, PRESETS, Scheme, parse_scheme


@dataclass(frozen=True)
class SchemeEntry:
    """A name that a scheme's text may use.

    Attributes:
        name: of the preset, or of the option that follows a `+`.
        rule: what it does.
        parameters: their defaults for the window asked for.
        source: where it was published.
        option: whether it only changes another scheme.
    """

    name: str
    rule: str
    parameters: Mapping[str, float | str]
    source: str
    option: bool


@dataclass(frozen=True)
class ModelEntry:
    """A model that loads by its name.

    Attributes:
        name: for `load`.
        positions: how positions enter.
        window: trained window M, tokens.
        here: whether its weights are on this machine.
        summary: what it is.
    """

    name: str
    positions: str
    window: int
    here: bool
    summary: str


def schemes(window: int = 4096) -> Records[SchemeEntry]:
    """Every preset and option, with its defaults for a trained window M.

    >>> "mesa" in schemes(512).column("name")
    True
    """
    return Records(
        SchemeEntry(row.name, row.summary, row.defaults(window), row.source, table is OPTIONS)
        for table in (PRESETS, OPTIONS)
        for row in table.values()
    )


def scheme(text: str, window: int) -> Scheme:
    """The scheme that a text names, for a trained window M.

    Args:
        text: such as "rerope(N=64)+logn".
        window: tokens.

    Raises:
        ProbeError: the text does not parse, or names something unknown.

    >>> scheme("stair(N=4,E=2)", window=64).weave_at(100)(9, 0)
    7
    """
    return parse_scheme(text, window)


def models() -> Records[ModelEntry]:
    """The models that load by a name; any folder or hub id of a supported family loads too."""
    return Records(
        ModelEntry(row.name, row.positions, row.window, (row.folder / "config.json").exists(), row.summary)
        for row in MODELS.values()
    )
