"""What does a query see? Visibility and relative positions of any scheme, Mesa's split, and a real prompt."""

from __future__ import annotations

import hashlib
from pathlib import Path

import streamlit as st

from app import jobs, words
from app.chrome import keep, pick, title
from app.look import chart, look
from app.matrices import by_distance, continuations, cost, matrix
from app.new_run import trained_models
from app.options import Options
from app.runs import results
from probe.errors import ProbeError
from probe.figures.mesa import draw, share
from probe.figures.schemes import DRAWN
from probe.results import pipe_table
from probe.schemes import Scheme, make_scheme, parse_scheme, resolve_schemes
from probe.schemes.mesa import DEFAULT_STEP, split_of, step
from probe.schemes.scheme import Extent

MOST_TEXT = 1_000_000
"""Characters of a text that the page hands on."""

WINDOWS = tuple(2**n for n in range(4, 16))
"""Trained windows M on offer for Mesa's split, tokens."""

MOST_WINDOWS = 32
"""Longest prompt on offer, in windows."""

SLIDERS = {
    "F": ("F, chunk 0", "Tokens of chunk 0, which every chunk sees."),
    "L": ("L, last chunk", "Least tokens of the last chunk."),
    "N": ("N, exact distances", "Distances up to this are exact in the last chunk."),
    "E": ("E, keys a step", "Keys that share a step past N; 0 for the default at M, grown where the prompt needs it."),
}
"""Mesa's parameters on the page: label and explanation."""


def render(options: Options) -> None:
    """Draw the page."""
    title("What does a query see?", "Which keys, and at which relative positions, under any scheme.")
    matrix_tab, mesa_tab, prompt_tab = st.tabs(["Any scheme", "Mesa's split", "Your own text"], key="view")
    for tab, draw_it in ((matrix_tab, _matrix), (mesa_tab, _mesa), (prompt_tab, lambda: _prompt(options))):
        with tab:
            try:
                draw_it()
            except ProbeError as error:
                st.error(words.plain(error), icon=":material/error:")


def _matrix() -> None:
    left, middle, right = st.columns([3, 1, 1], gap="medium")
    spec = left.selectbox(
        "Scheme", list(DRAWN.values()), index=list(DRAWN.values()).index("rerope(N=8)"), accept_new_options=True,
        key="scheme", bind="query-params", help="Choose one, or type any: `stair(N=4,E=2)`, `star(B=8,L=4)+logn`.",
    )  # fmt: skip
    window = middle.slider("M", 4, 48, 16, key="m", bind="query-params", help=words.M)
    length = right.slider("T", 4, 64, 24, key="t", bind="query-params", help="Tokens of the input.")
    scheme = parse_scheme(spec or "origin", window)
    now = look()
    first, second = st.columns([1.15, 1], gap="medium")
    with first:
        chart(matrix(scheme, length, now), "matrix", f"Relative positions of {scheme.spec} for {length} tokens")
    with second:
        others = st.multiselect(
            "Beside it", ["origin", *[one for one in DRAWN.values() if one != scheme.spec]], default=["origin"],
            key="others", max_selections=5, accept_new_options=True,
            help="More schemes in the curves below.",
        )  # fmt: skip
        schemes = [scheme, *(one for one in _several(others, window) if one.spec != scheme.spec)]
        chart(by_distance(schemes, length, now), "distance", "Relative position over distance, for the last query")
        lengths = [window * 2**n for n in range(0, 9)]
        chart(cost(schemes, lengths, now), "cost", "Query-key pairs that a pass visits, over length")


def _several(texts: list[str], window: int) -> list[Scheme]:
    return [parse_scheme(text, window) for text in texts]


def _mesa() -> None:
    st.caption(
        "A middle chunk sees chunk 0 and itself; the last chunk, and every token after the prompt, sees every key by "
        "Stair PE. A new M sets the other sliders to its defaults."
    )
    window, length, parameters = _sliders()
    scheme, extent = make_scheme("mesa", window, **parameters), Extent(length, length, window)
    split = split_of(scheme.parameters, extent)
    if split is None:
        st.info(f"A prompt of {length} tokens is inside the window of {window}: the plain model, nothing is split.")
        return
    keys_a_step = step(scheme.parameters, extent)
    shown = {
        "Middle chunks": str(split.chunks),
        "C, tokens of each": str(split.C) if split.chunks else "no middle chunk",
        "Last chunk": str(length - split.last),
        "Causal pairs visited": f"{share(split):.1%}",
        "E, keys a step": str(keys_a_step),
        "Farthest distance": f"{scheme.weave_at(length)(length - 1, 0)} < M",
    }
    st.markdown(pipe_table(list(shown), [list(shown.values())], [True] * len(shown)))
    published = DEFAULT_STEP(window)
    if not parameters["E"] and keys_a_step > published:
        st.caption(f"E grew from {published} to {keys_a_step}, so that the last chunk stays inside the trained window.")
    try:
        st.image(draw(window, length, **parameters))
    except ProbeError as error:  # too many chunks to see: the numbers stand without a picture
        st.info(words.plain(error))


