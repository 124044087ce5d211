"""Results of studies as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from probe.errors import ProbeError
from probe.results import pipe_table
from probe.studies.causes import COPIES, GAP, KEYS, WHOLE, CauseRow
from probe.studies.frequencies import FrequencyRow
from probe.studies.leads import TRUTH, LeadRow, LeadSummary, lead_rows, lead_summaries
from probe.studies.patching import PatchRow, recovered
from probe.studies.positional import INSIDE, PAST, PositionalRow, positional_rows
from probe.studies.precision import PrecisionRow
from probe.studies.predictors import RULES, CalibrationRow, StudyRow, summaries
from probe.studies.scan import ScanRow
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


class Rising(Protocol):
    """A row with a rise."""

    @property
    def rise(self) -> float | None:
        """Nats per token; None where it could not be had."""

    @property
    def low(self) -> float | None:
        """Lower end of its interval."""

    @property
    def high(self) -> float | None:
        """Upper end."""


def rise(row: Rising | None) -> str:
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
        mine[row.what] = rise(row)
    lines = [
        [
            f"`{scheme}`", "all" if "whole" in mine else f"{first} to {last}" if last > first else str(first),
            mine["turns"], mine.get("whole", mine.get("alone", "")), mine.get("spared", ""),
        ]
        for (scheme, first, last), mine in cells.items()
    ]  # fmt: skip
    titles = ("scheme", "frequencies", "turns in M", "they alone", "all but they")
    return f"{caption}\n\n{pipe_table(titles, lines, (False, False, True, True, True))}"


PATCH_TITLES = ("scheme", "put back", "layer", "rise", "recovered", "changed")


def patch_cells(rows: Sequence[PatchRow]) -> list[list[str]]:
    """A line per patch and layer."""
    lines = []
    for row in rows:
        back = recovered(row, rows)
        lines.append([
            row.scheme, row.patch, "all" if row.layer == 0 else str(row.layer),
            rise(row),
            ("nothing fails" if row.untold is None else CANNOT_TELL) if back is None else f"{back:.0%}",
            "" if row.changed is None else f"{row.changed:.1%}",
        ])  # fmt: skip
    return lines


def patch_markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table: a row per patch and layer.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of `probe patch`.
    """
    with _reading("patch"):
        rows, chosen = [PatchRow(**row) for row in result["rows"]], result["settings"]
        caption = (
            f"`{chosen['model']}`, M = {chosen['window']}, {chosen['length']} tokens of `{chosen['input']}`, "
            f"{chosen['samples']} texts, the last {chosen['tail']} tokens, seed {chosen['seed']}"
        )
    return f"{caption}\n\n{pipe_table(PATCH_TITLES, patch_cells(rows), (False, False, True, True, True, True))}"


SCAN_TITLES = ("scheme", "tokens", "rise, predicted", "rise, measured", "fails")


def scan_cells(rows: Sequence[ScanRow], window: int) -> list[list[str]]:
    """A line per scheme and length."""
    return [
        [
            row.scheme, f"{row.length} ({row.length / window:g}M)",
            f"{row.inside['causes']:.2f}" if "causes" in row.inside else CANNOT_TELL, rise(row),
            "yes" if row.fails else "no",
        ]
        for row in rows
    ]  # fmt: skip


