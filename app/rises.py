"""What `probe causes` found as a chart: the rise by length, predicted and measured, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.look import Look, axis, layout

KINDS = {
    "all": ("measured", "solid", "circle"),
    "distances, predicted": ("distances, predicted", "dash", "diamond-open"),
    "keys, predicted": ("keys, predicted", "dot", "square-open"),
    "keys": ("measured, distances folded back", "dashdot", "x-thin-open"),
}
"""Causes as the result names them: what they are called here, dash and symbol of their line."""

COLOURS = ("#1F2328", "#0072B2", "#D55E00", "#009E73")
DARK = ("#E6E8EB", "#4AA8E0", "#F0883E", "#2FBF94")


def rises(result: Mapping[str, Any], scheme: str, now: Look) -> dict[str, Any]:
    """Nats over the trained model in its window, by length, one line per cause.

    Args:
        result: of kind "causes".
        scheme: of those in it.
        now: the theme.
    """
    floor, window = float(result["settings"]["floor"]), int(result["settings"]["window"])
    data = []
    for (cause, (name, dash, symbol)), colour in zip(KINDS.items(), DARK if now.dark else COLOURS, strict=True):
        rows = [
            row for row in result["rows"]
            if row["scheme"] == scheme and row["cause"] == cause and row.get("rise") is not None
        ]  # fmt: skip
        if not rows:
            continue
        rows.sort(key=lambda row: row["length"])
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": name, "x": [row["length"] for row in rows],
            "y": [row["rise"] for row in rows], "line": {"color": colour, "dash": dash, "width": 1.8},
            "marker": {"symbol": symbol, "size": 8, "color": colour},
            "error_y": {
                "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": colour,
                "array": [row["high"] - row["rise"] for row in rows],
                "arrayminus": [row["rise"] - row["low"] for row in rows],
            },
            "hovertemplate": f"{name}<br>%{{x:,}} tokens: %{{y:.2f}} nats<extra></extra>",
        })  # fmt: skip
    lengths = sorted({row["length"] for row in result["rows"]})
    figure: dict[str, Any] = {"data": data, "layout": layout(now, 300)}
    figure["layout"]["margin"] = {"l": 52, "r": 10, "t": 58, "b": 44}
    figure["layout"]["title"] = {"text": scheme.replace("<", "&lt;"), "font": {"size": 14}, "x": 0, "y": 0.98}
    figure["layout"]["xaxis"] = axis(
        now, "length (tokens)", type="log", tickvals=lengths, ticktext=[_times(length, window) for length in lengths]
    )  # fmt: skip
    figure["layout"]["yaxis"] = axis(now, "rise (nats per token)")
    figure["layout"]["legend"] |= {"font": {"size": 11}}
    figure["layout"]["shapes"] = [{
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": floor, "y1": floor,
        "line": {"color": now.threshold, "width": 1, "dash": "dash"},
    }]  # fmt: skip
    figure["layout"]["annotations"] = [{
        "xref": "paper", "x": 0, "y": floor, "text": f"a failure is above {floor:g}", "showarrow": False,
        "xanchor": "left", "yanchor": "bottom", "font": {"color": now.threshold, "size": 11},
    }]  # fmt: skip
    return figure


def _times(length: int, window: int) -> str:
    """A length in windows, which leaves room on the axis."""
    return f"{length / window:.3g}M"
