"""Will it break? The verdict first, then what it rests on: likelihood and hidden dimensions over position."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import words
from app.answers import answers, answers_html, detector_line, headline
from app.chrome import choose_run, empty, keep, title
from app.figures import course, dimension_panel, likelihood_panel
from app.look import chart, look
from app.maps import cells
from app.options import Options
from app.runs import intervals, verdicts
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.recording.place import Place
from probe.schemes import ORIGIN
from probe.thresholds.detectors import DetectorSettings, as_single, single_detectors
from probe.thresholds.verdicts import Verdict

PANELS = 2
"""Dimensions drawn at first; the reader adds others."""

MOST = 6
"""Dimensions drawn at most."""


def render(options: Options) -> None:
    """Draw the page.

    Raises:
        ProbeError: the chosen run cannot be read, or its settings leave nothing to judge with.
    """
    title("Will it break?", "Past its trained window, does this model fail on this input, and does weaving help?")
    run = choose_run(options)
    if run is None:
        empty(options)
        return
    # The answer stands above what it can be asked differently with, so containers come before the widgets in them.
    answer, drawn, controls, explained = (st.container() for _ in range(4))
    with controls:
        schemes, smoothing = _controls(run.info)
        dims = st.container()
        with st.expander("Detector", icon=":material/tune:"):
            detector, settings = _judging(run.info, run.path.name)
    if not schemes:
        answer.info("Choose at least one scheme to show.")
        return
    found = verdicts(run, detector, settings, schemes)
    said = answers(run.info, found, intervals(run, settings, schemes))
    with answer:
        st.markdown(headline(run.info, said))
        st.html(answers_html(said, look()))
    with dims:
        places = _places(run, found)
    with drawn:
        _draw(run, found, places, settings, smoothing)
    with explained:
        _explain(run.info, found, detector, settings)


def _controls(info: RunInfo) -> tuple[list[str], str]:
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    schemes = left.pills(
        "Schemes", list(info.shown), selection_mode="multi", default=list(info.shown), key=f"schemes {_stamp(info)}",
        help="Those of this run that are shown.",
    )  # fmt: skip
    smoothing = right.segmented_control(
        "Smoothing", ["auto", "on", "off"], default="auto", key="smoothing", bind="query-params", required=True,
        help="Hidden dimensions as running medians over their raw values: auto smooths what is noise to the eye.",
    )  # fmt: skip
    return [scheme for scheme in info.shown if scheme in (schemes or [])], smoothing or "auto"


def _stamp(info: RunInfo) -> str:
    """Of a run: its choices are its own."""
    return f"{info.model} {info.provenance.created}"


def _places(run: Run, found: Sequence[Verdict]) -> list[Place]:
    """The dimensions that are drawn: the most telling, or the reader's choice."""
    ranked = cells(found)
    at = {one.place.under(ORIGIN): one.predicted for one in found if one.scheme == ORIGIN}

    def said(place: Place) -> str:
        first = at.get(place)
        return place.title + (f" · leaves at {words.count(first)}" if first is not None else "")

    titles = {place.title: place for place in ranked}
    key = f"dims {run.path.name}"
    asked = [one for one in st.query_params.get_all("dim") if one in titles]
    if key not in st.session_state:
        st.session_state[key] = asked[:MOST] or [place.title for place in ranked[:PANELS]]
    st.session_state[key] = [one for one in st.session_state[key] if one in titles]
    chosen = st.multiselect(
        "Dimensions", list(titles), key=key, max_selections=MOST, format_func=lambda one: said(titles[one]),
        help=f"The most telling first, up to {MOST}. {words.SITE}",
    )  # fmt: skip
    st.query_params["dim"] = chosen
    return [titles[one] for one in chosen]


def _draw(
    run: Run, found: Sequence[Verdict], places: Sequence[Place], settings: DetectorSettings, smoothing: str
) -> None:
    once = {one.scheme: one for one in found}
    measured = likelihood_panel(run, list(once.values()), settings)
    panels = [] if measured is None else [measured]
    for place in places:
        mine = [one for one in found if one.place.under(ORIGIN) == place]
        panels.append(dimension_panel(run, place, mine, settings, smoothing))
    if not panels:
        st.info(
            "This model has no vocabulary head, so nothing is measured; choose a dimension to see what is predicted."
        )
        return
    said = "; ".join(f"{one.scheme}: {one.head}" for one in answers(run.info, found))
    chart(
        course(panels, run.info.window, run.info.input.length, look()), "course",
        f"Likelihood and hidden dimensions over position, M = {run.info.window}. {said}",
    )  # fmt: skip
    st.caption(
        "✕ where a scheme fails: in the first panel measured, below predicted. A click in the legend hides a scheme."
    )


def _judging(info: RunInfo, name: str) -> tuple[str, DetectorSettings]:
    """Detector and its settings; they begin as the run was made with."""
    used, window = info.detection, info.window
    # The reference needs two positions inside the window.
    latest = max(0, min(window, info.input.length) - 2)
    row = st.columns(4, gap="medium")
    known = single_detectors()
    keep("detector", known, as_single(info.detector))
    detector = row[0].selectbox("Detector", known, key="detector", bind="query-params", help=words.DETECTOR)
    burn_in = row[1].number_input(
        "Burn-in", 0, latest, min(used.burn_in_used, latest), key=f"burn_in {name}", help=words.BURN_IN
    )
    run_length = row[2].slider(
        "Run length", 1, max(2, window, used.run_length_used), used.run_length_used, key=f"run_length {name}",
        help=words.RUN_LENGTH,
    )  # fmt: skip
    most = max(10.0, float(used.margin))
    margin = row[3].slider("Margin", 0.0, most, float(used.margin), 0.25, key=f"margin {name}", help=words.SLACK)
    st.caption(detector_line(detector))
    return detector, DetectorSettings(int(burn_in), int(run_length), float(margin))


def _explain(info: RunInfo, found: Sequence[Verdict], detector: str, settings: DetectorSettings) -> None:
    with st.expander("How to read this", icon=":material/menu_book:"):
        lasting = settings.run_at(info.window)
        st.markdown(
            f"- **M**: {words.M}\n- **H**: {words.H}\n- {words.PREDICTED} Here that is {lasting} positions.\n"
            f"- {words.MEASURED}\n- One dimension is an observation, not a law: how far to trust it shows in how many "
            "layers and dimensions agree, and on ordinary text hidden dimensions announce less than on a repeated "
            "word. The page *Where does it show?* has all of them, and the two causes."
        )
