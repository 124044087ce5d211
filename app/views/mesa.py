"""How Mesa splits a prompt, drawn anew with every move of a slider; it needs neither a model nor a run."""

from __future__ import annotations

import streamlit as st

from app import words
from app.options import Options
from probe.errors import ProbeError
from probe.figures.mesa import draw, share
from probe.results import pipe_table
from probe.schemes import make_scheme
from probe.schemes.mesa import DEFAULT_STEP, split_of, step
from probe.schemes.scheme import Extent

WINDOWS = tuple(2**n for n in range(4, 16))
"""Trained windows M on offer, tokens."""

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
    st.title("Mesa split")
    st.caption(
        "A middle chunk sees chunk 0 and itself; the last chunk, and every token after the prompt, sees every key by "
        "Stair PE. A new M sets the other sliders to its defaults."
    )
    try:
        _show(*_sliders())
    except ProbeError as error:
        st.error(words.plain(error), icon=":material/error:")


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


def _show(window: int, length: int, parameters: dict[str, int]) -> None:
    """The split in numbers and as a picture.

    Raises:
        ProbeError: parameters outside their domain.
    """
    scheme, extent = make_scheme("mesa", window, **parameters), Extent(length, length, window)
    split = split_of(scheme.parameters, extent)
    if split is None:
        st.info(f"A prompt of {length} tokens is inside the window of {window}: the plain model, nothing is split.")
        return
    keys_a_step = step(scheme.parameters, extent)
    shown = {
        "Middle chunks": str(split.chunks),
        "C, tokens of each": str(split.C) if split.chunks else "-",
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
