"""What there is: schemes, models and rows of open tables, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from probe.errors import unknown
from probe.models.embedded import EMBEDDED, EmbeddedModel
from probe.models.fetched import FETCHED, FetchedModel
from probe.results import Records
from probe.schemes import OPTIONS, PRESETS, Scheme, parse_scheme
from probe.tables import tables

_HOMES = (
    "probe.schemes.weaves", "probe.seam.families", "probe.recording.sites", "probe.thresholds.detectors",
    "probe.tasks.inputs", "probe.tasks.documents", "probe.tasks.prompts", "probe.tasks.table",
    "probe.tasks.measure", "probe.signals.table",
    "probe.studies.patching",
)  # fmt: skip
"""Modules with a table, beside those imported here; loaded only to list them."""


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
        megabytes: that it takes on disk; None where it is not here.
        folder: where it is, or will be.
        licence: of its weights.
    """

    name: str
    positions: str
    window: int
    here: bool
    summary: str
    megabytes: float | None
    folder: str
    licence: str


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
    """The models that load by a name: embedded ones, and those that are fetched at their first use. Any folder, GGUF
    file or hub id of a supported family loads too.

    >>> models().column("name")[:4]
    ['rope', 'alibi', 'nope', 'rope-b1e3']
    """
    rows: list[EmbeddedModel | FetchedModel] = [*EMBEDDED.values(), *FETCHED.values()]
    return Records(
        ModelEntry(
            row.name,
            row.positions,
            row.window,
            row.here,
            row.summary,
            _megabytes(row.folder) if row.here else None,
            str(row.folder),
            row.licence,
        )
        for row in rows
    )


def _megabytes(folder: Path) -> float:
    """What a folder's files take, 10^6 bytes."""
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1)


@dataclass(frozen=True)
class Choice:
    """A row of an open table, to which other packages may add theirs.

    Attributes:
        table: what it is: "site", "detector", "task", ...
        name: by which it is asked for.
        help: what it is or does.
    """

    table: str
    name: str
    help: str


def choices(table: str | None = None) -> Records[Choice]:
    """What can be chosen by name: rows of every open table, or of one.

    Args:
        table: "site", "detector", "task", "input kind", "scheme", "part of a scheme", "weave" or "model family".

    Raises:
        UnknownNameError: there is no such table.

    >>> "entropy" in choices("site").column("name")
    True
    """
    for module in _HOMES:
        import_module(module)
    known = {found.what: found for found in tables()}
    if table is not None and table not in known:
        raise unknown("table", table, known)
    named = known if table is None else {table: known[table]}
    return Records(Choice(what, name, _said(row)) for what, rows in named.items() for name, row in rows.items())


def _said(row: object) -> str:
    """What a row says of itself, in one line."""
    if isinstance(row, type):
        return (row.__doc__ or "").strip().splitlines()[0]
    return str(next(getattr(row, name) for name in ("help", "summary", "positions") if hasattr(row, name)))
