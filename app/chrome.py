"""What pages share above their own content: which run, its facts, a new run, and the job in progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import jobs, new_run, words
from app.figures import partial_figure
from app.look import chart, look
from app.options import Options
from app.runs import Stored, is_example, open_run, run_names
from probe.errors import ProbeError
from probe.recording.folder import Run
from probe.recording.info import RunInfo


def keep(key: str, choices: Sequence[Any], default: Any = None) -> None:
    """Forget a choice that this run does not have; one that it has survives a change of run."""
    if st.session_state.get(key) not in choices and choices:
        st.session_state[key] = choices[0] if default is None or default not in choices else default


def title(text: str, said: str) -> None:
    """The page's name and the question that it answers."""
    st.html(
        f'<div style="display:flex;flex-wrap:wrap;gap:.3rem .9rem;align-items:baseline">'
        f'<h1 style="font-size:1.6rem;margin:0;padding:0">{text}</h1><span style="opacity:.75">{said}</span></div>'
    )


def choose_run(options: Options) -> Run | None:
    """The row with the run, its facts and a new run; None where there is no run to choose.

    Raises:
        ProbeError: the chosen run cannot be read; the row is drawn all the same.
    """
    _take_finished(options)
    names = run_names(options.runs)
    # Chosen by what was drawn after the widget, which cannot be set any more then.
    wanted = st.session_state.pop("go_to", None)
    if wanted in names:
        st.session_state["run"] = wanted
    missing = _asked_for(names)
    keep("run", names)
    left, facts, new = st.columns([6, 1.4, 1.4], vertical_alignment="bottom")
    with new:
        if st.button("New run", type="primary", icon=":material/add:", width="stretch", key="new"):
            new_run.dialog(options)
    if not names:
        return None
    with left:
        name: str = st.selectbox(
            "Run", names, key="run", persist_state="session",
            format_func=lambda one: f"{one} (example)" if is_example(options.runs, one) else one,
            help="Run folders in the runs folder, newest first, then the examples that come with the dashboard.",
        )  # fmt: skip
    st.query_params["run"] = name  # always: a run that is made later must not change what an address shows
    if missing is not None:
        st.error(f"There is no run {words.literal(missing)} here; this is {words.literal(name)}.",
                 icon=":material/error:")  # fmt: skip
    run = open_run(options.runs, name)
    with facts, st.popover("Settings", icon=":material/info:", width="stretch"):
        _facts(run.info)
    return run


def _asked_for(names: Sequence[str]) -> str | None:
    """Take the run that the address names; one that is not here is given back, to be told."""
    asked: str | None = st.query_params.get("run")
    if asked is None or "run" in st.session_state:
        return None
    if asked in names:
        st.session_state["run"] = asked
        return None
    return asked


def _take_finished(options: Options) -> None:
    """Select the run that a job of this session made."""
    watched: str | None = st.session_state.get("watched")
    if watched is None:
        return
    for job in jobs.jobs(options.runs):
        if job.name == watched and job.state == "done":
            del st.session_state["watched"]
            if job.out.suffix != ".json":
                st.session_state["run"] = job.out.name


def _facts(info: RunInfo) -> None:
    source, used, made = info.input, info.detection, info.provenance
    samples = f", mean of {source.samples}" if source.samples > 1 else ""
    commit = (made.git_commit or "")[:10]
    changed = " with changes" if made.git_dirty else ""
    judged = (
        f"{info.detector} · burn-in {used.burn_in_used} · run length {used.run_length_used} · margin {used.margin:g}"
    )
    facts = {
        "Model": f"{words.model_name(info.model)} · {info.parameters / 1e6:.2f}M parameters",
        "Window M": f"{words.count(info.window)} tokens",
        "Input": f"{words.literal(source.spec)} · {words.count(source.length)} tokens{samples}",
        "Recorded": f"{len(info.layers)} layers × {len(info.dims)} dimensions of {', '.join(info.sites)}",
        "Judged with": judged,
        "Computed": f"{info.dtype} on {info.device}, {str(made.created)[:16].replace('T', ' ')} UTC",
        "Versions": " · ".join(
            f"{name} {made.versions.get(name) or '?'}" for name in ("weavescope", "torch", "transformers")
        ),
        "Commit": words.literal(commit) + changed if commit else "not a checkout",
    }
    for name, value in facts.items():
        st.markdown(f"**{name}**  \n{value}")


