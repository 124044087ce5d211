"""Results of evaluations put together: what each model can do, how far each scheme goes, and which to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from probe.errors import ProbeError
from probe.results import pipe_table
from probe.tasks.context import DEFINITION, ORIGIN, Reach, cannot, is_share, reaches
from probe.tasks.tables import caption, measured, over_depths, parts, section_table

_SIZES = ("schemes", "lengths", "samples", "seed", "windows", "early_stop")
"""Settings that differ between files which are still of the same task."""


@dataclass(frozen=True)
class Section:
    """One model on one task, of one file or several.

    Attributes:
        chosen: its settings, as `parts` has them.
        raw: its rows, one for each depth where there are several.
    """

    chosen: Mapping[str, Any]
    raw: tuple[Mapping[str, Any], ...]

    @property
    def model(self) -> str:
        """As it was named."""
        return str(self.chosen["model"])

    @property
    def task(self) -> str:
        """A name in the table of tasks."""
        return str(self.chosen["task"])

    @property
    def window(self) -> int | None:
        """Trained window M, tokens; None where lengths are not counted in tokens."""
        return None if self.chosen.get("unit") == "words" else self.chosen.get("window")

    @property
    def share(self) -> bool:
        """Whether it is answered, and not a likelihood."""
        return is_share(self.raw)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows over all depths, by length."""
        return sorted(over_depths(self.raw), key=lambda row: int(row["length"]))

    @cached_property
    def cannot(self) -> str | None:
        """Why it says nothing about lengths beyond the window; None where it does."""
        if self.window is None:
            return "its lengths are counted in words, and the window in tokens"
        return cannot(self.raw, self.window)

    @cached_property
    def reaches(self) -> list[Reach]:
        """How far every scheme goes."""
        return reaches(self.raw, self.window)

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return caption(self.chosen)


def sections(results: Sequence[Mapping[str, Any]]) -> list[Section]:
    """A section for each model and task, in the order in which they come; files of the same task are put together, and
    of a scheme, length and depth that is in several the one with the most samples counts.

    Args:
        results: of `probe eval`, as `Result.to_json` has them.

    Raises:
        ProbeError: one that is no result of an evaluation, or no row at all.
    """
    found: dict[tuple[Any, ...], tuple[dict[str, Any], dict[tuple[Any, ...], Mapping[str, Any]]]] = {}
    for result in results:
        for part in parts(result):
            chosen = {name: value for name, value in part["settings"].items() if name not in _SIZES}
            key = tuple(sorted((name, str(value)) for name, value in chosen.items()))
            _, rows = found.setdefault(key, (part["settings"], {}))
            for row in part["rows"]:
                place = row["scheme"], row["length"], row.get("depth")
                if place not in rows or _samples(row) > _samples(rows[place]):
                    rows[place] = row
    if not found:
        raise ProbeError("expected results of 'probe eval' with at least one row")
    return [Section(chosen, tuple(rows.values())) for chosen, rows in found.values()]


def _samples(row: Mapping[str, Any]) -> int:
    return int(row["total"]) if "total" in row else len(row.get("each") or ())


@dataclass(frozen=True)
class Choice:
    """What to use on a model.

    Attributes:
        model: as it was named.
        scheme: the best; None where nothing could be told.
        said: why, in a sentence.
    """

    model: str
    scheme: str | None
    said: str


def choices(found: Sequence[Section]) -> list[Choice]:
    """For each model the scheme that goes farthest on the task where it goes least far, among those measured on every
    task that the model can do; of several, the one that scores best at the longest length on answered tasks.
    """
    return [
        _choice(model, [one for one in found if one.model == model])
        for model in dict.fromkeys(one.model for one in found)
    ]


def _choice(model: str, mine: Sequence[Section]) -> Choice:
    told = [one for one in mine if one.cannot is None]
    if not told:
        return Choice(model, None, "nothing can be told: " + "; ".join(f"{one.task}: {one.cannot}" for one in mine))
    by_task = [{reach.scheme: reach for reach in one.reaches} for one in told]
    everywhere = [scheme for scheme in by_task[0] if all(scheme in reach for reach in by_task)]
    if not everywhere:
        return Choice(model, None, "no scheme was measured on every task")

    def least(scheme: str) -> int:
        return min(reach[scheme].length or 0 for reach in by_task)

    def rank(scheme: str) -> tuple[int, float]:
        return least(scheme), sum(_last(one, scheme) for one in told)

    best = max(everywhere, key=rank)
    tasks = ", ".join(one.task for one in told)
    equal = [scheme for scheme in everywhere if scheme != best and least(scheme) == least(best)]
    others = f"; as far go {', '.join(equal)}" if equal else ""
    trained = f"; as trained it works up to {least(ORIGIN):,}" if ORIGIN in everywhere and best != ORIGIN else ""
    longest = max(int(row["length"]) for one in told for row in one.rows)
    open_end = ", the longest measured" if least(best) == longest else ""
    if not least(best):
        return Choice(model, None, f"no scheme works at the shortest length measured ({tasks})")
    return Choice(model, best, f"works up to {least(best):,} tokens{open_end}, on {tasks}{trained}{others}")


def _last(section: Section, scheme: str) -> float:
    """The score at the longest length at which the scheme was measured: more is better."""
    values = [value for row in section.rows if row["scheme"] == scheme and (value := measured(row)) is not None]
    return (values[-1] if section.share else -values[-1]) if values else float("-inf")


def context_cells(found: Sequence[Section], model: str) -> tuple[list[str], list[list[str]]]:
    """Effective context of a model's schemes: (titles, a row per scheme), the scheme first, then its tasks."""
    mine = [one for one in found if one.model == model]
    by_task = [{reach.scheme: reach for reach in one.reaches} for one in mine]
    schemes = dict.fromkeys(scheme for reach in by_task for scheme in reach)
    cells = [
        [scheme, *("not measured" if scheme not in reach else reach[scheme].said if reach[scheme].told
                          else "cannot tell" for reach in by_task)]
        for scheme in schemes
    ]  # fmt: skip
    return ["scheme", *(one.task for one in mine)], cells


def _context_table(found: Sequence[Section], model: str) -> str:
    titles, cells = context_cells(found, model)
    return pipe_table(titles, [[f"`{scheme}`", *rest] for scheme, *rest in cells], [False] * len(titles))


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The report as Markdown: what to use, effective contexts, and a table for each model and task."""
    found = sections(results)
    lines = ["# Length extrapolation, measured", "", "## What to use", ""]
    for choice in choices(found):
        lines.append(f"- `{choice.model}`: " + (f"`{choice.scheme}` " if choice.scheme else "") + choice.said)
    lines += ["", "## Effective context", "", DEFINITION, ""]
    for model in dict.fromkeys(one.model for one in found):
        lines += [f"`{model}`", "", _context_table(found, model), ""]
    for one in found:
        lines += [f"## {one.model}: {one.task}", ""]
        if one.cannot is not None:
            lines += [f"This says nothing about longer inputs: {one.cannot}.", ""]
        lines += [section_table(one.chosen, one.rows), ""]
    return "\n".join(lines)
