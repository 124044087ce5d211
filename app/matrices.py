"""Which keys a query sees, and at which relative positions: matrix, weave over distance, cost over length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.look import Look, axis, layout
from probe.schemes import Scheme

NUMBERED = 24
"""Tokens up to which every cell shows its number."""


def matrix(scheme: Scheme, length: int, now: Look) -> dict[str, Any]:
    """Queries by keys: the colour and the number are W(t, i); what a query does not see is blank.

    Args:
        scheme: at a small window.
        length: tokens.
        now: the theme.
    """
    weave, visibility = scheme.weave_at(length), scheme.visibility_at(length)
    t, i = np.arange(length)[:, None], np.arange(length)[None]
    seen = visibility.sees(t, i)
    values = np.array([[float(weave(row, column)) if seen[row, column] else np.nan for column in range(length)]
                       for row in range(length)])  # fmt: skip
    past = values >= scheme.window
    text = [["" if np.isnan(value) else f"{value:g}" for value in row] for row in values]
    hover = [
        [
            f"query {row}, key {column}<br>" + (
                "not seen" if np.isnan(values[row, column]) else
                f"distance {row - column}, relative position {values[row, column]:g}"
                + (" (unseen in training)" if past[row, column] else "")
            )
            for column in range(length)
        ]
        for row in range(length)
    ]  # fmt: skip
    highest = float(np.nanmax(values))
    data: list[dict[str, Any]] = [{
        "type": "heatmap", "z": values.astype(np.float32), "x": list(range(length)), "y": list(range(length)),
        "text": text, "texttemplate": "%{text}" if length <= NUMBERED else "", "textfont": {"size": 10},
        "customdata": hover, "hovertemplate": "%{customdata}<extra></extra>", "colorscale": now.sequence(),
        "zmin": 0, "zmax": max(highest, 1.0), "xgap": 1, "ygap": 1, "hoverongaps": False,
        "colorbar": {"title": {"text": "W(t, i)", "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }]  # fmt: skip
    rows, columns = np.nonzero(past)
    if len(rows):
        data.append({
            "type": "scatter", "mode": "markers", "x": columns.astype(np.int16), "y": rows.astype(np.int16),
            "marker": {"symbol": "x-thin", "size": 7, "line": {"width": 1.4, "color": now.threshold}},
            "name": "unseen in training (W ≥ M)", "hoverinfo": "skip", "showlegend": True,
        })  # fmt: skip
    figure: dict[str, Any] = {"data": data, "layout": layout(now, 520)}
    figure["layout"]["margin"] = {"l": 48, "r": 34, "t": 34, "b": 40}
    figure["layout"]["xaxis"] = axis(now, "key i", showgrid=False, constrain="domain", range=[-0.5, length - 0.5])
    figure["layout"]["yaxis"] = axis(
        now, "query t", showgrid=False, scaleanchor="x", constrain="domain", range=[length - 0.5, -0.5]
    )
    return figure


def by_distance(schemes: Sequence[Scheme], length: int, now: Look) -> dict[str, Any]:
    """W over the distance, for the last query, under several schemes; keys that it does not see leave a gap."""
    data = []
    for scheme in schemes:
        weave, visibility, t = scheme.weave_at(length), scheme.visibility_at(length), length - 1
        d = np.arange(length)
        values = [float(weave(t, t - int(one))) if visibility.sees(t, t - int(one)) else np.nan for one in d]
        data.append({
            "type": "scatter", "mode": "lines+markers" if length <= 64 else "lines", "name": scheme.spec,
            "x": d.astype(np.int32), "y": np.array(values, dtype=np.float32), "connectgaps": False,
            "line": {"color": now.scheme(scheme.spec), "width": 1.8}, "marker": {"size": 4},
            "hovertemplate": f"{scheme.spec}<br>distance %{{x}}: W = %{{y:g}}<extra></extra>",
        })  # fmt: skip
    window = schemes[0].window
    figure: dict[str, Any] = {"data": data, "layout": layout(now, 300)}
    figure["layout"]["xaxis"] = axis(now, "distance d = t − i", range=[0, length])
    figure["layout"]["yaxis"] = axis(now, "W", rangemode="tozero")
    figure["layout"]["shapes"] = [{
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": window, "y1": window,
        "line": {"color": now.threshold, "dash": "dash", "width": 1.2},
    }]  # fmt: skip
    figure["layout"]["annotations"] = [{
        "xref": "paper", "x": 0, "xanchor": "left", "y": window, "yanchor": "bottom", "showarrow": False,
        "text": f"M = {window}: from here on unseen", "font": {"color": now.threshold, "size": 12},
    }]  # fmt: skip
    return figure


def pairs(scheme: Scheme, length: int) -> int:
    """(query, key) pairs that a pass over `length` tokens visits: what its attention costs."""
    t = np.arange(length)
    return int(sum(np.maximum(hi - lo, 0).sum() for lo, hi in scheme.visibility_at(length).intervals(t)))


def cost(schemes: Sequence[Scheme], lengths: Sequence[int], now: Look) -> dict[str, Any]:
    """Pairs over length, both logarithmic: a slope of 2 is quadratic, one of 1 linear."""
    data = []
    for scheme in schemes:
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": scheme.spec, "x": list(lengths),
            "y": [pairs(scheme, length) for length in lengths], "marker": {"size": 5},
            "line": {"color": now.scheme(scheme.spec), "width": 1.8},
            "hovertemplate": f"{scheme.spec}<br>%{{x:,}} tokens: %{{y:.3s}} pairs<extra></extra>",
        })  # fmt: skip
    figure: dict[str, Any] = {"data": data, "layout": layout(now, 300)}
    ticks = lengths[:: max(1, len(lengths) // 6)]
    figure["layout"]["xaxis"] = axis(now, "length (tokens)", type="log", tickvals=list(ticks),
                                     ticktext=[_short(one) for one in ticks])  # fmt: skip
    figure["layout"]["yaxis"] = axis(now, "query-key pairs", type="log", exponentformat="power", dtick=1)
    return figure


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,}"


def continuations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of `probe generate` for a table."""
    from app import words

    return [
        {
            "scheme": str(row["scheme"]),
            "prefill": words.seconds(row["prefill_seconds"]),
            "per new token": "one token only" if row["step_seconds"] is None else words.seconds(row["step_seconds"]),
            "peak memory": words.size(row["peak_bytes"]),
            "chunks": str(len(row["borders"])) if row["borders"] else "none",
        }
        for row in rows
    ]