def scan_markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table: a row per scheme and length.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of `probe scan`.
    """
    with _reading("scan"):
        rows, chosen = [ScanRow(**row) for row in result["rows"]], result["settings"]
        caption = (
            f"`{chosen['model']}`, M = {chosen['window']}, {chosen['samples']} texts of `{chosen['input']}`, the last "
            f"{chosen['tail']} tokens, seed {chosen['seed']}"
        )
        lines = [[f"`{scheme}`", *rest] for scheme, *rest in scan_cells(rows, chosen["window"])]
    return f"{caption}\n\n{pipe_table(SCAN_TITLES, lines, (False, True, True, True, False))}"


STUDY_TITLES = (
    "score", "kind", "AUROC", "worst", "AUPRC", "hits", "false alarms", "Brier", "octaves off", "untold",
)  # fmt: skip
STUDY_BEST = 8
"""Scores of a kind that a table of a study shows, beside those that were chosen and the controls."""


def study_cells(rows: Sequence[StudyRow]) -> list[list[str]]:
    """A line per score over all scans: those that were chosen and fixed rules, the best of each kind, and controls that
    are not everything over again at random blocks.
    """
    found, shown = summaries(rows), []
    counts = {"inside": 0, "long": 0, "control": 0}
    for one in found:
        counts[one.kind] += 1
        ruled = one.score in RULES or one.score.startswith(("chosen", "labels"))
        control = one.kind == "control" and not one.score.startswith("shuffled")
        if ruled or control or (one.kind != "control" and counts[one.kind] <= STUDY_BEST) or counts[one.kind] == 1:
            shown.append(one)

    def share(value: float | None) -> str:
        return CANNOT_TELL if value is None else f"{value:.0%}"

    def number(value: float | None) -> str:
        return CANNOT_TELL if value is None else f"{value:.3f}"

    return [
        [
            one.score, one.kind, number(one.auroc), number(one.worst), number(one.auprc), share(one.hits),
            share(one.false_alarms), number(one.brier), CANNOT_TELL if one.octaves is None else f"{one.octaves:.2f}",
            share(one.untold),
        ]
        for one in shown
    ]  # fmt: skip


CALIBRATION_TITLES = ("score", "said", "pairs", "fail", "share [95%]", "mean said")


def calibration_cells(rows: Sequence[CalibrationRow]) -> list[list[str]]:
    """A line per score and bin of probability."""
    return [
        [
            row.score, f"{row.low:.0%} to {row.high:.0%}", str(row.pairs), str(row.failing),
            f"{row.share:.0%} [{row.share_low:.0%}, {row.share_high:.0%}]", f"{row.said:.0%}",
        ]
        for row in rows
    ]  # fmt: skip


def study_markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table: a row per score over all scans.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of `probe study`.
    """
    with _reading("study"):
        rows, chosen = [StudyRow(**row) for row in result["rows"]], result["settings"]
        caption = (
            f"{len(chosen['models'])} models, inputs {', '.join(chosen['inputs'])}, {chosen['pairs']} pairs of scheme "
            f"and length, {chosen['failing']} of them fail; every threshold is from the other models"
        )
        known = [CalibrationRow(**row) for row in result.get("calibration", ())]
    right = (False, False, *(True for _ in STUDY_TITLES[2:]))
    found = f"{caption}\n\n{pipe_table(STUDY_TITLES, study_cells(rows), right)}"
    if not known:
        return found
    return f"{found}\n\n{pipe_table(CALIBRATION_TITLES, calibration_cells(known), (False, *[True] * 5))}"


PRECISION_TITLES = ("dtype", "scheme", "error", "of stock's", "nats, mean", "nats, most", "same token")


def precision_cells(rows: Sequence[PrecisionRow]) -> list[list[str]]:
    """A line per scheme and number type."""
    return [
        [row.dtype, row.scheme, row.untold or CANNOT_TELL, "", "", "", ""]
        if row.error is None
        else [
            row.dtype, row.scheme, f"{row.error:.1e}", CANNOT_TELL if row.ratio is None else f"{row.ratio:.2f}",
            f"{row.nats:.1e}", f"{row.most:.1e}", f"{row.same:.1%}",
        ]
        for row in rows
    ]  # fmt: skip


