"""Charts of the pages as plain plotly JSON: built without plotly's validating classes, and thinned to what a screen
shows, so that a redraw is fast and small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from app.look import Look, axis, layout
from probe.errors import ProbeError
from probe.figures.thresholds import DASHES, NOISY, thin
from probe.recording.folder import Run
from probe.recording.place import Place
from probe.schemes import ORIGIN
from probe.studies.passes import done_passes, read_about
from probe.thresholds.detectors import DetectorSettings, can_calibrate
from probe.thresholds.measured import nll_threshold, smooth_nll
from probe.thresholds.verdicts import Verdict

POINTS = 9_000
"""Points of all lines of a chart: under 100 kB as it is sent."""

PANEL, LIKELIHOOD = 170, 230
"""Heights of a dimension's panel and of the likelihood's, pixels."""

GAP = 42
"""Pixels between panels."""


@dataclass(frozen=True)
class Panel:
    """One panel: lines by scheme, where they fail, and levels with their names."""

    title: str
    unit: str
    lines: Mapping[str, NDArray[np.float64]]
    failures: Mapping[str, int | None]
    levels: Mapping[float, str]
    height: int
    faint: Mapping[str, NDArray[np.float64]]


def _positions(index: NDArray[Any], length: int) -> NDArray[Any]:
    """Positions in as few bytes as they need."""
    return index.astype(np.int16 if length < 2**15 else np.int32)


def _trace(values: NDArray[np.float64], points: int, length: int) -> dict[str, Any]:
    x, y = thin(np.arange(len(values), dtype=np.int32), values.astype(np.float32), points)
    return {"x": _positions(x, length), "y": y, "type": "scatter", "mode": "lines"}


def likelihood_panel(run: Run, verdicts: Sequence[Verdict], settings: DetectorSettings) -> Panel | None:
    """The measured half: smoothed NLL under every scheme, and its in-window band; None for a model without a head."""
    if np.isnan(run.nll[ORIGIN][1:]).all():
        return None
    window = run.info.window
    failures = {one.scheme: one.measured for one in verdicts}
    lines = {scheme: smooth_nll(run.nll[scheme], settings.run_at(window)) for scheme in failures}
    levels = {}
    if can_calibrate(run.nll[ORIGIN], window, settings):
        band = nll_threshold(run.nll[ORIGIN], window, settings).value
        levels = {band: f"in-window band, up to {band:.3g}"}
    title = "Measured: negative log-likelihood of the next token, smoothed"
    return Panel(title, "nats", lines, failures, levels, LIKELIHOOD, {})


def dimension_panel(run: Run, place: Place, verdicts: Sequence[Verdict], settings: DetectorSettings,
                    smoothing: str) -> Panel:  # fmt: skip
    """The predicted half: one hidden dimension under every scheme, and its threshold.

    Args:
        run: the run.
        place: site, layer and dim.
        verdicts: of that place, one per scheme.
        settings: what they were made with.
        smoothing: "on", "off", or "auto": where the raw values are noise to the eye.
    """
    lines = {one.scheme: run.series(one.scheme, place.site, place.layer, place.dim or 0) for one in verdicts}
    levels = {one.threshold: f"H = {one.threshold:.3g}" for one in verdicts if one.threshold is not None}
    over = 2 * (settings.run_at(run.info.window) // 2) + 1
    smooth = {name: median_filter(values, over, mode="nearest") for name, values in lines.items()}
    low, high = _range([*lines.values()], list(levels), run.info.window)
    noise = max(float(np.median(np.abs(lines[name] - smooth[name]))) for name in lines)
    smoothed = smoothing == "on" or (smoothing == "auto" and noise > NOISY * (high - low))
    title = f"Predicted: {place.title}" + (f", median over {over} positions on raw values" if smoothed else "")
    failures = {one.scheme: one.predicted for one in verdicts}
    shown, faint = (smooth, lines) if smoothed else (lines, {})
    return Panel(title, "activation", shown, failures, levels, PANEL, faint)


def _range(series: Sequence[NDArray[np.float64]], more: Sequence[float], window: int) -> tuple[float, float]:
    """What an axis shows: everything but a first token's values, which are far from all others'."""
    settled = [values[min(window // 16, len(values) // 2) :] for values in series]
    seen = np.concatenate([*settled, np.array(more)]) if settled else np.array(more)
    seen = seen[np.isfinite(seen)]
    return (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)


def partial_figure(unfinished: Path, now: Look) -> dict[str, Any] | None:
    """The likelihood under the schemes of a run that are done while others are to come; None where there is none yet.

    Args:
        unfinished: the folder that keeps its passes.
        now: the theme.
    """
    try:
        window = int(read_about(unfinished)["made_with"]["window"])
        passes = done_passes(unfinished)
    except (ProbeError, KeyError, TypeError, ValueError):
        return None
    told = {spec: one.nll for spec, one in passes.items() if np.isfinite(one.nll[1:]).all()}
    if not told:
        return None
    over = DetectorSettings().run_at(window)
    lines = {spec: smooth_nll(nll, over) for spec, nll in told.items()}
    title = "So far: negative log-likelihood of the next token, smoothed"
    panel = Panel(title, "nats", lines, dict.fromkeys(lines), {}, PANEL, {})
    return course([panel], window, max(map(len, lines.values())), now)


def course(panels: Sequence[Panel], window: int, length: int, now: Look) -> dict[str, Any]:
    """Panels over one axis of positions, with M through all of them."""
    schemes = list(dict.fromkeys(scheme for one in panels for scheme in one.lines))
    lines = sum(len(one.lines) + len(one.faint) for one in panels)
    points = max(120, POINTS // max(1, lines))
    dashes = _dashes(schemes, now)
    tall = sum(one.height for one in panels) + GAP * (len(panels) - 1)
    found: dict[str, Any] = {"data": [], "layout": layout(now, tall + 102, shapes=[], annotations=[])}
    found["layout"]["margin"] = {"l": 60, "r": 34, "t": 58, "b": 44}
    found["layout"]["legend"] |= {"y": 1 + 24 / tall}
    top = tall
    for number, one in enumerate(panels):
        domain = [max(0.0, (top - one.height) / tall), top / tall]
        _put(found, one, number, domain, now, dashes, points, window, length)
        top -= one.height + GAP
    last = f"y{len(panels)}" if len(panels) > 1 else "y"
    found["layout"]["xaxis"] = axis(now, "position (tokens)", range=[0, length], anchor=last)
    found["layout"]["shapes"].append({
        "type": "line", "x0": window, "x1": window, "y0": 0, "y1": 1, "yref": "paper",
        "line": {"color": now.window, "width": 1.4, "dash": "dash"},
    })  # fmt: skip
    found["layout"]["annotations"].append({
        "x": window, "y": 0, "yref": "paper", "yanchor": "bottom", "showarrow": False, "bgcolor": now.paper,
        "xanchor": "left" if 2 * window < length else "right", "text": f"M = {window:,}",
        "font": {"color": now.window, "size": 12},
    })  # fmt: skip
    return found


def _dashes(schemes: Sequence[str], now: Look) -> dict[str, str]:
    """Schemes of one colour differ in their dashes."""
    seen: list[str] = []
    found = {}
    for scheme in schemes:
        colour = now.scheme(scheme)
        found[scheme] = DASHES[seen.count(colour) % len(DASHES)]
        seen.append(colour)
    return found


def _put(
    found: dict[str, Any], panel: Panel, number: int, domain: list[float], now: Look,
    dashes: Mapping[str, str], points: int, window: int, length: int,
) -> None:  # fmt: skip
    y = "y" if number == 0 else f"y{number + 1}"
    marks = {scheme: at for scheme, at in panel.failures.items() if at is not None and scheme in panel.lines}
    heights = {scheme: float(panel.lines[scheme][at]) for scheme, at in marks.items()}
    low, high = _range(list(panel.lines.values()), [*panel.levels, *heights.values()], window)
    edge = 0.07 * ((high - low) or 1.0)
    found["layout"][f"yaxis{y[1:]}"] = axis(now, panel.unit, domain=domain, range=[low - edge, high + edge])
    for scheme, values in panel.faint.items():
        found["data"].append(_trace(values, points, length) | {
            "yaxis": y, "legendgroup": scheme, "showlegend": False, "hoverinfo": "skip", "opacity": 0.25,
            "name": f"{scheme}: raw", "line": {"color": now.scheme(scheme), "width": 0.8},
        })  # fmt: skip
    for scheme, values in panel.lines.items():
        found["data"].append(_trace(values, points, length) | {
            "yaxis": y, "legendgroup": scheme, "showlegend": number == 0, "name": scheme,
            "line": {"color": now.scheme(scheme), "width": 1.8, "dash": dashes[scheme]},
            "hovertemplate": f"{_plain(scheme)}<br>position %{{x:,}}<br>%{{y:.4g}} {panel.unit}<extra></extra>",
        })  # fmt: skip
    what = "measured" if panel.title.startswith("Measured") else "predicted"
    for scheme, at in marks.items():
        found["data"].append({
            "type": "scatter", "mode": "markers", "x": [at], "y": [heights[scheme]], "yaxis": y, "showlegend": False,
            "legendgroup": scheme, "name": f"{scheme}: {what} failure", "cliponaxis": False,
            "marker": {"symbol": "x", "size": 11, "color": now.scheme(scheme),
                       "line": {"width": 1.5, "color": now.scheme(scheme)}},
            "hovertemplate": f"{_plain(scheme)}: {what} failure at %{{x:,}}<extra></extra>",
        })  # fmt: skip
    for value, name in panel.levels.items():
        found["layout"]["shapes"].append({
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": y, "y0": value, "y1": value,
            "line": {"color": now.threshold, "width": 1.2, "dash": "dash"},
        })  # fmt: skip
        found["layout"]["annotations"].append({
            "xref": "paper", "x": 0.004, "yref": y, "y": value, "text": name, "showarrow": False, "xanchor": "left",
            "yanchor": "bottom", "bgcolor": now.paper, "font": {"color": now.threshold, "size": 12},
        })  # fmt: skip
    found["layout"]["annotations"].append({
        "xref": "paper", "x": 0, "yref": "paper", "y": domain[1], "yanchor": "bottom", "xanchor": "left",
        "text": f"<b>{_plain(panel.title)}</b>", "showarrow": False, "font": {"size": 13, "color": now.ink},
    })  # fmt: skip


def _plain(text: str) -> str:
    """Text in which plotly sees no markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
