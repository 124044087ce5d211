"""Figure 2 of the paper, from a run folder: hidden dimensions over position, under them the likelihood they predict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.ndimage import median_filter

from probe.figures.style import THRESHOLD_COLOUR, WINDOW_COLOUR, scheme_colour
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.recording.place import Place
from probe.schemes import ORIGIN
from probe.thresholds.detectors import DetectorSettings, as_single, can_calibrate
from probe.thresholds.measured import nll_threshold, smooth_nll
from probe.thresholds.verdicts import Verdict, read_verdicts, settings_of

MAX_POINTS = 2000
"""Points drawn per line at most; more are thinned, keeping the least and the greatest of every bin."""

ALL_POINTS = 30_000
"""Points of all lines of a figure: what a screen can show, in less than half a megabyte."""

MAX_PANELS = 12
"""Dimensions drawn in one figure; a run may record every one, but nobody reads 600 panels."""

LABEL_HEIGHT = 0.075
"""Least distance of two lines' names, as a share of what a panel shows."""

LABEL_LENGTH = 18
"""Characters of a scheme's name at its line's end; the legend has all of them."""

DASHES = ("solid", "dot", "dash", "dashdot")
"""Of the first, second, ... scheme of one colour: there are more schemes than colours."""

NOISY = 0.03
"""Median distance from the running median, as a share of what a panel shows, from which a panel is drawn smoothed over
its raw values.

Constant inputs stay below 0.01, and one sample of text is near 0.1.
"""


@dataclass(frozen=True)
class Shown:
    """What a panel shows: values from `low` to `high`, positions up to `length`."""

    low: float
    high: float
    length: int

    @property
    def span(self) -> float:
        """Height of the values; 1 where all are equal."""
        return (self.high - self.low) or 1.0


