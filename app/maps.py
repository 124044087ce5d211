"""Maps of every recorded dimension: where each leaves its range, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.look import Look, axis, layout
from probe.recording.info import RunInfo
from probe.recording.place import Place
from probe.schemes import ORIGIN
from probe.thresholds.verdicts import Verdict

MARKERS = 2500
"""Cells up to which each is a mark that can be clicked; more are an image."""


def cells(found: Sequence[Verdict]) -> list[Place]:
    """Places, those that the model as trained leaves earliest first, then those that another scheme does."""
    first: dict[Place, list[float]] = {}
    for one in found:
        row = first.setdefault(one.place.under(ORIGIN), [float("inf"), float("inf")])
        at = float("inf") if one.predicted is None else float(one.predicted)
        number = 0 if one.scheme == ORIGIN else 1
        row[number] = min(row[number], at)
    return sorted(first, key=lambda place: first[place])


def _said(one: Verdict) -> str:
    where = f"layer {one.layer}, dim {one.dim}"
    if one.predicted is not None:
        return f"{where}<br>leaves its range at {one.predicted:,}"
    if one.unpredicted is not None:
        return f"{where}<br>cannot tell"
    return f"{where}<br>stays in its range"


def exceedance_map(mine: Sequence[Verdict], info: RunInfo, now: Look) -> dict[str, Any]:
    """Layer by dimension; the colour is the position at which the dimension leaves its range, from M to the end.

    Args:
        mine: verdicts of one scheme and site.
        info: of the run.
        now: the theme.
    """
    dims, layers = sorted({one.dim or 0 for one in mine}), sorted({one.layer for one in mine})
    column = {dim: number for number, dim in enumerate(dims)}
    row = {layer: number for number, layer in enumerate(layers)}
    height = max(220, min(460, 90 + 22 * len(layers)))
    bar = {"title": {"text": "leaves at", "side": "right"}, "thickness": 12, "outlinewidth": 0,
           "tickfont": {"color": now.faint}}  # fmt: skip
    scale = {"cmin": info.window, "cmax": info.input.length, "colorscale": now.sequence(), "reversescale": True}
    if len(mine) <= MARKERS:
        data = _marks(mine, column, row, now, scale, bar, len(dims), len(layers), height)
    else:
        data = _image(mine, column, row, scale, bar)
    found: dict[str, Any] = {"data": data, "layout": layout(now, height, showlegend=False, clickmode="event+select")}
    found["layout"]["margin"] = {"l": 48, "r": 34, "t": 8, "b": 40}
    step, down = max(1, len(dims) // 12) if len(dims) > 24 else 1, max(1, len(layers) // 15)
    found["layout"]["xaxis"] = axis(
        now, "head" if _heads(mine) else "dimension", showgrid=False, range=[-0.6, len(dims) - 0.4],
        tickvals=list(range(0, len(dims), step)), ticktext=[str(one) for one in dims[::step]],
    )  # fmt: skip
    found["layout"]["yaxis"] = axis(
        now, "layer", showgrid=False, range=[len(layers) - 0.4, -0.6],
        tickvals=list(range(0, len(layers), down)), ticktext=[str(one) for one in layers[::down]],
    )  # fmt: skip
    return found


def _heads(mine: Sequence[Verdict]) -> bool:
    return bool(mine) and mine[0].site not in ("resid", "attn", "mlp")


def _marks(
    mine: Sequence[Verdict], column: dict[int, int], row: dict[int, int], now: Look, scale: dict[str, Any],
    bar: dict[str, Any], wide: int, tall: int, height: int,
) -> list[dict[str, Any]]:  # fmt: skip
    size = max(4.0, min(26.0, 420 / max(1, wide), (height - 60) / max(1, tall)) * 0.88)
    crossing = [one for one in mine if one.predicted is not None]
    scale = scale | {"colorbar": bar, "showscale": bool(crossing)}
    staying = [one for one in mine if one.predicted is None]
    return [
        {
            "type": "scatter", "mode": "markers", "x": [column[one.dim or 0] for one in group],
            "y": [row[one.layer] for one in group], "customdata": [[one.layer, one.dim] for one in group],
            "text": [_said(one) for one in group], "hovertemplate": "%{text}<extra></extra>",
            "marker": {"symbol": symbol, "size": size, "color": colour, **more},
            "unselected": {"marker": {"opacity": 1}}, "selected": {"marker": {"opacity": 1}},
        }
        for group, symbol, colour, more in (
            (staying, "square-open", now.grid, {"line": {"width": 1}}),
            (crossing, "square", [one.predicted for one in crossing], scale),
        )
    ]  # fmt: skip


def _image(
    mine: Sequence[Verdict], column: dict[int, int], row: dict[int, int], scale: dict[str, Any], bar: dict[str, Any]
) -> list[dict[str, Any]]:
    values = np.full((len(row), len(column)), np.nan, dtype=np.float32)
    for one in mine:
        if one.predicted is not None:
            values[row[one.layer], column[one.dim or 0]] = one.predicted
    return [
        {
            "type": "heatmap", "z": values, "zmin": scale["cmin"], "zmax": scale["cmax"], "colorbar": bar,
            "colorscale": scale["colorscale"], "reversescale": True, "hoverongaps": False,
            "hovertemplate": "column %{x}, row %{y}<br>leaves its range at %{z:,}<extra></extra>",
        }
    ]  # fmt: skip


def by_layer(found: Sequence[Verdict], now: Look) -> dict[str, Any]:
    """The earliest crossing of each layer under each scheme; a layer without one has no mark."""
    layers = sorted({one.layer for one in found})
    data = []
    for scheme in dict.fromkeys(one.scheme for one in found):
        first: dict[int, int] = {}
        for one in found:
            if one.scheme == scheme and one.predicted is not None:
                first[one.layer] = min(one.predicted, first.get(one.layer, one.predicted))
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": scheme, "x": list(first), "y": list(first.values()),
            "line": {"color": now.scheme(scheme), "width": 1}, "marker": {"size": 8, "color": now.scheme(scheme)},
            "hovertemplate": "layer %{x}: first at %{y:,}<extra></extra>",
        })  # fmt: skip
    shown: dict[str, Any] = {"data": data, "layout": layout(now, 210)}
    shown["layout"]["xaxis"] = (
        axis(now, "layer", range=[layers[0] - 0.5, layers[-1] + 0.5]) if layers else axis(now, "layer")
    )
    shown["layout"]["yaxis"] = axis(now, "earliest position (tokens)")
    if not any(one["x"] for one in data):
        shown["layout"]["annotations"] = [{
            "text": "no recorded dimension leaves its range", "showarrow": False, "xref": "paper", "yref": "paper",
            "x": 0.5, "y": 0.5, "font": {"color": now.faint},
        }]  # fmt: skip
    return shown
