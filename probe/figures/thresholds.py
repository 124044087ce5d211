"""Figure 2 of the paper, from a run folder: hidden dimensions over position, under them the likelihood they predict."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.figures.style import THRESHOLD_COLOUR, WINDOW_COLOUR, scheme_colour
from probe.recording.folder import Run
from probe.thresholds.detectors import Settings, can_calibrate
from probe.thresholds.measured import nll_threshold, smooth_nll

MAX_POINTS = 2000
"""Points drawn per line; more are thinned, keeping the least and the greatest of every bin."""

MAX_PANELS = 12
"""Dimensions drawn in one figure; a run may record every one, but nobody reads 600 panels."""

LABEL_HEIGHT = 0.075
"""Least distance of two lines' names, as a share of what a panel shows."""

Row = dict[str, Any]


def thin(positions: np.ndarray, values: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points that show the same envelope: the extremes of each bin, in order."""
    if len(values) <= most:
        return positions, values
    edges = np.linspace(0, len(values), most // 2 + 1).astype(int)
    keep = {start + int(pick(values[start:stop])) for start, stop in pairwise(edges) for pick in (np.argmin, np.argmax)}
    index = np.array(sorted(keep))
    return positions[index], values[index]


def detection_settings(info: dict[str, Any]) -> Settings:
    """The detector settings that a run was made with."""
    used = info["detection"]
    return Settings(used["burn_in"], used["run"], used["margin"])


def _line(figure: go.Figure, at: tuple[int, int], positions: np.ndarray, values: np.ndarray, scheme: str) -> None:
    x, y = thin(positions, values)
    figure.add_trace(
        go.Scatter(x=x, y=y, mode="lines", name=scheme, legendgroup=scheme, showlegend=False,
                   line={"color": scheme_colour(scheme), "width": 1.6},
                   hovertemplate=f"{scheme}<br>position %{{x}}<br>%{{y:.4g}}<extra></extra>"),
        row=at[0], col=at[1],
    )  # fmt: skip


def _label_ends(
    figure: go.Figure, at: tuple[int, int], lines: dict[str, np.ndarray], failures: dict[str, int | None], span: float
) -> float:
    """Write each scheme's name and failure at its line's end, no two overlapping; the y of the highest."""
    placed = -np.inf
    for scheme, values in sorted(lines.items(), key=lambda line: line[1][-1]):
        placed = max(float(values[-1]), placed + LABEL_HEIGHT * span)
        text = scheme if failures[scheme] is None else f"{scheme} ✕ {failures[scheme]}"
        figure.add_annotation(
            x=len(values) - 1, y=placed, text=text, showarrow=False, xanchor="left", xshift=4,
            font={"color": scheme_colour(scheme), "size": 12}, row=at[0], col=at[1],
        )  # fmt: skip
    return placed


def _mark(figure: go.Figure, at: tuple[int, int], position: int, value: float, scheme: str, what: str) -> None:
    """A marker where a scheme fails; the position is beside the scheme's name."""
    figure.add_trace(
        go.Scatter(x=[position], y=[value], mode="markers", showlegend=False,
                   marker={"color": scheme_colour(scheme), "size": 11, "symbol": "x"}, name=f"{scheme}: {what}",
                   hovertemplate=f"{scheme}: {what} at %{{x}}<extra></extra>"),
        row=at[0], col=at[1],
    )  # fmt: skip


def _draw_borders(figure: go.Figure, at: tuple[int, int], info: dict[str, Any], schemes: Iterable[str]) -> None:
    """Ticks at the panel's lower edge where a scheme's chunks begin."""
    low = figure.layout[figure.get_subplot(*at).yaxis.plotly_name].range[0]
    for scheme in schemes:
        borders = info["schemes"].get(scheme, {}).get("borders") or []
        if borders:
            figure.add_trace(
                go.Scatter(x=borders, y=[low] * len(borders), mode="markers", showlegend=False, name=f"{scheme}: chunks",
                           marker={"symbol": "line-ns-open", "size": 14, "color": scheme_colour(scheme)}, cliponaxis=False,
                           hovertemplate=f"{scheme}: a chunk begins at %{{x}}<extra></extra>"),
                row=at[0], col=at[1],
            )  # fmt: skip


def _window_line(figure: go.Figure, at: tuple[int, int], window: int) -> None:
    figure.add_vline(x=window, line={"color": WINDOW_COLOUR, "dash": "dash", "width": 1.2}, row=at[0], col=at[1])
    figure.add_annotation(
        x=window, y=1.0, yref="y domain", text=f"M = {window}", showarrow=False, xanchor="right", yanchor="top",
        xshift=-3, font={"color": WINDOW_COLOUR, "size": 11}, row=at[0], col=at[1],
    )  # fmt: skip


def _guide(figure: go.Figure, at: tuple[int, int], value: float, label: str) -> None:
    figure.add_hline(y=value, line={"color": THRESHOLD_COLOUR, "dash": "dash", "width": 1.2}, row=at[0], col=at[1])
    figure.add_annotation(
        x=0.0, xref="x domain", y=value, text=label, showarrow=False, xanchor="left", yanchor="bottom", borderpad=1,
        font={"color": THRESHOLD_COLOUR, "size": 11}, bgcolor="rgba(255,255,255,0.75)", row=at[0], col=at[1],
    )  # fmt: skip


def _draw_panel(
    figure: go.Figure, at: tuple[int, int], window: int, lines: dict[str, np.ndarray], failures: dict[str, int | None],
    guides: dict[float, str], what: str,
) -> None:  # fmt: skip
    """Lines, their names and failures, M, and horizontal guides by their value."""
    # A first token's values are far from all others': they are drawn, but the axis is not stretched for them.
    settled = [values[min(window // 16, len(values) // 2) :] for values in lines.values()]
    marks = {scheme: float(lines[scheme][position]) for scheme, position in failures.items() if position is not None}
    seen = np.concatenate([*settled, list(marks.values()), list(guides)])
    low, high = float(seen.min()), float(seen.max())
    span = (high - low) or 1.0
    for scheme, values in lines.items():
        _line(figure, at, np.arange(len(values)), values, scheme)
    for scheme, value in marks.items():
        _mark(figure, at, failures[scheme] or 0, value, scheme, what)
    top = max(high, _label_ends(figure, at, lines, failures, span))
    for value, label in guides.items():
        _guide(figure, at, value, label)
    _window_line(figure, at, window)
    figure.update_yaxes(range=[low - 0.08 * span, top + 0.08 * span], row=at[0], col=at[1])


def draw_dimension(figure: go.Figure, at: tuple[int, int], run: Run, rows: list[Row]) -> None:
    """One panel: a dimension over position under every scheme; `rows` are its detections, one per scheme."""
    first = rows[0]
    series = {row["scheme"]: run.series(row["scheme"], first["site"], first["layer"], first["dim"]) for row in rows}
    failures = {row["scheme"]: row["predicted"] for row in rows}
    # Under `range` the schemes may have been judged by different ends of the range: each is drawn once.
    guides = {row["threshold"]: f"H = {row['threshold']:.3g}" for row in rows if row["threshold"] is not None}
    _draw_panel(figure, at, run.info["window"], series, failures, guides, "predicted failure")
    _draw_borders(figure, at, run.info, series)


def draw_nll(figure: go.Figure, at: tuple[int, int], run: Run, rows: list[Row], settings: Settings) -> None:
    """The panel of the measured failure: smoothed NLL under every scheme and the in-window band's upper end."""
    window = run.info["window"]
    measured = {row["scheme"]: row["measured"] for row in rows}
    smooth = {scheme: smooth_nll(run.nll[scheme], settings.run_at(window)) for scheme in measured}
    known = can_calibrate(run.nll["origin"], window, settings)
    band = nll_threshold(run.nll["origin"], window, settings).value if known else None
    _draw_panel(
        figure,
        at,
        window,
        smooth,
        measured,
        {} if band is None else {band: f"band up to {band:.3g}"},
        "measured failure",
    )
    _draw_borders(figure, at, run.info, smooth)


def threshold_figure(run: Run, rows: list[Row] | None = None, settings: Settings | None = None) -> go.Figure:
    """Figure 2 for a whole run: a panel per (site, layer, dim), the NLL at the bottom.

    Args:
        run: the run folder.
        rows: detections to draw; default those in `run.json`.
        settings: what the detections were made with; default those in `run.json`.
    """
    rows = run.info["rows"] if rows is None else rows
    panels: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        panels.setdefault((row["site"], row["layer"], row["dim"]), []).append(row)
    left_out = len(panels) - MAX_PANELS
    panels = dict(list(panels.items())[:MAX_PANELS])
    columns = 2 if len(panels) > 1 else 1
    height = -(-len(panels) // columns)
    titles = [f"{site}, layer {layer}, dim {dim}" for site, layer, dim in panels]
    titles += [""] * (height * columns - len(panels)) + ["measured: negative log-likelihood (nats, smoothed)"]
    # A model without a vocabulary head has no likelihood, and its figure no panel for one.
    measured = not np.isnan(run.nll["origin"][1:]).all()
    last: list[list[Any]] = [[{"colspan": columns}] + [None] * (columns - 1)] if measured else []
    total = height + len(last)
    figure = make_subplots(
        rows=total, cols=columns, subplot_titles=titles[: height * columns + len(last)], vertical_spacing=0.32 / total,
        specs=[[{} for _ in range(columns)] for _ in range(height)] + last, horizontal_spacing=0.14,
    )  # fmt: skip
    for number, mine in enumerate(panels.values()):
        draw_dimension(figure, (number // columns + 1, number % columns + 1), run, mine)
    if measured:
        draw_nll(figure, (total, 1), run, rows, settings or detection_settings(run.info))
    info = run.info
    more = f"the first {MAX_PANELS} panels; {left_out} more dimensions are in the run"
    figure.update_layout(
        template="plotly_white", height=330 * total + 80 * (not measured), margin={"l": 60, "r": 110, "t": 90, "b": 50},
        title=f"{info['model']}: hidden states past the trained window, input {info['input']['spec']}, "
        f"detector {rows[0]['detector']}" + (f"<br><sup>{more}</sup>" if left_out > 0 else ""),
    )  # fmt: skip
    # Room at the right for the names at the lines' ends.
    figure.update_xaxes(title_text="position", title_standoff=4, range=[0, 1.24 * info["input"]["length"]])
    return figure