def thin(positions: np.ndarray, values: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points that show the same envelope: the extremes of each bin, in order."""
    if len(values) <= most:
        return positions, values
    bins = most // 2
    width = -(-len(values) // bins)
    # Rows of equal width, the last one filled up with its own end, which changes neither extreme.
    rows = np.concatenate([values, np.full(-len(values) % width, values[-1])]).reshape(-1, width)
    starts = np.arange(len(rows)) * width
    index = np.unique(np.concatenate([starts + rows.argmin(1), starts + rows.argmax(1)]).clip(max=len(values) - 1))
    return positions[index], values[index]


def _line(
    figure: go.Figure,
    at: tuple[int, int],
    values: np.ndarray,
    scheme: str,
    name: str,
    *,
    points: int = MAX_POINTS,
    faint: bool = False,
) -> None:
    x, y = thin(np.arange(len(values), dtype=np.int32), values.astype(np.float32), points)
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            name=name,
            legendgroup=scheme,
            showlegend=False,
            opacity=0.25 if faint else 1,
            line={"color": scheme_colour(scheme), "width": 0.8 if faint else 1.6},
            hoverinfo="skip" if faint else None,
            hovertemplate=None if faint else f"{name}<br>position %{{x}}<br>%{{y:.4g}}<extra></extra>",
        ),
        row=at[0],
        col=at[1],
    )


def _spread(wanted: list[float], distance: float, low: float, high: float) -> list[float]:
    """Ascending values moved apart to at least `distance`, from `low` up and inside [low, high] where they fit."""
    placed: list[float] = []
    for value in wanted:
        placed.append(max(value, placed[-1] + distance if placed else low))
    for n in reversed(range(len(placed))):
        placed[n] = min(placed[n], placed[n + 1] - distance if n + 1 < len(placed) else high)
    return placed


def _label_ends(
    figure: go.Figure, at: tuple[int, int], ends: dict[str, float], failures: dict[str, int | None], shown: Shown
) -> list[float]:
    """Write each scheme's name and failure right of the panel at its line's end, no two overlapping; where they lie."""
    schemes = sorted(ends, key=lambda scheme: ends[scheme])
    placed = _spread([ends[scheme] for scheme in schemes], LABEL_HEIGHT * shown.span, shown.low, shown.high)
    for scheme, y in zip(schemes, placed, strict=True):
        short = scheme if len(scheme) <= LABEL_LENGTH else scheme[: LABEL_LENGTH - 1] + "…"
        text = short if failures[scheme] is None else f"{short} ✕ {failures[scheme]}"
        # A trace and not an annotation, so that the legend hides it with its line.
        figure.add_trace(
            go.Scatter(
                x=[shown.length],
                y=[y],
                mode="text",
                text=["\u2002" + text],
                textposition="middle right",
                cliponaxis=False,
                textfont={"color": scheme_colour(scheme), "size": 12},
                name=f"{scheme}: name",
                legendgroup=scheme,
                showlegend=False,
                hoverinfo="skip",
            ),
            row=at[0],
            col=at[1],
        )
    return placed


def _mark(figure: go.Figure, at: tuple[int, int], position: int, value: float, scheme: str, what: str) -> None:
    """A marker where a scheme fails; the position is beside the scheme's name."""
    figure.add_trace(
        go.Scatter(x=[position], y=[value], mode="markers", legendgroup=scheme, showlegend=False,
                   marker={"color": scheme_colour(scheme), "size": 11, "symbol": "x"}, name=f"{scheme}: {what}",
                   hovertemplate=f"{scheme}: {what} at %{{x}}<extra></extra>"),
        row=at[0], col=at[1],
    )  # fmt: skip


def _borders(info: RunInfo, scheme: str) -> list[int]:
    """First positions of a scheme's chunks; none where it has no chunks."""
    return list(info.schemes[scheme].borders) if scheme in info.schemes else []


def _draw_borders(
    figure: go.Figure, at: tuple[int, int], borders: dict[str, list[int]], low: float, high: float
) -> None:
    """Faint vertical lines where a scheme's chunks begin."""
    for scheme, positions in borders.items():
        if positions:
            figure.add_trace(
                go.Scatter(
                    x=[x for border in positions for x in (border, border, None)],
                    y=[low, high, None] * len(positions),
                    mode="lines",
                    opacity=0.45,
                    line={"color": scheme_colour(scheme), "width": 1},
                    name=f"{scheme}: chunks",
                    legendgroup=scheme,
                    showlegend=False,
                    hovertemplate=f"{scheme}: a chunk begins at %{{x}}<extra></extra>",
                ),
                row=at[0],
                col=at[1],
            )


def _window_line(figure: go.Figure, at: tuple[int, int], window: int, length: int) -> None:
    figure.add_vline(x=window, line={"color": WINDOW_COLOUR, "dash": "dash", "width": 1.2}, row=at[0], col=at[1])
    # At the lower edge, which is free of lines, on the side that has more room.
    side, shift = ("left", 3) if 2 * window < length else ("right", -3)
    figure.add_annotation(
        x=window, y=0.0, yref="y domain", text=f"M = {window}", showarrow=False, xanchor=side, yanchor="bottom",
        borderpad=0, xshift=shift, font={"color": WINDOW_COLOUR, "size": 11}, row=at[0], col=at[1],
    )  # fmt: skip


def _guide(figure: go.Figure, at: tuple[int, int], value: float, label: str) -> None:
    figure.add_hline(y=value, line={"color": THRESHOLD_COLOUR, "dash": "dash", "width": 1.2}, row=at[0], col=at[1])
    figure.add_annotation(
        x=0.0, xref="x domain", y=value, text=label, showarrow=False, xanchor="left", yanchor="bottom", borderpad=1,
        font={"color": THRESHOLD_COLOUR, "size": 11}, bgcolor="rgba(255,255,255,0.75)", row=at[0], col=at[1],
    )  # fmt: skip


def _median_width(run: int) -> int:
    """Width of a centred running median for a run length, as the likelihood's."""
    return 2 * (run // 2) + 1


def _draw_panel(
    figure: go.Figure, at: tuple[int, int], info: RunInfo, lines: dict[str, np.ndarray],
    failures: dict[str, int | None], guides: dict[float, str], what: str, smooth_over: int = 1,
    points: int = MAX_POINTS,
) -> bool:  # fmt: skip
    """Lines, their names and failures, M, chunks, and horizontal guides by their value; whether raw values were noisy
    and so drawn smoothed.
    """
    window = info.window
    # A first token's values are far from all others': they are drawn, but the axis is not stretched for them.
    settled = [values[min(window // 16, len(values) // 2) :] for values in lines.values()]
    marks = {scheme: float(lines[scheme][position]) for scheme, position in failures.items() if position is not None}
    seen = np.concatenate([*settled, list(marks.values()), list(guides)])
    shown = Shown(float(seen.min()), float(seen.max()), info.input.length)
    smooth = {name: median_filter(values, _median_width(smooth_over), mode="nearest") for name, values in lines.items()}
    noisy = max(float(np.median(np.abs(lines[name] - smooth[name]))) for name in lines) > NOISY * shown.span
    ends = {scheme: float(values[-1]) for scheme, values in (smooth if noisy else lines).items()}
    edges = [shown.low, shown.high, *_label_ends(figure, at, ends, failures, shown)]
    low, high = min(edges) - 0.08 * shown.span, max(edges) + 0.08 * shown.span
    # What is drawn first lies behind what comes later.
    _draw_borders(figure, at, {scheme: _borders(info, scheme) for scheme in lines}, low, high)
    if noisy:
        for scheme, values in lines.items():
            _line(figure, at, values, scheme, f"{scheme}: raw", points=points, faint=True)
    for scheme, values in (smooth if noisy else lines).items():
        _line(figure, at, values, scheme, scheme, points=points)
    for scheme, value in marks.items():
        _mark(figure, at, failures[scheme] or 0, value, scheme, what)
    for value, label in guides.items():
        _guide(figure, at, value, label)
    _window_line(figure, at, window, shown.length)
    figure.update_yaxes(range=[low, high], row=at[0], col=at[1])
    return noisy


def draw_dimension(
    figure: go.Figure,
    at: tuple[int, int],
    run: Run,
    verdicts: Sequence[Verdict],
    settings: DetectorSettings,
    points: int = MAX_POINTS,
) -> bool:
    """One panel: a dimension over position under every scheme; `verdicts` are its own, one per scheme.

    Returns whether it is noisy: then the lines are running medians over the detectors' run length, on faint raw values.
    """
    first = verdicts[0]
    series = {one.scheme: run.series(one.scheme, first.site, first.layer, first.dim or 0) for one in verdicts}
    failures = {one.scheme: one.predicted for one in verdicts}
    # Under `range` the schemes may have been judged by different ends of the range: each is drawn once.
    guides = {one.threshold: f"H = {one.threshold:.3g}" for one in verdicts if one.threshold is not None}
    over = settings.run_at(run.info.window)
    figure.update_yaxes(title_text="activation", row=at[0], col=at[1])
    return _draw_panel(figure, at, run.info, series, failures, guides, "predicted failure", over, points)


def draw_nll(
    figure: go.Figure,
    at: tuple[int, int],
    run: Run,
    verdicts: Sequence[Verdict],
    settings: DetectorSettings,
    points: int = MAX_POINTS,
) -> None:
    """The panel of the measured failure: smoothed NLL under every scheme and the in-window band's upper end."""
    window = run.info.window
    measured = {one.scheme: one.measured for one in verdicts}
    smooth = {scheme: smooth_nll(run.nll[scheme], settings.run_at(window)) for scheme in measured}
    known = can_calibrate(run.nll[ORIGIN], window, settings)
    band = nll_threshold(run.nll[ORIGIN], window, settings).value if known else None
    guides = {} if band is None else {band: f"band up to {band:.3g}"}
    figure.update_yaxes(title_text="NLL (nats)", row=at[0], col=at[1])
    _draw_panel(figure, at, run.info, smooth, measured, guides, "measured failure", points=points)


def caption(info: RunInfo, schemes: Iterable[str], smoothed_over: int | None) -> list[str]:
    """Lines that say what the marks mean.

    Args:
        info: the run's `run.json`.
        schemes: those drawn.
        smoothed_over: positions of the running median in noisy panels, None where no panel is noisy.
    """
    lines = [
        "✕ and the number beside a name: the position where that scheme fails. A click in the legend hides a scheme."
    ]
    chunked = [scheme for scheme in schemes if _borders(info, scheme)]
    if chunked:
        lines.append(
            f"Faint vertical lines: a chunk of {' or '.join(chunked)} begins; each middle chunk continues the "
            "positions of chunk 0."
        )
    if smoothed_over is not None:
        lines.append(
            f"Strong lines: running median over {smoothed_over} positions; faint: the raw values, which the "
            "detector judges."
        )
    return lines


def _legend(figure: go.Figure, schemes: Iterable[str]) -> None:
    """One entry per scheme, which hides all that is drawn of it; schemes of one colour differ in their dashes."""
    colours: list[str] = []
    for scheme in schemes:
        lines = [trace for trace in figure.data if trace.name == scheme]
        lines[0].showlegend = True
        for line in lines:
            line.line.dash = DASHES[colours.count(line.line.color) % len(DASHES)]
        colours.append(lines[0].line.color)
    figure.update_layout(legend={"orientation": "h", "yref": "container", "yanchor": "top", "x": 0, "xanchor": "left"})


def _telling(panels: dict[Place, list[Verdict]]) -> dict[Place, list[Verdict]]:
    """As many panels as are read, those that the model as trained crosses first, then those that another scheme does;
    all in their own order where they are few.
    """
    if len(panels) <= MAX_PANELS:
        return panels

    def first(place: Place) -> tuple[float, float]:
        found = {one.scheme: one.predicted for one in panels[place] if one.predicted is not None}
        return found.get(ORIGIN, float("inf")), min(found.values(), default=float("inf"))

    return {place: panels[place] for place in sorted(panels, key=first)[:MAX_PANELS]}


def threshold_figure(
    run: Run, verdicts: Sequence[Verdict] | None = None, settings: DetectorSettings | None = None
) -> go.Figure:
    """Figure 2 for a whole run: a panel per (site, layer, dim), the NLL at the bottom.

    Args:
        run: the run folder.
        verdicts: what to draw, of single dimensions; default those in the run's folder.
        settings: what the verdicts were made with; default those of the run.
    """
    verdicts = read_verdicts(run, as_single(run.info.detector)) if verdicts is None else verdicts
    panels: dict[Place, list[Verdict]] = {}
    for verdict in verdicts:
        panels.setdefault(verdict.place.under(ORIGIN), []).append(verdict)
    left_out = len(panels) - MAX_PANELS
    panels = _telling(panels)
    columns = 2 if len(panels) > 1 else 1
    height = -(-len(panels) // columns)
    titles = [place.title for place in panels]
    titles += [""] * (height * columns - len(panels)) + ["measured: negative log-likelihood (nats, smoothed)"]
    # A model without a vocabulary head has no likelihood, and its figure no panel for one.
    measured = not np.isnan(run.nll[ORIGIN][1:]).all()
    last: list[list[Any]] = [[{"colspan": columns}] + [None] * (columns - 1)] if measured else []
    total = height + len(last)
    figure = make_subplots(
        rows=total, cols=columns, subplot_titles=titles[: height * columns + len(last)], vertical_spacing=0.32 / total,
        specs=[[{} for _ in range(columns)] for _ in range(height)] + last, horizontal_spacing=0.24,
    )  # fmt: skip
    info, settings = run.info, settings or settings_of(run.info)
    places = [(number // columns + 1, number % columns + 1) for number in range(len(panels))]
    # Up to two lines a scheme and panel: what is recorded, and its running median.
    schemes = list(dict.fromkeys(one.scheme for one in verdicts))
    points = max(200, min(MAX_POINTS, ALL_POINTS // ((2 * len(panels) + 1) * len(schemes))))
    noisy = [
        draw_dimension(figure, at, run, mine, settings, points)
        for at, mine in zip(places, panels.values(), strict=True)
    ]
    if measured:
        draw_nll(figure, (total, 1), run, verdicts, settings, points)
    notes = caption(info, schemes, _median_width(settings.run_at(info.window)) if any(noisy) else None)
    _legend(figure, schemes)
    more = f"the {MAX_PANELS} dimensions that cross first; {left_out} more are in the run: open it in the dashboard"
    tall = 330 * total + 80 * (not measured) + 18 * len(notes)
    figure.add_annotation(
        text="<br>".join(notes), xref="paper", yref="paper", x=0, y=0, xanchor="left", yanchor="top", yshift=-46,
        align="left", showarrow=False, font={"size": 12, "color": WINDOW_COLOUR},
    )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=tall, legend_y=1 - (56 + 18 * (left_out > 0)) / tall,
        margin={"l": 64, "r": 160, "t": 118 + 18 * (left_out > 0), "b": 56 + 18 * len(notes)},
        title={"text": f"{info.model}: hidden states past the trained window, input {info.input.spec}, "
               f"detector {verdicts[0].detector}" + (f"<br><sup>{more}</sup>" if left_out > 0 else ""),
               "y": 1 - 24 / tall, "yanchor": "top"},
    )  # fmt: skip
    # Names at the lines' ends lie right of the axis, which ends with the input.
    figure.update_xaxes(title_text="position", title_standoff=4, range=[0, info.input.length])
    figure.update_yaxes(title_standoff=6)
    return figure
