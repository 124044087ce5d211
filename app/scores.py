"""Charts and tables of results: accuracy and likelihood by length, depth, effective context, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.look import Look, axis, layout
from probe.figures.thresholds import DASHES
from probe.tasks.context import reaches
from probe.tasks.intervals import wilson
from probe.tasks.tables import over_depths

Rows = Sequence[Mapping[str, Any]]


def schemes_of(rows: Rows) -> list[str]:
    """Schemes in their order."""
    return list(dict.fromkeys(str(row["scheme"]) for row in rows))


def _of(rows: Rows, scheme: str) -> list[Mapping[str, Any]]:
    return sorted((row for row in rows if row["scheme"] == scheme), key=lambda row: int(row["length"]))


def interval(row: Mapping[str, Any], samples: int | None) -> tuple[float, float] | None:
    """The 95% interval of an accuracy: the row's own, or from the number of samples; None where neither is known."""
    if row.get("low") is not None and row.get("high") is not None:
        return float(row["low"]), float(row["high"])
    if not samples:
        return None
    return wilson(round(float(row["accuracy"]) * samples), samples)


def _lines(
    rows: Rows, shown: Sequence[str], now: Look, value: str, bounds: Any, unit: str, factor: float = 1.0
) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = []
    seen: list[str] = []
    for scheme in shown:
        mine = [row for row in _of(rows, scheme) if row.get(value) is not None]
        if not mine:
            continue
        colour = now.scheme(scheme)
        y = [factor * float(row[value]) for row in mine]
        ends = [bounds(row) for row in mine]
        errors = {}
        if all(end is not None for end in ends):
            errors = {"error_y": {
                "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": colour,
                "array": [max(0.0, factor * end[1] - at) for end, at in zip(ends, y, strict=True)],
                "arrayminus": [max(0.0, at - factor * end[0]) for end, at in zip(ends, y, strict=True)],
            }}  # fmt: skip
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": scheme,
            "x": [int(row["length"]) for row in mine], "y": y,
            "line": {"color": colour, "width": 1.8, "dash": DASHES[seen.count(colour) % len(DASHES)]},
            "marker": {"size": 7, "color": colour}, **errors,
            "hovertemplate": f"{scheme.replace('<', '&lt;')}<br>%{{x:,}} tokens: %{{y:.3g}}{unit}<extra></extra>",
        })  # fmt: skip
        seen.append(colour)
    return data


def _by_length(data: list[dict[str, Any]], rows: Rows, window: int | None, now: Look, title: str, **y: Any) -> Any:
    lengths = sorted({int(row["length"]) for row in rows})
    figure: dict[str, Any] = {"data": data, "layout": layout(now, 340)}
    figure["layout"]["xaxis"] = axis(
        now, "length (tokens)", type="log", tickvals=lengths, ticktext=[f"{length:,}" for length in lengths]
    )
    figure["layout"]["yaxis"] = axis(now, title, **y)
    if (window and lengths[0] < window < lengths[-1]) or window in lengths:
        figure["layout"]["shapes"] = [{
            "type": "line", "x0": window, "x1": window, "yref": "paper", "y0": 0, "y1": 1,
            "line": {"color": now.window, "dash": "dash", "width": 1.4},
        }]  # fmt: skip
        figure["layout"]["annotations"] = [{
            "x": float(np.log10(window or 1)), "yref": "paper", "y": 0.02, "yanchor": "bottom", "xanchor": "right",
            "text": f"M = {window:,}", "showarrow": False, "font": {"color": now.window, "size": 12},
        }]  # fmt: skip
    return figure


def accuracy(result: Mapping[str, Any], shown: Sequence[str], now: Look) -> dict[str, Any]:
    """Exact answers by length, with 95% intervals."""
    settings, rows = result["settings"], over_depths(result["rows"])
    samples = settings.get("samples")
    data = _lines(rows, shown, now, "accuracy", lambda row: interval(row, samples), "%", 100)
    return dict(_by_length(data, rows, settings.get("window"), now, "right answers (%)", range=[-4, 104]))


