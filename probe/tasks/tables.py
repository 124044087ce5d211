"""Results of `probe eval` as Markdown, schemes down and lengths across; and of `probe audit`, heads by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probe.errors import ProbeError
from probe.results import pipe_table
from probe.tasks.intervals import wilson


def parts(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A result of an evaluation as one result for each model and task, whose settings name that model and task alone.

    Rows of results that were written before there were several say neither, and are one part.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of an evaluation.
    """
    try:
        chosen = result["settings"]
        windows = chosen.get("windows") or {}
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in result["rows"]:
            groups.setdefault((row.get("model", chosen["model"]), row.get("task", chosen["task"])), []).append(row)
        return [
            {
                **result,
                "settings": {
                    **_own(chosen, rows), "model": model, "task": task, "window": windows.get(model, chosen["window"]),
                },
                "rows": rows,
            }
            for (model, task), rows in groups.items()
        ]  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        raise ProbeError("expected the JSON of an evaluation") from None


_ANSWERED = ("prompt", "haystack", "unit", "depths")
"""Settings that a likelihood does not go by; `_READ` are those that an answered task does not."""
_READ = ("input", "tail")


def _own(chosen: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that rows of one kind go by, of those of an evaluation with several."""
    foreign = _READ if "accuracy" in rows[0] else _ANSWERED
    return {name: value for name, value in chosen.items() if name not in foreign}


def measured(row: Mapping[str, Any]) -> float | None:
    """The accuracy of a row, or its nats per token; None where nothing was run."""
    value = row["accuracy"] if "accuracy" in row else row["nll"]
    return None if value is None else float(value)


def over_depths(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one model and task, those of a scheme and length at several depths pooled to one."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["scheme"], row["length"]), []).append(row)
    return [_pooled(mine) if len(mine) > 1 else dict(mine[0]) for mine in groups.values()]


def _pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    right, total = sum(row["correct"] for row in rows), sum(row["total"] for row in rows)
    low, high = wilson(right, total)
    hits = sorted((hit for row in rows for hit in row["hits"]), key=lambda hit: hit[0])
    return {
        **rows[0], "depth": None, "correct": right, "total": total, "accuracy": right / total, "low": low, "high": high,
        "recall": sum(row["recall"] * row["total"] for row in rows) / total, "hits": hits,
        "worst_decile": min(row["accuracy"] for row in rows),
    }  # fmt: skip


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    value = measured(row)
    if value is None:
        return f"not run: {row.get('stopped') or 'nothing was asked for'}"
    if "accuracy" in row:
        part = f" of {row['total']}, then {row['stopped']}" if row.get("stopped") else ""
        return f"{value:.0%}" + ("" if "low" not in row else f" ({row['low']:.0%} to {row['high']:.0%})") + part
    error = row["standard_error"]
    return f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")


def markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table for each model and task.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it is no result of an evaluation.
    """
    return "\n\n".join(section_table(part["settings"], part["rows"]) for part in parts(result))


def section_table(chosen: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A caption and a table of one model and task, schemes down and lengths across.

    Args:
        chosen: settings of that model and task, as `parts` has them.
        rows: its rows.

    Raises:
        ProbeError: they are not of an evaluation.
    """
    try:
        rows = over_depths(rows)
        window = chosen["window"]
        found = {(row["scheme"], row["length"]): dict(row) for row in rows}
        schemes = list(dict.fromkeys(row["scheme"] for row in rows))
        lengths = sorted({row["length"] for row in rows})
        words = chosen.get("unit") == "words"
        titles = ["scheme", *(f"{one} words" if words else f"{one} ({one / window:g}M)" for one in lengths)]
        cells = [[f"`{name}`", *(_cell(found.get((name, length))) for length in lengths)] for name in schemes]
        return f"{caption(chosen)}\n\n" + pipe_table(titles, cells, [False, *(True for _ in lengths)])
    except (KeyError, TypeError):
        raise ProbeError("expected the JSON of an evaluation") from None


def caption(chosen: Mapping[str, Any]) -> str:
    """What a part of an evaluation was asked, in a line."""
    where = f", the last {chosen['tail']} positions" if chosen.get("tail") else ""
    where += "".join(
        f", {name} {chosen[name]}" for name in ("input", "prompt", "haystack", "unit", "depths") if chosen.get(name)
    )
    seeds = chosen["seed"]
    seed = f"seed {seeds}" if not isinstance(seeds, list) else f"seeds {', '.join(map(str, seeds))}"
    return f"`{chosen['model']}`, M = {chosen['window']}, {chosen['task']}{where}, {chosen['samples']} samples, {seed}"


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
