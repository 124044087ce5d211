"""The paper's heat maps (Figs. 11, 12, 15, 16): dimensions over positions past M, a field per layer and scheme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from probe.errors import FieldError, unknown
from probe.recording.folder import Run
from probe.recording.place import Place
from probe.schemes import ORIGIN
from probe.thresholds.detectors import DetectorSettings, in_window
from probe.thresholds.verdicts import settings_of

COLUMNS = 128
"""Columns of a field at most, each a mean over positions."""
ROWS = 640
"""Dimensions of a field at most, as many as the paper shows."""
MOST_LAYERS = 6
"""Layers drawn where nobody names any, evenly spread: a model of 30 would be a wall."""
FURTHEST = 10.0
"""Robust standard deviations at which the colour ends."""
STEPS = 12
"""Shades of one standard deviation: values are kept as whole numbers of these, in a byte each."""
WHAT = {
    "departure": "distance from the trained model's median inside the window, in robust standard deviations",
    "value": "the value itself, in units of the largest inside the window",
}
"""What the colour says: its sign is that of the value, or of the departure."""


def chosen_layers(layers: Sequence[int], asked: Sequence[int] | None) -> list[int]:
    """Those that were asked for, or at most `MOST_LAYERS`, evenly spread from the first to the last.

    Raises:
        FieldError: one that was not recorded.
    """
    if asked is None:
        if len(layers) <= MOST_LAYERS:
            return list(layers)
        return [layers[round(at)] for at in np.linspace(0, len(layers) - 1, MOST_LAYERS)]
    for layer in asked:
        if layer not in layers:
            raise FieldError("layers", f"recorded ones, {', '.join(map(str, layers))}", layer)
    return list(asked)


def means(values: NDArray[np.float64], columns: int = COLUMNS) -> NDArray[np.float64]:
    """[positions, dims] as [columns, dims], means over positions that lie side by side."""
    count = min(columns, len(values))
    edges = np.linspace(0, len(values), count + 1).astype(int)
    found: NDArray[np.float64] = np.add.reduceat(values, edges[:-1], axis=0) / np.diff(edges)[:, None]
    return found


def field(
    values: NDArray[np.float64], reference: NDArray[np.float64], window: int, settings: DetectorSettings, what: str
) -> NDArray[np.int8]:
    """What is drawn of a layer, [dims, columns], whole steps of a colour.

    Args:
        values: of the scheme, [positions, dims].
        reference: of the trained model.
        window: M; positions from it on are drawn.
        settings: whose burn-in says what counts as inside.
        what: of `WHAT`.
    """
    known = in_window(reference, window, settings)
    if what == "value":
        found = FURTHEST * means(values[window:]) / np.maximum(np.abs(known).max(0), 1e-12)
    else:
        median = np.median(known, 0)
        scale = 1.4826 * np.median(np.abs(known - median), 0)
        floor = np.maximum(1e-6 * np.abs(known).max(0), 1e-12)
        found = (means(values[window:]) - median) / np.maximum(scale, floor)
    steps: NDArray[np.int8] = np.rint(STEPS * np.clip(found, -FURTHEST, FURTHEST)).astype(np.int8).T
    return steps


def maps_figure(
    run: Run, schemes: Sequence[str] | None = None, layers: Sequence[int] | None = None, what: str = "departure"
) -> go.Figure:
    """A field of dimensions (down) and positions from M to the end (across) for every layer and scheme.

    Args:
        run: the run folder; it reaches past M.
        schemes: of those that ran; default those that it shows.
        layers: of those that were recorded; default a few of them.
        what: of `WHAT`.

    Raises:
        ProbeError: a scheme that did not run, a layer that was not recorded, an input that does not reach past M.
    """
    info, used = run.info, settings_of(run.info)
    shown = list(info.shown if schemes is None else schemes)
    for scheme in shown:
        if scheme not in info.schemes:
            raise unknown("scheme", scheme, info.schemes)
    if what not in WHAT:
        raise unknown("what is drawn", what, WHAT)
    if info.input.length <= info.window:
        raise FieldError("run", hint=f"its {info.input.length} tokens do not reach past M = {info.window}")
    drawn, site = chosen_layers(info.layers, layers), info.sites[0]
    figure = make_subplots(
        rows=len(drawn), cols=len(shown), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.02,
        vertical_spacing=0.25 / max(4, 2 * len(drawn)), column_titles=[escape(one) for one in shown],
        row_titles=[f"layer {layer}" for layer in drawn],
    )  # fmt: skip
    dims = list(info.dims[:ROWS])
    for row, layer in enumerate(drawn, 1):
        reference = run.trace[Place(ORIGIN, site, layer).key][:, : len(dims)].astype(np.float64)
        for column, scheme in enumerate(shown, 1):
            values = run.trace[Place(scheme, site, layer).key][:, : len(dims)].astype(np.float64)
            made = field(values, reference, info.window, used, what)
            across = np.linspace(info.window, info.input.length, made.shape[1] + 1)
            figure.add_trace(
                go.Heatmap(
                    z=made, x=((across[:-1] + across[1:]) / 2).astype(np.int32), y=dims, coloraxis="coloraxis",
                    hovertemplate=f"{escape(scheme)}, layer {layer}<br>dim %{{y}}, position %{{x}}<extra></extra>",
                ),
                row=row, col=column,
            )  # fmt: skip
    _look(figure, run, len(drawn), len(shown), what)
    return figure


def _look(figure: go.Figure, run: Run, tall: int, wide: int, what: str) -> None:
    info, most = run.info, int(FURTHEST * STEPS)
    said = "values" if what == "value" else "departures"
    texts = "" if info.input.samples == 1 else f", mean of {info.input.samples} texts"
    title = f"{info.model}: {said} of {info.sites[0]} past M = {info.window}, input {info.input.spec}{texts}"
    ticks = [-most, -most // 2, 0, most // 2, most]
    names = [f"{one / STEPS / (FURTHEST if what == 'value' else 1):+g}" if one else "0" for one in ticks]
    figure.update_layout(
        template="plotly_white", height=150 + 170 * tall, width=max(560, 170 + 380 * wide),
        title={"text": f"{escape(title)}<br><sup>{escape(WHAT[what])}</sup>", "font": {"size": 15}},
        coloraxis={
            "cmin": -most, "cmax": most, "colorscale": "RdBu", "reversescale": True,
            "colorbar": {"tickvals": ticks, "ticktext": names, "thickness": 14},
        },
        margin={"l": 60, "r": 90, "t": 90, "b": 50},
    )  # fmt: skip
    figure.update_xaxes(title_text="position", row=tall)
    figure.update_yaxes(title_text="dimension", col=1)
