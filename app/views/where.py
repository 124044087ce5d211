"""Where does it show? Every recorded dimension at once, by layer, and the two causes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app import jobs, words
from app.chrome import choose_run, empty, keep, pick, title
from app.figures import course, dimension_panel, likelihood_panel
from app.look import chart, look
from app.maps import by_layer, cells, exceedance_map
from app.new_run import trained_models
from app.options import Options
from app.rises import by_frequency, rises
from app.runs import Stored, results, verdicts
from probe.errors import ProbeError
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.recording.place import Place
from probe.schemes import ORIGIN
from probe.thresholds.detectors import DetectorSettings, as_single, single_detectors
from probe.thresholds.verdicts import Verdict, settings_of


def render(options: Options) -> None:
    """Draw the page.

    Raises:
        ProbeError: the chosen run cannot be read.
    """
    title(
        "Where does it show?", "Which layers and dimensions leave what they knew in training, and why the model fails."
    )
    run = choose_run(options)
    if run is None:
        empty(options)
        return
    info = run.info
    site, schemes, detector = _controls(info)
    settings = settings_of(info)
    found = [one for one in verdicts(run, detector, settings, schemes) if one.site == site]
    picked = _maps(info, found, schemes)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        _curve(run, found, picked, settings)
    with right:
        _ranking(found)
    _causes(options, info)
    _frequencies(options, info)


def _controls(info: RunInfo) -> tuple[str, list[str], str]:
    first, second, third = st.columns([1, 2, 1], vertical_alignment="bottom")
    keep("site", list(info.sites))
    site = first.selectbox("Site", list(info.sites), key="site", bind="query-params", help=words.SITE)
    others = [scheme for scheme in info.shown if scheme != ORIGIN]
    schemes = [ORIGIN] if ORIGIN in info.shown else []
    if others:
        keep("beside", others, "rerope")
        schemes.append(
            second.segmented_control("Beside the model as trained", others, key="beside", required=True) or others[0]
        )
    known = single_detectors()
    keep("detector", known, as_single(info.detector))
    detector = third.selectbox("Detector", known, key="detector", bind="query-params", help=words.DETECTOR)
    return site, schemes, detector


def _maps(info: RunInfo, found: Sequence[Verdict], schemes: Sequence[str]) -> Place | None:
    """A map per scheme, side by side; the cell that was clicked last."""
    clicked: Place | None = None
    for column, scheme in zip(st.columns(len(schemes), gap="medium"), schemes, strict=True):
        mine = [one for one in found if one.scheme == scheme]
        crossing = sum(one.predicted is not None for one in mine)
        with column:
            st.markdown(
                f"**{words.literal(scheme)}**: {words.count(crossing)} of {words.count(len(mine))} leave their range"
            )
            event = chart(
                exceedance_map(mine, info, look()), f"map {scheme} {info.provenance.created}",
                f"Map of layers and dimensions under {scheme}: {crossing} of {len(mine)} leave their range",
                on_select="rerun", selection_mode="points",
            )  # fmt: skip
            clicked = _clicked(event, mine, scheme) or clicked
    if clicked is not None:
        st.session_state["cell"] = clicked.title
    titles = {one.place.title: one.place.under(ORIGIN) for one in found}
    asked = st.session_state.get("cell")
    return titles.get(asked) if asked else None


def _clicked(event: Any, mine: Sequence[Verdict], scheme: str) -> Place | None:
    """The cell of a new click; an old selection of the other map says nothing."""
    points = event.selection.points if hasattr(event, "selection") else []
    custom = points[0].get("customdata") if points else None
    now = tuple(custom) if isinstance(custom, list | tuple) else None
    key = f"clicked {scheme}"
    if now == st.session_state.get(key):
        return None
    st.session_state[key] = now
    if now is None:
        return None
    return next((one.place for one in mine if (one.layer, one.dim) == (int(now[0]), int(now[1]))), None)


def _curve(run: Run, found: Sequence[Verdict], picked: Place | None, settings: DetectorSettings) -> None:
    ranked = cells(found)
    place = picked or (ranked[0] if ranked else None)
    if place is None:
        return
    st.markdown(f"**{place.title}** over position. Click a cell of a map for another one.")
    mine = [one for one in found if one.place.under(ORIGIN) == place]
    measured = likelihood_panel(run, mine, settings)
    panels = [dimension_panel(run, place, mine, settings, "auto"), *([] if measured is None else [measured])]
    chart(
        course(panels, run.info.window, run.info.input.length, look()), "cell curve", f"{place.title} over position"
    )  # fmt: skip


def _ranking(found: Sequence[Verdict]) -> None:
    chart(by_layer(found, look()), "by layer", "Earliest position at which a dimension of each layer leaves its range")
    rows: dict[Place, dict[str, Any]] = {}
    for one in found:
        said = "cannot tell" if one.unpredicted and one.predicted is None else "none"
        rows.setdefault(one.place.under(ORIGIN), {})[one.scheme] = one.predicted if one.predicted is not None else said
    ranked = [place for place in cells(found) if any(isinstance(value, int) for value in rows[place].values())]
    if not ranked:
        return
    frame = pd.DataFrame([
        {"layer": place.layer, "dim": place.dim, **{key: str(value) for key, value in rows[place].items()}}
        for place in ranked[:200]
    ])  # fmt: skip
    st.dataframe(frame, hide_index=True, height=230, key="ranking")
    if len(ranked) > 200:
        st.caption(f"The first 200 of {words.count(len(ranked))} that leave their range.")


def _causes(options: Options, info: RunInfo) -> None:
    st.subheader("Why: unseen distances, or more keys than ever?", anchor="causes")
    model = info.model.rsplit("/", 1)[-1]
    found = [one for one in results(options.runs, "causes") if one.model == model]
    st.caption(
        "Distances: the text's first tokens are moved away in position, as far as they would lie in a longer input. "
        "Keys: no distance is unseen, but there are more of them. Both are predicted from passes no longer than the "
        "window."
    )
    if not found:
        _offer(options, info, model)
        return
    _shown(found, model)


def _shown(found: Sequence[Stored], model: str) -> None:
    picked = pick(found, "causes")
    chosen, value = picked.name, picked.value
    schemes = list(dict.fromkeys(row["scheme"] for row in value["rows"]))
    shown = st.pills("Schemes", schemes, selection_mode="multi", default=schemes[:3], key=f"causes of {chosen}")
    untold = {(row["scheme"], row["cause"], row["untold"]) for row in value["rows"] if row.get("untold")}
    columns = st.columns(max(1, min(3, len(shown or []))))
    for number, scheme in enumerate(shown or []):
        with columns[number % len(columns)]:
            chart(
                rises(value, scheme, look()), f"rise {chosen} {scheme}",
                f"Rise in nats per token of {model} under {scheme} by length, predicted and measured",
            )  # fmt: skip
    for scheme, cause, why in sorted(untold):
        st.caption(
            f"Cannot tell ({words.literal(scheme)}, {words.plain_markdown(cause)}): {words.plain_markdown(why)}."
        )


def _offer(options: Options, info: RunInfo, model: str) -> None:
    length = 2 * info.window
    schemes = ",".join(dict.fromkeys([ORIGIN, *info.shown]))
    st.info(f"Not asked of {words.literal(model)} yet. It takes a few passes of {words.count(info.window)} tokens.")
    arguments = ["causes", "--model", info.model, "--scheme", schemes, "--length", str(length), "--measure", "0"]
    if st.button("Find out", icon=":material/play_arrow:", disabled=jobs.running(options.runs) is not None):
        if info.model not in trained_models(options):
            raise ProbeError(
                f"model {model!r} is not among those that the dashboard was told of; launch with --model FOLDER, or "
                f"run: probe causes --model {model}"
            )
        st.session_state["watched"] = jobs.start(
            options.runs, f"Causes of {model}", arguments, f"causes-{model}", file=True
        ).name  # fmt: skip
        st.rerun()


def _frequencies(options: Options, info: RunInfo) -> None:
    st.subheader("Which rotary frequencies?", anchor="frequencies")
    model = info.model.rsplit("/", 1)[-1]
    found = [one for one in results(options.runs, "frequencies") if one.model == model]
    st.caption(
        "The distances above, for some frequencies only, from passes no longer than the window: one group alone at "
        "unseen distances, and all but that group, which says how much of the failure goes when its angles are put "
        "back."
    )
    if not found:
        st.caption(f"Not asked of {words.literal(model)} yet:")
        st.code(f"probe frequencies --model {shlex.quote(info.model)} --groups 8 --out runs/frequencies.json")
        return
    picked = pick(found, "frequencies")
    chosen, value = picked.name, picked.value
    scheme = next(row["scheme"] for row in value["rows"])
    length = words.count(int(value["settings"]["length"]))
    chart(
        by_frequency(value, scheme, look()), f"frequency {chosen}",
        f"Rise in nats per token of {model} under {scheme} by rotary frequency, standing for {length} tokens",
    )  # fmt: skip
    st.caption(f"{words.literal(scheme)}, standing for {length} tokens; bars are 95% intervals.")