def likelihood(result: Mapping[str, Any], shown: Sequence[str], now: Look) -> dict[str, Any]:
    """Nats per token by length, with 95% intervals where there are several windows."""

    def ends(row: Mapping[str, Any]) -> tuple[float, float] | None:
        error = row.get("standard_error")
        return None if error is None else (row["nll"] - 1.96 * error, row["nll"] + 1.96 * error)

    data = _lines(result["rows"], shown, now, "nll", ends, " nats")
    return dict(_by_length(data, result["rows"], result["settings"].get("window"), now, "nats per token"))


def depths(rows: Rows, scheme: str, now: Look, bins: int = 5) -> dict[str, Any] | None:
    """Exact answers by depth of the key and length, for one scheme; None where the samples were not kept."""
    mine = [row for row in _of(over_depths(rows), scheme) if any(hit[0] is not None for hit in row.get("hits") or ())]
    if not mine:
        return None
    values, texts = np.full((bins, len(mine)), np.nan), [["" for _ in mine] for _ in range(bins)]
    for column, row in enumerate(mine):
        for at in range(bins):
            found = [bool(hit) for depth, hit in row["hits"] if min(int(depth * bins), bins - 1) == at]
            if found:
                values[at, column] = 100 * sum(found) / len(found)
                texts[at][column] = f"{sum(found)} of {len(found)}"
    figure: dict[str, Any] = {
        "data": [{
            "type": "heatmap", "z": values, "x": [f"{int(row['length']):,}" for row in mine],
            "y": [f"{100 * at // bins} to {100 * (at + 1) // bins}%" for at in range(bins)], "text": texts,
            "texttemplate": "%{text}", "zmin": 0, "zmax": 100, "colorscale": now.sequence(), "showscale": False,
            "xgap": 2, "ygap": 2, "hoverongaps": False,
            "hovertemplate": "depth %{y}, %{x} tokens: %{text}<extra></extra>",
        }],
        "layout": layout(now, 260),
    }  # fmt: skip
    figure["layout"]["margin"] = {"l": 76, "r": 34, "t": 30, "b": 40}
    figure["layout"]["title"] = {"text": scheme.replace("<", "&lt;"), "font": {"size": 14}, "x": 0, "y": 0.98}
    figure["layout"]["xaxis"] = axis(now, "length (tokens)", type="category", showgrid=False)
    figure["layout"]["yaxis"] = axis(now, "depth of the key", autorange="reversed", showgrid=False)
    return figure


def effective_context(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """How far each scheme goes, for a table."""
    found = reaches(result["rows"], result["settings"].get("window"))
    return [{"scheme": one.scheme, "works up to": one.said} for one in found]


def cost(result: Mapping[str, Any], shown: Sequence[str], now: Look) -> dict[str, Any] | None:
    """Seconds or bytes of a benchmark by length; None where it has neither."""
    rows = [row for row in result["rows"] if row["scheme"] in shown]
    if any(row.get("seconds") is not None for row in rows):
        data = _lines(rows, shown, now, "seconds", lambda row: (row["fastest"], row["slowest"]), " s")
        return dict(_by_length(data, rows, result["settings"].get("window"), now, "seconds", type="log"))
    if any(row.get("peak_bytes") is not None for row in rows):
        data = _lines(rows, shown, now, "peak_bytes", lambda row: (row["least_bytes"], row["most_bytes"]), " MB", 1e-6)
        return dict(
            _by_length(data, rows, result["settings"].get("window"), now, "MB above the model", rangemode="tozero")
        )
    return None


def tuned(rows: Rows) -> list[dict[str, str]]:
    """Candidates of `probe tune` for a table, the best first; those that were left out say why."""
    return [
        {
            "scheme": str(row["scheme"]),
            "keys, predicted": row["left_out"] or f"{row['keys']:.0%}",
            "rise, predicted": "" if row["rise"] is None else f"{row['rise']:.2f} nats",
            "keys found": "not checked" if row["correct"] is None else f"{row['correct']} of {row['total']}",
            "nats per token": "not checked" if row["nll"] is None else f"{row['nll']:.2f}",
        }
        for row in rows
    ]
