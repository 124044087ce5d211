"""How far a scheme goes: the effective context of a task's results, and whether a model can do the task at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probe.tasks.tables import measured, over_depths

ORIGIN = "origin"
RISE = 0.2
"""Nats over the trained model in its window from which a likelihood counts as failed, as in `probe causes`."""
LEAST = 0.5
"""Share of right answers that a model must give in its window for a task to say anything about lengths beyond."""

Rows = Sequence[Mapping[str, Any]]

DEFINITION = (
    "Effective context: the longest measured length up to which a scheme works, at every one measured. It works where "
    "it answers at least half as often as the trained model does inside its window at best, or where its likelihood is "
    f"at most {RISE} nats per token above the trained model's best there."
)


@dataclass(frozen=True)
class Reach:
    """How far one scheme goes.

    Attributes:
        scheme: its text.
        length: the effective context, tokens; None where no measured length works, or where it cannot be told.
        said: the same in words, with what is beyond it.
        told: whether it can be told.
    """

    scheme: str
    length: int | None
    said: str
    told: bool = True


def _of(rows: Rows, scheme: str) -> list[Mapping[str, Any]]:
    return sorted((row for row in rows if row["scheme"] == scheme), key=lambda row: int(row["length"]))


def is_share(rows: Rows) -> bool:
    """Whether rows are of a task that is answered, not of a likelihood."""
    return bool(rows) and "accuracy" in rows[0]


def trained_best(rows: Rows, window: int | None) -> float | None:
    """What the trained model gets at best inside its window: accuracy or nats per token; None where nobody measured."""
    values = [measured(row) for row in _of(rows, ORIGIN) if window and int(row["length"]) <= window]
    known = [value for value in values if value is not None]
    if not known:
        return None
    return max(known) if is_share(rows) else min(known)


def cannot(rows: Rows, window: int | None) -> str | None:
    """Why a task says nothing about a model beyond its window; None where it does."""
    best = trained_best(over_depths(rows), window)
    if best is None:
        return f"the trained model ({ORIGIN}) was not measured inside its window, so there is nothing to compare with"
    if is_share(rows) and best < LEAST:
        return f"the trained model cannot do it inside its window of {window:,}: {best:.0%} right at best"
    return None


def reaches(rows: Rows, window: int | None) -> list[Reach]:
    """The effective context of every scheme, for the rows of one model and task."""
    rows = over_depths(rows)
    why, best, share = cannot(rows, window), trained_best(rows, window), is_share(rows)
    found = []
    for scheme in dict.fromkeys(str(row["scheme"]) for row in rows):
        if why is not None or best is None:
            found.append(Reach(scheme, None, f"cannot tell: {why}", told=False))
            continue
        limit = best / 2 if share else best + RISE
        mine = _of(rows, scheme)
        works = [_works(measured(row), limit, share) for row in mine]
        found.append(_reach(scheme, [int(row["length"]) for row in mine], works))
    return found


def _works(value: float | None, limit: float, share: bool) -> bool:
    """What was not run after a length that failed, or did not fit the memory, does not work here."""
    return value is not None and (value >= limit if share else value <= limit)


def _reach(scheme: str, lengths: Sequence[int], works: Sequence[bool]) -> Reach:
    """The last length before the first that does not work."""
    first = next((number for number, good in enumerate(works) if not good), len(works))
    if first == 0:
        return Reach(scheme, None, f"below {lengths[0]:,}")
    last = lengths[first - 1]
    return Reach(scheme, last, f"{last:,}" + (", the longest measured" if first == len(lengths) else ""))
