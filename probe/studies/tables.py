"""Results of studies as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from probe.errors import ProbeError
from probe.results import pipe_table
from probe.studies.causes import COPIES, GAP, KEYS, WHOLE, CauseRow
from probe.studies.frequencies import FrequencyRow
from probe.studies.tune import TuneRow

CANNOT_TELL = "cannot tell"


@contextmanager
def _reading(command: str) -> Iterator[None]:
    """Inside, what a result lacks is a message.

    Raises:
        ProbeError: it is no result of the command.
    """
    try:
        yield
    except (KeyError, TypeError):
        raise ProbeError(f"expected the JSON of probe {command}") from None


def rise(row: CauseRow | None) -> str:
    """A rise with its interval; empty where it was not asked for."""
    if row is None:
        return ""
    return CANNOT_TELL if row.rise is None else f"{row.rise:.2f} [{row.low:.2f}, {row.high:.2f}]"


def causes_markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table: a row per scheme and length, a column per cause.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of `probe causes`.
    """
    with _reading("causes"):
        rows, chosen = [CauseRow(**row) for row in result["rows"]], result["settings"]
        window = chosen["window"]
        caption = (
            f"`{chosen['model']}`, M = {window}, rise in nats per token [95%], the last {chosen['tail']} tokens of "
            f"{chosen['samples']} documents, seed {chosen['seed']}"
        )
        cells = []
        for scheme in dict.fromkeys(row.scheme for row in rows):
            for length in dict.fromkeys(row.length for row in rows if row.scheme == scheme):
                mine = {row.cause: row for row in rows if (row.scheme, row.length) == (scheme, length)}
                said = [rise(mine.get(cause)) for cause in (GAP, COPIES, WHOLE, KEYS)]
                cells.append([f"`{scheme}`", f"{length} ({length / window:g}M)", *said])
    titles = ["scheme", "tokens", "distances, predicted", "keys, predicted", "measured", "distances folded back"]
    return caption + "\n\n" + pipe_table(titles, cells, [False, True, True, True, True, True])


def frequencies_markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table: a row per scheme and group of frequencies.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of `probe frequencies`.
    """
    with _reading("frequencies"):
        rows, chosen = [FrequencyRow(**row) for row in result["rows"]], result["settings"]
        caption = (
            f"`{chosen['model']}`, M = {chosen['window']}, standing for {chosen['length']} tokens, rise in nats per "
            f"token [95%], the last {chosen['tail']} tokens of {chosen['samples']} documents, seed {chosen['seed']}"
        )
    cells: dict[tuple[str, int, int], dict[str, str]] = {}
    for row in rows:
        mine = cells.setdefault((row.scheme, row.first, row.last), {"turns": f"{row.turns:.3g}"})
        mine[row.what] = f"{row.rise:.2f} [{row.low:.2f}, {row.high:.2f}]"
    lines = [
        [
            f"`{scheme}`", "all" if "whole" in mine else f"{first} to {last}" if last > first else str(first),
            mine["turns"], mine.get("whole", mine.get("alone", "")), mine.get("spared", ""),
        ]
        for (scheme, first, last), mine in cells.items()
    ]  # fmt: skip
    titles = ("scheme", "frequencies", "turns in M", "they alone", "all but they")
    return f"{caption}\n\n{pipe_table(titles, lines, (False, False, True, True, True))}"


def tune_markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table: a row per candidate that was screened, the best first.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of `probe tune`.
    """
    with _reading("tune"):
        rows, chosen = [TuneRow(**row) for row in result["rows"]], result["settings"]
        caption = (
            f"`{chosen['model']}`, M = {chosen['window']}, for {chosen['length']} tokens: use `{chosen['proposed']}`; "
            f"screened with {chosen['screened']} prompts of {chosen['short']} tokens, seed {chosen['seed']}"
        )
    lines = [
        [
            f"`{row.scheme}`", f"{row.keys:.0%}", f"{row.answer or 0:.2f}", f"{row.rise or 0:.2f}",
            "not checked" if row.correct is None else f"{row.correct} of {row.total}",
            "not checked" if row.nll is None else f"{row.nll:.2f}",
        ]
        for row in rows if row.keys is not None
    ]  # fmt: skip
    titles = ("scheme", "keys, predicted", "answer, nats", "rise, predicted", "keys found", "nats per token")
    return f"{caption}\n\n{pipe_table(titles, lines, (False, True, True, True, True, True))}"
