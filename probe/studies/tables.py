"""Results of studies as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probe.errors import ProbeError
from probe.results import pipe_table
from probe.studies.causes import COPIES, GAP, KEYS, WHOLE, CauseRow

CANNOT_TELL = "cannot tell"


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
    try:
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
    except (KeyError, TypeError):
        raise ProbeError("expected the JSON of probe causes") from None
    titles = ["scheme", "tokens", "distances, predicted", "keys, predicted", "measured", "distances folded back"]
    return caption + "\n\n" + pipe_table(titles, cells, [False, True, True, True, True, True])
