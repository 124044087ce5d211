"""Does it still work? Tasks by length, how far each scheme goes, and what it costs, from result tables."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import streamlit as st

from app import jobs, words
from app.chrome import keep, pick, title
from app.look import chart, look
from app.new_run import trained_models
from app.options import Options
from app.runs import Stored, results
from app.scores import accuracy, cost, depths, effective_context, likelihood, schemes_of, tuned
from probe.errors import ProbeError
from probe.schemes import resolve_schemes
from probe.tasks.context import is_share
from probe.text import lengths_at, parse_lengths

TASKS = {"Pass key": "passkey", "Likelihood": "nll"}


def render(options: Options) -> None:
    """Draw the page.

    Raises:
        ProbeError: what was asked to be measured does not fit.
    """
    title("Does it still work?", "How far does this model really go, with which scheme, at what cost?")
    found = results(options.runs, "eval")
    models = list(dict.fromkeys(one.model for one in [*found, *results(options.runs, "bench")]))
    if not models:
        st.info("No result is here yet. Measure one below, or: `probe eval --out runs/eval.json`.")
        _measure(options)
        return
    keep("model", models)
    model = st.selectbox("Model", models, key="model", bind="query-params", help="Of which there are results.")
    mine = [one for one in found if one.model == model]
    tasks = {str(one.value["settings"].get("task")) for one in mine}
    for task in sorted(tasks, key=lambda task: (task == "nll", task != "passkey", task)):
        of_task = [one for one in mine if one.value["settings"].get("task") == task]
        if is_share(of_task[0].value["rows"]):
            _answers(of_task, task)
        else:
            _nats(of_task)
    _tuned([one for one in results(options.runs, "tune") if one.model == model], model)
    _costs([one for one in results(options.runs, "bench") if one.model == model], model)
    _measure(options)


def _chosen(found: list[Stored], key: str) -> tuple[dict[str, Any], list[str]]:
    """A result and the schemes of it that are shown."""
    named = {one.name + (" (example)" if one.example else ""): one for one in found}
    left, right = st.columns([1, 2], gap="medium")
    keep(key, list(named))
    name = left.selectbox("Result", list(named), key=key)
    value = named[name].value
    schemes = schemes_of(value["rows"])
    shown = right.pills(
        "Schemes", schemes, selection_mode="multi", default=schemes[:8], key=f"{key} schemes {name}",
    )  # fmt: skip
    if not value.get("complete", True):
        st.caption("This measurement was stopped before its last row.")
    return value, [scheme for scheme in schemes if scheme in (shown or [])]


def _answers(found: list[Stored], task: str) -> None:
    name = {one: title for title, one in TASKS.items()}.get(task, task)
    st.subheader(name, anchor=task)
    value, shown = _chosen(found, task)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        chart(accuracy(value, shown, look()), f"{task} accuracy", f"Share of right answers, {name}, by length")
        samples = value["settings"].get("samples")
        what = "A five-digit key hidden in filler" if task == "passkey" else words.literal(task)
        st.caption(f"{what}; {samples} samples a length, bars are 95% intervals (Wilson).")
    with right:
        _context(value, "answers at least half as often as the trained model inside its window", task)
    maps = [(scheme, figure) for scheme in shown if (figure := depths(value["rows"], scheme, look())) is not None]
    if maps:
        columns = st.columns(min(3, len(maps)), gap="medium")
        for number, (scheme, figure) in enumerate(maps):
            with columns[number % len(columns)]:
                chart(figure, f"depth {task} {scheme}", f"Right answers under {scheme} by depth and length")
    elif shown:
        st.caption("By depth: this result has no depths, or did not keep its samples.")


def _nats(found: list[Stored]) -> None:
    st.subheader("Likelihood", anchor="likelihood")
    value, shown = _chosen(found, "nll")
    left, right = st.columns([3, 2], gap="medium")
    with left:
        chart(likelihood(value, shown, look()), "nll chart", "Nats per token by length, under each scheme")
        st.caption("Mean over the last tokens of every window; bars are 95% intervals over windows.")
    with right:
        _context(value, "stays within 0.2 nats of the trained model inside its window", "nll")


def _context(value: dict[str, Any], works: str, key: str) -> None:
    st.markdown(
        f"**Effective context**: the longest measured length up to which a scheme {works}, at every one measured."
    )
    rows = effective_context(value)
    st.dataframe(rows, hide_index=True, key=f"context {key}", height=min(300, 40 + 36 * len(rows)))


def _tuned(found: list[Stored], model: str) -> None:
    st.subheader("What to use", anchor="tune")
    if not found:
        st.caption(f"Not asked of {words.literal(model)} here; this does it:")
        st.code(f"probe tune --model {shlex.quote(model)} --out runs/tune.json", language="bash")
        return
    value = pick(found, "tune").value
    settings, proposed = value["settings"], value["settings"]["proposed"]
    length = words.count(int(settings["length"]))
    if proposed is None:
        st.info(f"For {length} tokens nothing was checked, so nothing is proposed.")
    else:
        st.markdown(f"For **{length} tokens**: {words.literal(proposed)}")
    st.dataframe(tuned(value["rows"]), hide_index=True, key="tuned", height=320)
    st.caption(
        "Predicted from short prompts inside the window, the key moved away or the filler counted as often as at that "
        "length; found: checked at that length."
    )


def _costs(found: list[Stored], model: str) -> None:
    st.subheader("Time and memory", anchor="cost")
    if not found:
        st.caption(f"Not measured for {words.literal(model)} here; this does it:")
        st.code(f"probe bench prefill --model {shlex.quote(model)} --out runs/bench.json", language="bash")
        return
    value, shown = _chosen(found, "bench")
    figure = cost(value, shown, look())
    if figure is None:
        st.info("This benchmark has neither times nor bytes.")
        return
    chart(figure, "cost chart", "Time or memory by length, under each scheme")
    st.caption(
        "Medians; bars from the fastest to the slowest repeat. `stock` is transformers' own SDPA on the same weights."
    )


def _measure(options: Options) -> None:
    models = trained_models(options)
    with st.expander("Measure", icon=":material/play_circle:"):
        if not models:
            st.info("No model to run yet. Launch with your own: `streamlit run app/main.py -- --model FOLDER`.")
            return
        with st.form("measure", border=False):
            first, second = st.columns(2)
            model = first.selectbox("Model", models, format_func=lambda name: Path(name).name or name)
            task = second.segmented_control("Task", list(TASKS), default="Pass key", required=True)
            schemes = st.text_input("Schemes", "origin,rerope,rerope+logn,mesa+logn", help="Separated by commas.")
            third, fourth = st.columns(2)
            lengths = third.text_input("Lengths", "", placeholder="M/4, M/2, M, 2M", help="`512,1024` or `M/2,M,2M`.")
            samples = fourth.number_input("Samples", 1, 500, 20, help="Per length.")
            pressed = st.form_submit_button("Measure", type="primary", disabled=jobs.running(options.runs) is not None)
        if pressed:
            _start(options, model, TASKS[task or "Pass key"], schemes, lengths, int(samples))


def _start(options: Options, model: str, task: str, schemes: str, lengths: str, samples: int) -> None:
    resolve_schemes(schemes, 4096)
    chosen = []
    if lengths.strip():
        numbers = lengths_at(4096, parse_lengths(lengths))
        if not numbers or max(numbers) > 65_536 or min(numbers) < 2:
            raise ProbeError("lengths: expected 2 to 65,536 tokens each; longer ones run with 'probe eval'")
        chosen = ["--lengths", lengths]
    name = Path(model).name or model
    arguments = ["eval", "--model", model, "--task", task, "--scheme", schemes, "--samples", str(samples), *chosen]
    st.session_state["watched"] = jobs.start(
        options.runs, f"{task} of {name}", arguments, f"{task}-{name}", file=True
    ).name  # fmt: skip
    st.rerun()