def precision_markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table: a row per scheme and number type.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of `probe precision`.
    """
    with _reading("precision"):
        rows, chosen = [PrecisionRow(**row) for row in result["rows"]], result["settings"]
        caption = (
            f"`{chosen['model']}`, M = {chosen['window']}, {chosen['length']} tokens of `{chosen['input']}`, seed "
            f"{chosen['seed']}, beside float64"
        )
    lines = [[dtype, f"`{scheme}`", *rest] for dtype, scheme, *rest in precision_cells(rows)]
    return f"{caption}\n\n{pipe_table(PRECISION_TITLES, lines, (False, False, *[True] * 5))}"


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
            f"screened with up to {chosen['screened']} prompts of {chosen['short']} tokens, seed {chosen['seed']}"
        )
    lines = [
        [
            f"`{row.scheme}`", str(row.screened or chosen["screened"]), f"{row.keys:.0%}", f"{row.answer or 0:.2f}",
            f"{row.rise or 0:.2f}", "not checked" if row.correct is None else f"{row.correct} of {row.total}",
            "not checked" if row.nll is None else f"{row.nll:.2f}",
        ]
        for row in rows if row.keys is not None
    ]  # fmt: skip
    titles = ("scheme", "prompts", "keys, predicted", "answer, nats", "rise, predicted", "keys found", "nats per token")
    return f"{caption}\n\n{pipe_table(titles, lines, (False, *[True] * 6))}"


LEAD_TITLES = ("signal", "detector", "fails at", "lead, tokens")


def _span(whole: int | None, low: int | None, high: int | None) -> str:
    """A position with its interval; an end that does not fail is said so."""
    if whole is None and low is None:
        return "none"
    said = "none" if whole is None else f"{whole:,}"
    if low is None and high is None:
        return said
    return f"{said} [{low:,}, {'or not at all' if high is None else f'{high:,}'}]"


def _failure(row: LeadRow) -> str:
    if row.untold is not None:
        return CANNOT_TELL
    return _span(row.position, row.low, row.high)


def _lead(row: LeadRow) -> str:
    if row.lead is None:
        return ""
    return f"{row.lead:+,}" + ("" if row.lead_low is None else f" [{row.lead_low:+,}, {row.lead_high:+,}]")


def lead_cells(rows: Sequence[LeadRow]) -> list[list[str]]:
    """A line per signal and detector of one scheme, the truth first."""
    return [[row.signal, row.detector, _failure(row), _lead(row)] for row in rows]


SUMMARY_TITLES = (
    "signal", "detector", "hits", "false alarms", "not later", "lead, windows", "octaves off", "surely not later",
)  # fmt: skip


def lead_summary_cells(found: Sequence[LeadSummary]) -> list[list[str]]:
    """A line per signal and detector over several models and schemes."""
    return [
        [
            one.signal, one.detector, f"{one.hits} of {one.failing}",
            f"{one.false_alarms} of {one.pairs - one.failing}",
            f"{one.early} of {one.hits}" if one.hits else "",
            "" if one.lead is None else f"{one.lead:+.2f}", "" if one.octaves is None else f"{one.octaves:.2f}",
            CANNOT_TELL if one.surely_early is None else str(one.surely_early),
        ]
        for one in found
    ]  # fmt: skip


def leads_markdown(result: Mapping[str, Any]) -> str:
    """A caption and tables: where each scheme fails and what says so before, then a row per signal and detector.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of `probe leads`.
    """
    rows, chosen = lead_rows(result), result["settings"]
    with _reading("leads"):
        caption = (
            f"`{chosen['model']}`, M = {chosen['window']}, {chosen['samples']} texts of {chosen['length']} tokens of "
            f"`{chosen['input']}`, seed {chosen['seed']}, 95% intervals over {chosen['resamples']} resamples of texts"
        )
    truths = [[f"`{row.scheme}`", _failure(row)] for row in rows if row.signal == TRUTH]
    first = pipe_table(("scheme", "likelihood fails at"), truths, (False, True))
    second = pipe_table(SUMMARY_TITLES, lead_summary_cells(lead_summaries([result])), (False, False, *[True] * 6))
    return f"{caption}\n\n{first}\n\n{second}"


POSITIONAL_TITLES = ("scheme", "layer", "position, inside", "position, past M", "text, inside", "text, past M")


def positional_cells(rows: Sequence[PositionalRow]) -> list[list[str]]:
    """A line per scheme and layer."""
    found = {(row.scheme, row.layer, row.where): row for row in rows}

    def share(row: PositionalRow) -> str:
        return f"{row.share:.1%} [{row.low:.1%}, {row.high:.1%}]"

    return [
        [
            scheme, str(layer), share(found[scheme, layer, INSIDE]), share(found[scheme, layer, PAST]),
            f"{found[scheme, layer, INSIDE].text:.1%}", f"{found[scheme, layer, PAST].text:.1%}",
        ]
        for scheme, layer in dict.fromkeys((row.scheme, row.layer) for row in rows)
    ]  # fmt: skip


def positional_markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table: a row per scheme and layer.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of `probe positional`.
    """
    rows, chosen = positional_rows(result), result["settings"]
    with _reading("positional"):
        caption = (
            f"`{chosen['model']}`, M = {chosen['window']}, {chosen['samples']} texts of {chosen['length']} tokens of "
            f"`{chosen['input']}`, seed {chosen['seed']}"
        )
        lines = [[f"`{scheme}`", *rest] for scheme, *rest in positional_cells(rows)]
    return f"{caption}\n\n{pipe_table(POSITIONAL_TITLES, lines, (False, *[True] * 5))}"
