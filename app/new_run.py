"""The dialog that starts a run: the few choices that matter, the rest folded, and what it will take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from app import jobs, words
from app.estimate import ModelFacts, estimate, facts
from app.options import Options
from app.runs import infos
from probe.defaults import OTHER_SCHEMES, ROPE_SCHEMES, usual_length
from probe.errors import FieldError, ProbeError
from probe.models.embedded import MODELS, EmbeddedModel
from probe.models.fetched import FETCHED, FetchedModel
from probe.recording.info import RunInfo
from probe.schemes import ORIGIN, resolve_schemes
from probe.schemes.presets import PRESETS
from probe.text import parse_numbers

MAX_LENGTH = 65_536
"""Tokens of a run started from the page; the command line takes more."""

MAX_SAMPLES = 64
MAX_VALUES = 200_000_000
"""Recorded numbers (schemes x sites x layers x dims x positions) of a run started from the page: 800 MB on disk."""

INPUTS = {
    "A repeated word": "word", "Shipped documents": "documents", "Held-out text": "heldout",
    "A repeated token": "token",
}  # fmt: skip
"""Inputs that the page offers: none of them names a file."""

HINTS = {
    "word": "Nothing but position varies; the paper's input. A chat model may not expect it.",
    "documents": "Long public-domain texts: what a pretrained model can be judged on.",
    "heldout": "Text that the embedded models were not trained on; several samples average out what it says.",
    "token": "For models without a tokenizer.",
}


@dataclass(frozen=True)
class Request:
    """What the dialog asks: layers and dims as text ("1,2", "0-19", "all"), length in tokens, None for the usual."""

    model: str
    layers: str = "all"
    dims: str = "0-19"
    sites: tuple[str, ...] = ("resid",)
    schemes: str = "origin,dynamic-ntk,rerope"
    input: str = "word:hello"
    length: int | None = None
    samples: int = 1

    def arguments(self) -> list[str]:
        """The same as arguments of `probe`.

        Raises:
            ProbeError: a number out of range, or a scheme that does not parse.
        """
        if self.length is not None and not 2 <= self.length <= MAX_LENGTH:
            raise FieldError(
                "length", f"2 to {MAX_LENGTH} tokens", self.length, hint="longer ones run with 'probe run'"
            )
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise FieldError("samples", f"1 to {MAX_SAMPLES}", self.samples)
        if not self.sites:
            raise FieldError("sites", "at least one", "none")
        found = facts(self.model)
        resolve_schemes(self.schemes, (found and found.window) or 4096)
        values = self.values(found)
        if values is not None and values > MAX_VALUES:
            raise ProbeError(f"expected at most {MAX_VALUES:,} recorded numbers, got {values:,}; take fewer dims")
        length = [] if self.length is None else ["--length", str(self.length)]
        samples = [] if self.samples == 1 else ["--samples", str(self.samples)]
        return [
            "run", "--model", self.model, "--scheme", self.schemes, "--input", self.input, *length, *samples,
            "--layer", self.layers, "--dim", self.dims, "--site", ",".join(self.sites),
        ]  # fmt: skip

    def tokens(self, found: ModelFacts | None) -> int | None:
        """Tokens that it will read; None where nobody can know before loading the model."""
        if self.length is not None:
            return self.length
        return usual_length(found.window) if found is not None and found.window else None

    def specs(self, window: int) -> list[str]:
        """The schemes that will run: `origin` always does."""
        return list(dict.fromkeys([ORIGIN, *(one.spec for one in resolve_schemes(self.schemes, window))]))

    def a_position(self, found: ModelFacts) -> int:
        """Numbers recorded per position and scheme.

        Raises:
            ProbeError: layers or dims that do not parse, or that the model does not have.
        """
        layers = _within(self.layers, "layers", range(1, found.layers + 1))
        dims = _within(self.dims, "dims", range(found.hidden))
        return len(self.sites) * len(layers) * len(dims)

    def values(self, found: ModelFacts | None) -> int | None:
        """Numbers that the run records; None where nobody can know."""
        length = self.tokens(found)
        if found is None or length is None or not (found.layers and found.hidden):
            return None
        return len(self.specs(found.window or 4096)) * length * self.a_position(found)


def _within(text: str, field: str, known: range) -> tuple[int, ...]:
    """Numbers that the model has.

    Raises:
        ProbeError: others, or none at all.
    """
    numbers = parse_numbers(text, field, known)
    for number in numbers:
        if number not in known:
            raise FieldError(field, f"{known.start} to {known.stop - 1}", number)
    return numbers


def trained_models(options: Options) -> list[str]:
    """Models on offer: those named at launch, then the embedded and fetched ones that are here."""
    rows: list[EmbeddedModel | FetchedModel] = [*MODELS.values(), *FETCHED.values()]
    here = [row.name for row in rows if row.here]
    return list(dict.fromkeys([*options.models, *here]))


def _suggested(model: str) -> list[str]:
    """Schemes that fit a model: one without a rotary has no frequencies to change."""
    found = facts(model)
    return (ROPE_SCHEMES if found is None or found.rotates else OTHER_SCHEMES).split(",")


def _suggest() -> None:
    model = st.session_state["new_model"]
    st.session_state["new_schemes"] = _suggested(model)
    st.session_state["new_input"] = _usual_input(model)


def _usual_input(model: str) -> str:
    """A pretrained model is judged on text, the embedded ones on the paper's input."""
    return "A repeated word" if model in MODELS else "Shipped documents"


