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
    figure["layout"]["margin"] = {"l": 52, "r": 34, "t": 58, "b": 44}
    figure["layout"]["title"] = {"text": scheme.replace("<", "&lt;"), "font": {"size": 14}, "x": 0, "y": 0.98}
    figure["layout"]["xaxis"] = axis(
        now, "length (tokens)", type="log", tickvals=lengths, ticktext=_apart(lengths, window), tickangle=0
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


def _apart(lengths: list[int], window: int) -> list[str]:
    """Lengths in windows, blank where they would stand on one another."""
    said, last = [], 0.0
    for length in lengths:
        far = length >= 1.3 * last
        said.append(f"{length / window:.3g}M" if far else "")
        last = length if far else last
    return said


def by_frequency(result: Mapping[str, Any], scheme: str, now: Look) -> dict[str, Any]:
    """What each group of rotary frequencies does at unseen distances: alone, and when it is spared them.

    Args:
        result: of kind "frequencies".
        scheme: of those in it.
        now: the theme.
    """
    rows = [row for row in result["rows"] if row["scheme"] == scheme]
    whole = next((row for row in rows if row["what"] == "whole"), None)
    names = {"alone": ("only it sees them", "circle"), "spared": ("all but it see them", "diamond-open")}
    colours = (DARK if now.dark else COLOURS)[1:3]
    data = []
    for (what, (name, symbol)), colour in zip(names.items(), colours, strict=True):
        mine = sorted((row for row in rows if row["what"] == what), key=lambda row: int(row["first"]))
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": name, "x": [_group(row) for row in mine],
            "y": [row["rise"] for row in mine], "line": {"color": colour, "width": 1.4},
            "marker": {"symbol": symbol, "size": 8, "color": colour},
            "customdata": [f"{row['turns']:.3g}" for row in mine],
            "error_y": {
                "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": colour,
                "array": [row["high"] - row["rise"] for row in mine],
                "arrayminus": [row["rise"] - row["low"] for row in mine],
            },
            "hovertemplate": f"frequency %{{x}}, %{{customdata}} turns in M<br>{name}: %{{y:.2f}} nats<extra></extra>",
        })  # fmt: skip
    figure: dict[str, Any] = {"data": data, "layout": layout(now, 300, shapes=[], annotations=[])}
    figure["layout"]["margin"] = {"l": 52, "r": 34, "t": 40, "b": 44}
    figure["layout"]["xaxis"] = axis(now, "rotary frequency, fastest first", type="category", showgrid=False)
    figure["layout"]["yaxis"] = axis(now, "rise (nats per token)")
    slow = [number for number, row in enumerate(data[0]["customdata"]) if float(row) < 1]
    if slow:
        figure["layout"]["shapes"].append({
            "type": "rect", "x0": slow[0] - 0.5, "x1": slow[-1] + 0.5, "yref": "paper", "y0": 0, "y1": 1,
            "fillcolor": now.faint, "opacity": 0.12, "line": {"width": 0}, "layer": "below",
        })  # fmt: skip
        figure["layout"]["annotations"].append({
            "x": slow[-1] + 0.45, "xanchor": "right", "yref": "paper", "y": 0.02, "yanchor": "bottom",
            "showarrow": False, "text": "less than one turn in M", "font": {"color": now.faint, "size": 12},
        })  # fmt: skip
    if whole is not None:
        figure["layout"]["shapes"].append({
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": whole["rise"], "y1": whole["rise"],
            "line": {"color": now.threshold, "width": 1.2, "dash": "dash"},
        })  # fmt: skip
        figure["layout"]["annotations"].append({
            "xref": "paper", "x": 0, "xanchor": "left", "y": whole["rise"], "yanchor": "bottom", "showarrow": False,
            "text": f"all of them: {whole['rise']:.2f}", "font": {"color": now.threshold, "size": 12},
        })  # fmt: skip
    return figure


def _group(row: Mapping[str, Any]) -> str:
    return str(row["first"]) if row["first"] == row["last"] else f"{row['first']} to {row['last']}"
