"""Runs: list, filter, rename, compare, delete, export."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd
import streamlit as st

from app import words
from app.answers import answers
from app.chrome import choose_run, empty, keep, title
from app.figures import Panel, course
from app.look import chart, look
from app.options import Options
from app.runs import delete, infos, is_example, open_run, rename, run_names, size_of, verdicts
from probe.errors import ProbeError
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.recording.repeat import command, python
from probe.results import Records
from probe.schemes import ORIGIN
from probe.thresholds.measured import smooth_nll
from probe.thresholds.verdicts import Verdict, settings_of

LISTED = 200
"""Runs that are read for the table at most."""


def render(options: Options) -> None:
    """Draw the page.

    Raises:
        ProbeError: the chosen run cannot be read.
    """
    title("Runs", "Everything that was recorded: find it, compare it, take it elsewhere.")
    _list(options)
    run = choose_run(options)
    if run is None:
        empty(options)
        return
    left, right = st.columns(2, gap="large")
    with left:
        _export(run)
    with right:
        _change(options, run)
    _compare(options, run)


def _list(options: Options) -> None:
    wanted = st.text_input("Find", key="find", bind="query-params", placeholder="name, model, input or scheme",
                           help="Runs in which every word occurs.")  # fmt: skip
    count = len(run_names(options.runs))
    found = infos(options.runs, LISTED)
    rows = [_row(options, name, info) for name, info in found.items() if not isinstance(info, ProbeError)]
    terms = (wanted or "").lower().split()
    shown = [row for row in rows if all(term in " ".join(map(str, row.values())).lower() for term in terms)]
    if shown:
        event = st.dataframe(
            pd.DataFrame(shown), hide_index=True, key="list", on_select="rerun", selection_mode="single-row",
            height=min(320, 60 + 36 * len(shown)),
        )  # fmt: skip
        _take(event, shown)
    elif rows:
        st.info(f"No run has {words.literal(wanted)} in it; clear the field to see all {len(rows)}.")
    if count > LISTED:
        st.caption(f"The newest {LISTED} of {count} are listed; all can be chosen below.")
    for name, info in found.items():
        if isinstance(info, ProbeError):
            _broken(options, name, words.plain(info))


def _take(event: object, shown: Sequence[dict[str, object]]) -> None:
    """A click on a row chooses that run, once: the selection stays when another run is chosen elsewhere."""
    selection = getattr(event, "selection", None)
    marked = tuple(getattr(selection, "rows", ()) or ())
    picked = str(shown[marked[0]]["run"]) if marked and marked[0] < len(shown) else None
    if picked != st.session_state.get("row_taken"):
        st.session_state["row_taken"] = picked
        if picked is not None:
            st.session_state["run"] = picked


def _row(options: Options, name: str, info: RunInfo) -> dict[str, object]:
    return {
        "run": name, "model": Path(info.model).name, "input": info.input.spec, "tokens": info.input.length,
        "M": info.window, "schemes": ", ".join(info.shown), "made": str(info.provenance.created)[:16].replace("T", " "),
        "size": words.size(size_of(options.runs, name)),
        "from": "example" if is_example(options.runs, name) else "yours",
    }  # fmt: skip


def _broken(options: Options, name: str, said: str) -> None:
    text, button = st.columns([5, 1], vertical_alignment="center")
    text.error(said, icon=":material/error:")
    if not is_example(options.runs, name) and button.button("Delete", key=f"delete broken {name}", width="stretch"):
        _confirm(options, name)


def verdicts_csv(found: Records[Verdict]) -> str:
    """Verdicts as CSV with a header; an empty cell is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[one.name for one in fields(Verdict)])
    writer.writeheader()
    writer.writerows(found.to_json())
    return text.getvalue()


def _html(run: Run) -> str:
    """The run's figure as one file that needs no network."""
    from probe.figures.thresholds import threshold_figure

    return str(threshold_figure(run).to_html(include_plotlyjs=True))


def _svg(run: Run) -> str:
    """The likelihood as SVG, for a paper."""
    from probe.figures.run import likelihood_svg

    return likelihood_svg(run, list(run.info.shown))