@st.dialog("New run", width="large")  # type: ignore[untyped-decorator]
def dialog(options: Options) -> None:
    """The dialog."""
    models = trained_models(options)
    if not models:
        st.info(
            "No model to run yet. Fetch a pretrained one with `probe models fetch smollm2`, or launch with "
            "your own: `streamlit run app/main.py -- --model FOLDER`."
        )
        return
    request = _form(models)
    try:
        arguments = request.arguments()
        _foretell(options, request)
    except ProbeError as error:
        st.error(words.plain(error), icon=":material/error:")
        arguments = []
    busy = jobs.running(options.runs)
    if busy is not None:
        st.info(f"{words.plain_markdown(busy.title)} is in progress; wait for it, or stop it.")
    if st.button("Run", type="primary", disabled=not arguments or busy is not None, width="stretch", key="start"):
        _start(options, request, arguments)


def _form(models: list[str]) -> Request:
    left, right = st.columns(2)
    model = left.selectbox(
        "Model", models, key="new_model", format_func=lambda name: Path(name).name or name, on_change=_suggest,
        help="Those named at launch, the embedded ones, and pretrained ones that are fetched.",
    )  # fmt: skip
    length = right.number_input(
        "Length", min_value=2, max_value=MAX_LENGTH, value=None, step=1, key="new_length",
        placeholder=_usual(model), help=f"Tokens, at most {MAX_LENGTH:,}.",
    )  # fmt: skip
    # The defaults go in by the state, which `_suggest` writes too: a widget with both a default and a state warns.
    st.session_state.setdefault("new_schemes", _suggested(model))
    st.session_state.setdefault("new_input", _usual_input(model))
    schemes = st.multiselect(
        "Schemes", list(PRESETS), key="new_schemes", accept_new_options=True,
        help="`origin`, the model as trained, is always run: thresholds are calibrated on it. Type to add one with "
        "parameters: `rerope(N=64)`, `stair+logn`.",
    )  # fmt: skip
    kind = st.segmented_control("Input", list(INPUTS), key="new_input", required=True)
    kind = INPUTS[kind or "A repeated word"]
    st.caption(HINTS[kind])
    text = ""
    if kind in ("word", "token"):
        text = st.text_input("Word" if kind == "word" else "Token id", "hello" if kind == "word" else "5",
                             key=f"new_text {kind}", max_chars=200)  # fmt: skip
    with st.expander("Samples, layers, dimensions, sites", icon=":material/tune:"):
        samples, layers, dims, sites = _rest(kind)
    return Request(
        model=model, layers=layers, dims=dims, sites=tuple(sites), schemes=",".join(schemes) or ORIGIN,
        input=f"{kind}:{text.strip()}" if text else kind, length=None if length is None else int(length),
        samples=samples,
    )  # fmt: skip


def _usual(model: str) -> str:
    found = facts(model)
    return "usual for the model" if found is None or not found.window else f"{usual_length(found.window):,}"


def _rest(kind: str) -> tuple[int, str, str, list[str]]:
    first, second, third = st.columns(3)
    samples = first.number_input(
        "Samples", 1, MAX_SAMPLES, 1, 1, key="new_samples", disabled=kind in ("word", "token"),
        help="Sequences to average over, of text.",
    )  # fmt: skip
    layers = second.text_input("Layers", "all", key="new_layers", help="1 is the first: `1,2` or `1-4` or `all`.")
    dims = third.text_input(
        "Dimensions", "0-19", key="new_dims", help="Of the hidden state, from 0: `1,6` or `0-19` or `all`."
    )
    sites = st.multiselect(
        "Sites", list(words.SITES), default=["resid"], key="new_sites", accept_new_options=True,
        help="Where values are recorded: " + "; ".join(f"`{name}` {said}" for name, said in words.SITES.items()) + ".",
    )  # fmt: skip
    return (int(samples) if kind not in ("word", "token") else 1), layers, dims, sites


def _earlier(options: Options) -> list[RunInfo]:
    return [info for info in infos(options.runs, 40).values() if isinstance(info, RunInfo)]


def _foretell(options: Options, request: Request) -> None:
    found = facts(request.model)
    length = request.tokens(found)
    if found is None or length is None or not (found.layers and found.hidden and found.weights):
        st.caption("Time and memory: cannot be told before the model is loaded; its files are not in a local folder.")
        return
    specs = request.specs(found.window or 4096)
    guess = estimate(
        found, request.model, specs, length, request.samples, request.a_position(found), _earlier(options)
    )  # fmt: skip
    how = "by earlier runs of this model" if guess.measured else "a rough count, no run of this model is here yet"
    st.markdown(
        f"**{words.count(length)} tokens, {len(specs)} schemes**: about **{words.duration(guess.seconds)}** ({how}), "
        f"up to {words.size(guess.memory)} of memory, {words.size(guess.disk)} on disk."
    )


def _start(options: Options, request: Request, arguments: list[str]) -> None:
    model = Path(request.model).name or request.model
    try:
        job = jobs.start(options.runs, f"Run of {model}", arguments, model)
    except ProbeError as error:
        st.error(words.plain(error), icon=":material/error:")
        return
    st.session_state["watched"] = job.name
    st.rerun()