def _sliders() -> tuple[int, int, dict[str, int]]:
    """M, T, and Mesa's parameters."""
    cells = [column for _ in range(2) for column in st.columns(3, gap="large")]
    window = int(cells[0].select_slider("M, trained window", WINDOWS, 512, key="mesa_M", help=words.M))
    length = cells[1].slider(
        "T, prompt", 1, MOST_WINDOWS * window, 4 * window, key=f"mesa_T {window}", help="Tokens of the prompt."
    )
    defaults = make_scheme("mesa", window).parameters
    # The ends are outside the domain on purpose: the message says what the domain is.
    parameters = {
        name: cell.slider(label, 0, window, int(defaults[name]), key=f"mesa_{name} {window}", help=help)
        for cell, (name, (label, help)) in zip(cells[2:], SLIDERS.items(), strict=True)
    }
    return window, length, parameters


def _prompt(options: Options) -> None:
    models = trained_models(options)
    if not models:
        st.info("No model to run yet. Launch with your own: `streamlit run app/main.py -- --model FOLDER`.")
        return
    st.caption(
        "The whole prompt through chunked prefill and decoding: what is written next, the time, and the peak memory."
    )
    first, second, third = st.columns([2, 3, 1], gap="medium")
    keep("prompt_model", models)
    model = first.selectbox("Model", models, key="prompt_model", format_func=lambda name: Path(name).name or name)
    specs = second.multiselect(
        "Schemes", ["origin", "mesa", "mesa+logn", "rerope", "rerope+logn", "stair", "streaming-llm"],
        default=["origin", "mesa"], key="prompt_schemes", accept_new_options=True, max_selections=6,
        help="Each is a pass of its own; type one with parameters.",
    )  # fmt: skip
    new = third.number_input("New tokens", 1, 128, 20, key="prompt_new", help="Written greedily, until the text ends.")
    given = st.file_uploader("A text file", type=["txt", "md", "py", "tex", "csv", "json"], key="prompt_file",
                             help="UTF-8, up to a million characters.")  # fmt: skip
    text = st.text_area("or paste a text", key="prompt_text", height=140, max_chars=MOST_TEXT,
                        placeholder="Longer than the model's window, for something to extrapolate.")  # fmt: skip
    if given is not None:
        text = _decoded(given.getvalue())
    busy = jobs.running(options.runs) is not None
    ready = bool(text.strip()) and bool(specs)
    if st.button("Read it", type="primary", disabled=busy or not ready, key="prompt_go"):
        _read(options, model, specs, text, int(new))
    _written(options)


def _decoded(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProbeError(f"text: expected UTF-8, got something else at byte {error.start}; convert it first") from None
    if len(text) > MOST_TEXT:
        raise ProbeError(f"text: expected at most {MOST_TEXT:,} characters, got {len(text):,}; cut it")
    return text


def _read(options: Options, model: str, specs: list[str], text: str, new: int) -> None:
    resolve_schemes(",".join(specs), 4096)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    folder = options.runs / ".jobs" / "texts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{digest}.txt").write_text(text, encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        raise ProbeError(f"the text cannot be kept in the runs folder ({type(error).__name__})") from None
    arguments = [
        "generate", "--model", model, "--scheme", ",".join(specs), "--input", f"text:{folder / digest}.txt",
        "--new", str(new),
    ]  # fmt: skip
    name = Path(model).name or model
    st.session_state["watched"] = jobs.start(
        options.runs, f"Prompt of {name}", arguments, f"prompt-{name}", file=True
    ).name  # fmt: skip
    st.rerun()


def _written(options: Options) -> None:
    found = results(options.runs, "generate")
    if not found:
        st.info("Nothing was read yet. Paste a text and press **Read it**.")
        return
    one = pick(found, "written")
    settings, rows = one.value["settings"], one.value["rows"]
    st.markdown(
        f"{words.model_name(one.model)}, M = {words.count(int(settings['window']))}, a prompt of "
        f"**{words.count(int(settings['length']))} tokens**"
        + ("" if settings["length"] > settings["window"] else ", inside the window: nothing is extrapolated.")
    )
    st.dataframe(continuations(rows), hide_index=True, key="written table")
    for row in rows:
        st.caption(f"{row['scheme']} wrote")
        st.code(str(row["tokens"]) if row["text"] is None else str(row["text"]), language=None, wrap_lines=True)
    st.caption("Peak memory: above the loaded model, the cache included. Times are of one pass, not medians.")
