"""The sidebar of every page that reads runs: which run, its facts, and a new one."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import jobs, words
from app.options import Options
from app.runs import open_run, run_names
from probe.defaults import OTHER_SCHEMES, ROPE_SCHEMES
from probe.errors import ProbeError
from probe.models.embedded import MODELS, EmbeddedModel
from probe.models.fetched import FETCHED, FetchedModel
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.recording.sites import SITES
from probe.schemes.presets import PRESETS

INPUTS = {"a repeated word": "word", "a repeated token": "token", "held-out text": "heldout"}
"""Inputs that the page offers: none of them names a file."""


def trained_models(options: Options) -> list[str]:
    """Models that the form offers: those named at launch, then the embedded and fetched ones that are here."""
    rows: list[EmbeddedModel | FetchedModel] = [*MODELS.values(), *FETCHED.values()]
    here = [row.name for row in rows if row.here]
    return list(dict.fromkeys([*options.models, *here]))


def sidebar(options: Options) -> Run | None:
    """Draw the sidebar; the chosen run, or None where there is none to choose.

    Raises:
        ProbeError: the chosen run cannot be read; the sidebar is drawn all the same.
    """
    _settle()
    names = run_names(options.runs)
    with st.sidebar:
        name = _choose(options.runs, names)
        facts = st.container()
        _new_run(options, expanded=not names)
    _show_job()
    if name is None:
        return None
    run = open_run(options.runs, name)
    with facts:
        _facts(run.info)
    return run


def _settle() -> None:
    """Select the run that this session was waiting for, or keep its error to be shown."""
    job: jobs.Job | None = st.session_state.get("job")
    if job is None or not job.ended.is_set():
        return
    del st.session_state["job"]
    if job.run is not None:
        st.session_state["run"] = job.run.path.name
    st.session_state["job_error"] = job.error


def _choose(root: Path, names: list[str]) -> str | None:
    asked = st.query_params.get("run")
    if asked is not None and asked not in names:
        # Only to say why not: a name that is not listed is never opened for reading.
        try:
            open_run(root, asked)
        except ProbeError as error:
            st.error(words.plain(error))
        del st.query_params["run"]
    elif asked is not None and "run" not in st.session_state:
        st.session_state["run"] = asked
    if not names:
        return None
    if st.session_state.get("run") not in names:
        st.session_state["run"] = names[0]
    name: str = st.selectbox("Run", names, key="run", help="Run folders in the runs root, newest first.")
    st.query_params["run"] = name
    return name


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
        "Window M": f"{info.window} tokens",
        "Input": f"{words.literal(source.spec)} · {source.length} tokens{samples}",
        "Judged with": judged,
        "Computed": f"{info.dtype} on {info.device}, {str(made.created)[:16].replace('T', ' ')} UTC",
        "Versions": " · ".join(
            f"{name} {made.versions.get(name) or '?'}" for name in ("weavescope", "torch", "transformers")
        ),
        "Commit": words.literal(commit) + changed if commit else "not a checkout",
    }
    for name, value in facts.items():
        st.caption(f"**{name}**  \n{value}")


def _new_run(options: Options, *, expanded: bool) -> None:
    models = trained_models(options)
    with st.expander("New run", icon=":material/play_circle:", expanded=expanded):
        if not models:
            st.info(
                "No model to run yet. Train the embedded one with `probe train rope`, or launch with "
                "your own: `streamlit run app/main.py -- --model FOLDER`."
            )
            return
        # Outside the form, so that choosing a model can change what the form suggests.
        model = st.selectbox(
            "Model", models, key="new_model", format_func=lambda name: Path(name).name or name, on_change=_suggest
        )
        with st.form("new_run", border=False):
            request = _form(model)
            pressed = st.form_submit_button("Run", type="primary", disabled=jobs.running() is not None, width="stretch")
    if pressed:
        _start(request, options.runs)


def _suggested(model: str) -> list[str]:
    """Schemes that fit a model: an embedded one without a rotary has no frequencies to change."""
    other = model in MODELS and MODELS[model].positions != "RoPE"
    return (OTHER_SCHEMES if other else ROPE_SCHEMES).split(",")


def _suggest() -> None:
    st.session_state["new_schemes"] = _suggested(st.session_state["new_model"])


def _form(model: str) -> jobs.Request:
    # The default goes in by the state, which `_suggest` writes too: a widget with both a default and a state warns.
    st.session_state.setdefault("new_schemes", _suggested(model))
    chosen = st.multiselect(
        "Schemes", list(PRESETS), key="new_schemes",
        help="`origin`, the model as trained, is always run: thresholds are calibrated on it.",
    )  # fmt: skip
    more = st.text_input(
        "Further schemes",
        key="new_more",
        placeholder="rerope(N=64), stair+logn",
        help="With parameters, separated by commas.",
    )
    kind = st.selectbox("Input", list(INPUTS), key="new_input")
    text = st.text_input("Word or token id", "hello", key="new_text", help="Not used for held-out text.")
    length = st.number_input(
        "Length", min_value=2, max_value=jobs.MAX_LENGTH, value=None, step=1, key="new_length",
        placeholder="four windows, two of long ones", help=f"Tokens, at most {jobs.MAX_LENGTH}.",
    )  # fmt: skip
    samples = st.number_input(
        "Samples",
        min_value=1,
        max_value=jobs.MAX_SAMPLES,
        value=1,
        step=1,
        key="new_samples",
        help="Sequences to average over; only for held-out text.",
    )
    layers = st.text_input("Layers", "all", key="new_layers", help="1 is the first: `1,2` or `1-4` or `all`.")
    dims = st.text_input("Dims", "0-19", key="new_dims", help="Hidden dimensions, from 0: `1,6` or `0-19` or `all`.")
    sites = st.multiselect("Sites", list(SITES), default=["resid"], key="new_sites", help=words.SITE)
    return jobs.Request(
        model=model, layers=layers, dims=dims, sites=tuple(sites),
        schemes=",".join(filter(None, [*chosen, more.strip()])),
        input=f"{INPUTS[kind]}:{text.strip()}" if INPUTS[kind] != "heldout" else "heldout",
        length=None if length is None else int(length), samples=int(samples),
    )  # fmt: skip


def _start(request: jobs.Request, root: Path) -> None:
    st.session_state["job_error"] = None
    try:
        st.session_state["job"] = jobs.start(request, root)
    except ProbeError as error:
        st.session_state["job_error"] = words.plain(error)
    st.rerun()


def _show_job() -> None:
    """Progress of the run that goes on, or why the last one of this session gave nothing."""
    if jobs.running() is not None or st.session_state.get("job") is not None:
        _progress()
    elif st.session_state.get("job_error"):
        st.error(st.session_state["job_error"], icon=":material/error:")


@st.fragment(run_every=0.5)  # type: ignore[untyped-decorator]
def _progress() -> None:
    job = jobs.running()
    if job is None:
        st.rerun()
        return
    bar, button = st.columns([6, 1], vertical_alignment="bottom")
    bar.progress(job.share, text=f"Running {words.model_name(job.request.model)}: {words.literal(job.line)}")
    button.button("Stop", on_click=job.stop, disabled=job.stopping, width="stretch")
