"""Results of `probe eval` as Markdown, schemes down and lengths across."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probe.errors import ProbeError
from probe.results import pipe_table


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "accuracy" in row:
        return f"{row['accuracy']:.0%}"
    error = row["standard_error"]
    return f"{row['nll']:.2f}" + ("" if error is None else f" ± {error:.2f}")


def markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of an evaluation.
    """
    try:
        rows, chosen = result["rows"], result["settings"]
        window = chosen["window"]
        found = {(row["scheme"], row["length"]): row for row in rows}
        schemes, lengths = (list(dict.fromkeys(row[key] for row in rows)) for key in ("scheme", "length"))
        where = f", the last {chosen['tail']} positions" if chosen.get("tail") else ""
        caption = (
            f"`{chosen['model']}`, M = {window}, {chosen['task']}{where}, {chosen['samples']} samples, "
            f"seed {chosen['seed']}"
        )
        titles = ["scheme", *(f"{length} ({length / window:g}M)" for length in lengths)]
        cells = [[f"`{name}`", *(_cell(found.get((name, length))) for length in lengths)] for name in schemes]
    except (KeyError, TypeError):
        raise ProbeError("expected the JSON of `probe eval --json`") from None
    return caption + "\n\n" + pipe_table(titles, cells, [False, *(True for _ in lengths)])
