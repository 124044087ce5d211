"""Figure 2 live: hidden dimensions past the trained window, judged anew with every move of a slider."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import jobs, words
from app.options import Options
from app.sidebar import sidebar, trained_models
from probe.figures.thresholds import threshold_figure
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.recording.place import Place
from probe.results import Records
from probe.schemes import ORIGIN
from probe.thresholds.detectors import DETECTORS, DetectorSettings
from probe.thresholds.verdicts import Verdict, judge_run


def render(options: Options) -> None:
    """Draw the page.

    Raises:
        ProbeError: the chosen run cannot be read, or its settings leave nothing to judge with.
    """
    st.title("Thresholds")
    run = sidebar(options)
    if run is None:
        if jobs.running() is None:
            _empty(options)
        return
    st.caption(
        "Where does a hidden dimension leave what it knew in training, and does the likelihood fail there? "
        f"M = {run.info.window} tokens."
    )
    place = _place(run.info)
    detector, settings, schemes = _judging(run)
    if not schemes:
        st.info("Choose at least one scheme to show.")
        return
    verdicts = judge_run(run, detector, settings, schemes=schemes, places=[place])
    figure = threshold_figure(run, verdicts, settings)
    _draw(figure)
    _table(verdicts)
    st.markdown(words.reading(run.info, verdicts, detector, settings))
    _downloads(run, figure, place, detector, settings, schemes)


def _empty(options: Options) -> None:
    start = "Open **New run** at the left and press **Run**, or in a terminal:" if trained_models(options) else (
        "Train the embedded model with `probe train rope`, or launch with a model of your own: "
        "`streamlit run app/main.py -- --model FOLDER`. Runs made in a terminal show up here too:"
    )  # fmt: skip
    st.info(f"There are no runs in {words.literal(options.runs)} yet. {start}")
    st.code(f"probe run --layer all --dim 0-19 --out {shlex.quote(str(options.runs / 'first'))}", language="bash")


def _keep(key: str, choices: Sequence[Any]) -> None:
    """Forget a choice that this run does not have; one that it has survives a change of run."""
    if st.session_state.get(key) not in choices:
        st.session_state[key] = choices[0]


def _pick(label: str, choices: Sequence[int], key: str, help: str) -> int:
    _keep(key, choices)
    if len(choices) == 1:  # a slider needs two ends
        return int(st.selectbox(label, choices, key=key, help=help))
    return int(st.select_slider(label, choices, key=key, help=help))


def _place(info: RunInfo) -> Place:
    left, middle, right = st.columns([1, 2, 3], gap="large")
    with left:
        _keep("site", info.sites)
        site = st.selectbox("Site", info.sites, key="site", help=words.SITE)
    with middle:
        layer = _pick("Layer", sorted(info.layers), "layer", "1 is the first layer.")
    with right:
        dim = _pick(
            "Dimension",
            sorted(info.dims),
            "dim",
            "A dimension of the hidden state, from 0; those that were recorded.",
        )
    return Place(ORIGIN, site, layer, dim)


def _judging(run: Run) -> tuple[str, DetectorSettings, list[str]]:
    """Detector, its settings and the schemes shown; they begin as the run was made with."""
    info, name = run.info, run.path.name
    left, right = st.columns([1, 5], gap="large")
    detector = left.selectbox(
        "Detector",
        list(DETECTORS),
        index=list(DETECTORS).index(info.detector),
        key=f"detector {name}",
        help=words.DETECTOR,
    )
    schemes = right.multiselect("Schemes shown", list(info.schemes), default=list(info.shown), key=f"schemes {name}")
    with st.expander("Detector settings", icon=":material/tune:"):
        settings = _settings(info, name)
    return detector, settings, [scheme for scheme in info.schemes if scheme in schemes]


def _settings(info: RunInfo, name: str) -> DetectorSettings:
    used, window = info.detection, info.window
    # The reference needs two positions inside the window.
    latest = max(0, min(window, info.input.length) - 2)
    first, second, third = st.columns(3, gap="large")
    burn_in = first.number_input(
        "Burn-in", 0, latest, min(used.burn_in_used, latest), key=f"burn_in {name}", help=words.BURN_IN
    )
    run = second.slider(
        "Run length",
        1,
        max(2, window, used.run_length_used),
        used.run_length_used,
        key=f"run_length {name}",
        help=words.RUN_LENGTH,
    )
    most = max(10.0, float(used.margin))
    margin = third.slider("Margin", 0.0, most, float(used.margin), 0.25, key=f"margin {name}", help=words.SLACK)
    return DetectorSettings(int(burn_in), int(run), float(margin))


def _draw(figure: go.Figure) -> None:
    shown = go.Figure(figure)
    # The page says above what the file's title says.
    shown.update_layout(title=None, height=680, margin_t=66, legend_y=1)
    st.plotly_chart(shown, theme=None, key="figure", config={"displaylogo": False})


def _said(untold: str | None, position: int | None) -> str:
    """A position as the table has it; "none", or "cannot tell", where there is none."""
    if position is not None:
        return str(position)
    return "none" if untold is None else "cannot tell"


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Predicted against measured, a line per scheme; a difference that there is not is NA."""
    frame = pd.DataFrame({
        "scheme": [one.scheme for one in verdicts],
        "threshold": pd.array([one.threshold for one in verdicts], dtype="Float64"),
        "fails": [one.direction and f"{one.direction} H" for one in verdicts],
        "predicted": [_said(one.unpredicted, one.predicted) for one in verdicts],
        "measured": [_said(one.unmeasured, one.measured) for one in verdicts],
        "margin": pd.array([one.margin for one in verdicts], dtype="Float64"),
    })  # fmt: skip
    gaps = [None if one.predicted is None or one.measured is None else one.predicted - one.measured for one in verdicts]
    frame.insert(5, "difference", pd.Series(gaps, dtype="Int64"))
    return frame