def _export(run: Run) -> None:
    info, name = run.info, run.path.name
    st.subheader("Take it elsewhere", anchor="export")
    first, second, third = st.columns(3)
    # Made when the button is pressed: a run may hold thousands of rows, and the figure's file its own copy of plotly.
    first.download_button(
        "Verdicts (CSV)",
        lambda: verdicts_csv(Records(verdicts(run, info.detector, settings_of(info), info.shown))),
        f"{name}.csv", "text/csv", key="csv", on_click="ignore", icon=":material/download:", width="stretch",
        help="Every layer and dimension of this run under every scheme shown.",
    )  # fmt: skip
    second.download_button(
        "Figure (HTML)", lambda: _html(run), f"{name}.html", "text/html", key="html", on_click="ignore",
        icon=":material/download:", width="stretch", help="One file that needs no network.",
    )  # fmt: skip
    third.download_button(
        "Likelihood (SVG)", lambda: _svg(run), f"{name}.svg", "image/svg+xml", key="svg", on_click="ignore",
        icon=":material/download:", width="stretch", help="For a paper. Every chart here has a camera for PNG.",
    )  # fmt: skip
    st.caption("The command that repeats it, and the Python:")
    st.code(command(info), language="bash", wrap_lines=True)
    st.code(python(info), language="python", wrap_lines=True)


def _change(options: Options, run: Run) -> None:
    name = run.path.name
    st.subheader("Rename or delete", anchor="change")
    if is_example(options.runs, name):
        st.caption("Examples come with the dashboard and stay as they are.")
        return
    with st.form("rename", border=False):
        left, right = st.columns([3, 1], vertical_alignment="bottom")
        to = left.text_input("New name", name, key=f"rename {name}", max_chars=100)
        pressed = right.form_submit_button("Rename", width="stretch")
    if pressed and to != name:
        rename(options.runs, name, to.strip())
        st.session_state["go_to"] = to.strip()
        st.session_state["told"] = f"{name} is now {to.strip()}."
        st.rerun()
    if st.button("Delete this run", icon=":material/delete:", key="delete"):
        _confirm(options, name)


@st.dialog("Delete a run?")  # type: ignore[untyped-decorator]
def _confirm(options: Options, name: str) -> None:
    st.markdown(f"{words.literal(name)} takes {words.size(size_of(options.runs, name))}. It cannot be brought back.")
    yes, no = st.columns(2)
    if yes.button("Delete it", type="primary", width="stretch", key="delete_yes"):
        delete(options.runs, name)
        st.session_state["told"] = f"{name} is deleted."
        st.rerun()
    if no.button("Keep it", width="stretch", key="delete_no"):
        st.rerun()


def _compare(options: Options, run: Run) -> None:
    st.subheader("Compare with another run", anchor="compare")
    others = [name for name in run_names(options.runs) if name != run.path.name]
    if not others:
        st.caption("There is only this one.")
        return
    left, right = st.columns(2, gap="medium")
    keep("other", others)
    other = open_run(options.runs, left.selectbox("Other run", others, key="other"))
    common = [scheme for scheme in run.info.shown if scheme in other.info.shown]
    if not common:
        st.info("They have no scheme in common.")
        return
    keep("over", common, ORIGIN)
    scheme = right.selectbox("Scheme", common, key="over", help="Of both runs.")
    pair = (run, other)
    lines = {
        f"{one.path.name}": smooth_nll(one.nll[scheme], settings_of(one.info).run_at(one.info.window))
        for one in pair if not pd.isna(one.nll[scheme][1:]).all()
    }  # fmt: skip
    if lines:
        panel = Panel(
            f"Negative log-likelihood under {scheme}, smoothed", "nats", lines, dict.fromkeys(lines), {}, 260, {}
        )
        longest = max(len(values) for values in lines.values())
        chart(course([panel], run.info.window, longest, look()), "compare", f"Likelihood of two runs under {scheme}")
    else:
        st.caption("Neither model has a vocabulary head, so there is no likelihood to compare.")
    rows = []
    for one in pair:
        found = answers(one.info, verdicts(one, one.info.detector, settings_of(one.info), [scheme]))
        rows.append({"run": one.path.name, "M": one.info.window, "tokens": one.info.input.length,
                     "input": one.info.input.spec, "verdict": found[0].head, "why": found[0].more})  # fmt: skip
    st.dataframe(rows, hide_index=True, key="compared")
    if run.info.window != other.info.window:
        st.caption("M in the chart is that of the first run.")