def pick(found: Sequence[Stored], key: str) -> Stored:
    """One of several results, the reader's choice; asks only where there is more than one."""
    named = {one.name + (" (example)" if one.example else ""): one for one in found}
    if len(named) == 1:
        return next(iter(named.values()))
    keep(key, list(named))
    return named[st.selectbox("Result", list(named), key=key)]


def empty(options: Options) -> None:
    """What to do where there is no run at all."""
    st.info(
        f"There are no runs in {words.literal(options.runs.name)} yet. Press **New run**, or in a terminal:",
        icon=":material/lightbulb:",
    )
    st.code("probe run --layer all --dim 0-19", language="bash")


def _signature(known: Sequence[jobs.Job]) -> tuple[tuple[str, str], ...]:
    return tuple((job.name, job.state) for job in known)


def banner(options: Options) -> None:
    """The job in progress, or one that failed, above every page; every tab sees it."""
    st.session_state["jobs_seen"] = _signature(jobs.jobs(options.runs))
    _watch(options)


@st.fragment(run_every=1.0)  # type: ignore[untyped-decorator]
def _watch(options: Options) -> None:
    known = jobs.jobs(options.runs)
    seen, now = st.session_state.get("jobs_seen", ()), _signature(known)
    if seen != now:
        before = dict(seen)
        for name, state in now:
            if state == "done" and before.get(name) == "running":
                st.session_state["told"] = f"{name} is done."
        st.session_state["jobs_seen"] = now
        st.rerun(scope="app")
    for job in known:
        if job.state == "running":
            _running(job)
        elif job.state == "failed":
            _failed(job, options)


def _running(job: jobs.Job) -> None:
    share, line = job.progress
    with st.container(border=True):
        bar, button = st.columns([6, 1], vertical_alignment="center")
        bar.progress(share, text=f"**{words.plain_markdown(job.title)}**: {words.literal(line)}, {jobs.remaining(job)}")
        stopping = job.stopped
        button.button(
            "Stopping …" if stopping else "Stop", on_click=job.stop, disabled=stopping, width="stretch",
            key=f"stop {job.name}",
        )  # fmt: skip
        _so_far(job)


def _so_far(job: jobs.Job) -> None:
    """The likelihood under the schemes that are done."""
    kept = job.unfinished
    if kept is None:
        return
    figure = partial_figure(kept, look())
    if figure is None:
        return
    chart(figure, f"partial {job.name}", "Likelihood by position of the schemes that are done")


def _failed(job: jobs.Job, options: Options) -> None:
    why = words.plain_markdown(job.why())
    with st.container(border=True):
        text, again, away = st.columns([5, 1, 1], vertical_alignment="center")
        show = text.info if job.stopped else text.error
        kept = job.unfinished
        more = " What is done is kept." if kept is not None else ""
        show(f"**{words.plain_markdown(job.title)}** made no result: {why}.{more}")
        if kept is not None and again.button("Go on", key=f"resume {job.name}", width="stretch"):
            try:
                st.session_state["watched"] = jobs.resume(options.runs, job).name
            except ProbeError as error:
                st.session_state["told"] = words.plain(error)
            st.rerun(scope="app")
        away.button("Dismiss", on_click=job.dismiss, key=f"dismiss {job.name}", width="stretch")


def toast() -> None:
    """What happened since the last redraw, once."""
    told = st.session_state.pop("told", None)
    if told:
        st.toast(words.plain_markdown(told), icon=":material/check:")