def _table(verdicts: Sequence[Verdict]) -> None:
    column = st.column_config
    st.dataframe(
        table(verdicts), hide_index=True, key="table", placeholder="-",
        column_config={
            "scheme": column.TextColumn("Scheme"),
            "threshold": column.NumberColumn("Threshold H", format="%.4g", help=words.H),
            "fails": column.TextColumn("Fails", help="The side of H on which the model fails."),
            "predicted": column.TextColumn("Predicted failure", help=words.PREDICTED),
            "measured": column.TextColumn("Measured failure", help=words.MEASURED),
            "difference": column.NumberColumn("Predicted − measured", format="%d", help=words.DIFFERENCE),
            "margin": column.NumberColumn("Margin (robust sd)", format="%.2f", help=words.MARGIN),
        },
    )  # fmt: skip


def verdicts_csv(verdicts: Records[Verdict]) -> str:
    """Verdicts as CSV with a header; an empty cell is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[one.name for one in fields(Verdict)])
    writer.writeheader()
    writer.writerows(verdicts.to_json())
    return text.getvalue()


def _downloads(
    run: Run, figure: go.Figure, place: Place, detector: str, settings: DetectorSettings, schemes: Sequence[str]
) -> None:
    name = Path(run.path).name
    left, right, _ = st.columns([1, 1, 2])
    # Made when the button is pressed: a run may hold thousands of rows, and the figure's file its own copy of plotly.
    left.download_button(
        "All rows (CSV)", lambda: verdicts_csv(judge_run(run, detector, settings, schemes=schemes)),
        f"{name}-{detector}.csv", "text/csv", key="csv", on_click="ignore", icon=":material/download:", width="stretch",
        help="Every layer and dimension of this run, judged with the settings above.",
    )  # fmt: skip
    right.download_button(
        "This figure (HTML)",
        lambda: figure.to_html(include_plotlyjs=True),
        f"{name}-{place.site}-{place.layer}-{place.dim}.html",
        "text/html",
        key="html",
        on_click="ignore",
        icon=":material/download:",
        width="stretch",
        help="One file that needs no network.",
    )
