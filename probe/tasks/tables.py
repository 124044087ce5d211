"""Results of `probe eval` as Markdown, schemes down and lengths across; and of `probe audit`, heads by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probe.errors import ProbeError
from probe.results import pipe_table


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "accuracy" in row:
        if "low" not in row:
            return f"{row['accuracy']:.0%}"
        return f"{row['accuracy']:.0%} ({row['low']:.0%} to {row['high']:.0%})"
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
        where += "".join(f", {name} {chosen[name]}" for name in ("input", "prompt") if chosen.get(name))
        caption = (
            f"`{chosen['model']}`, M = {window}, {chosen['task']}{where}, {chosen['samples']} samples, "
            f"seed {chosen['seed']}"
        )
        titles = ["scheme", *(f"{length} ({length / window:g}M)" for length in lengths)]
        cells = [[f"`{name}`", *(_cell(found.get((name, length))) for length in lengths)] for name in schemes]
    except (KeyError, TypeError):
        raise ProbeError("expected the JSON of an evaluation") from None
    return caption + "\n\n" + pipe_table(titles, cells, [False, *(True for _ in lengths)])


def audit_markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table: per chunk width and layer the share of attention lost, by the heads that lose least and
    most, and their mean.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of an audit.
    """
    try:
        rows, chosen = result["rows"], result["settings"]
        groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault((row["chunk"], row["layer"]), []).append(row)
        caption = (
            f"`{chosen['model']}`, M = {chosen['window']}, {chosen['samples']} inputs of {chosen['length']} tokens "
            f"({chosen['input']}), chunk 0 of {chosen['first']} tokens, seed {chosen['seed']}; attention that the "
            "chunks hide, in per cent"
        )
        cells = []
        for (chunk, layer), mine in groups.items():
            lost = [100 * row["lost"] for row in mine]
            shown = (min(lost), sum(lost) / len(lost), max(lost), 100 * mine[0]["uniform"])
            cells.append([str(chunk), str(layer), *(f"{value:.1f}" for value in shown)])
    except (KeyError, TypeError):
        raise ProbeError("expected the JSON of an audit") from None
    titles = ["chunk", "layer", "least of heads", "mean", "most", "uniform"]
    return caption + "\n\n" + pipe_table(titles, cells, [True] * len(titles))
