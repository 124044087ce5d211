"""Theory: the paper's o_t under any weave, moved by sliders, and the toy transformers that realise it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from app import words
from app.chrome import title
from app.expression import SYNTAX, OwnWeave
from app.jobs import environment
from app.look import Look, axis, chart, layout, look
from app.options import Options
from constructions.horizon import Crossing, crossing, growth, is_subadditive, recovered
from constructions.weave import Clamp, Linear, Stair, Weave
from probe.errors import ProbeError

LONGEST = 4096
"""Positions drawn at most."""

THEOREMS = {"NoPE": "3.1", "PE": "3.2", "ReRoPE": "3.3", "Stair PE": "4.1"}
"""Curves of the paper's theorems, and which."""

COLOURS = {"NoPE": "nope", "PE": "origin", "ReRoPE": "rerope", "Stair PE": "stair", "W(d)": "mesa"}
"""Each in the colour of its scheme."""

FORM_NAMES = {
    "linear": "PE", "clamp": "ReRoPE", "leaky": "Leaky ReRoPE", "stair": "Stair PE", "grouped": "Self-Extend",
}  # fmt: skip
"""Weaves with a closed form, as schemes call them."""


@dataclass(frozen=True)
class Chosen:
    """The sliders."""

    M: int
    H: float
    N: int
    E: int
    slope: float
    length: int


def render(options: Options) -> None:
    """Draw the page."""
    title("Theory", "A toy transformer counts positions in one dimension, o: where does it fall below the threshold H?")
    chosen = _sliders()
    try:
        curves = _curves(chosen)
    except ProbeError as error:
        st.error(words.plain(error), icon=":material/error:")
        curves = _known(chosen)
    measured = _measured(chosen)
    now = look()
    chart(_figure(curves, measured, chosen, now), "theory", _alt(curves, chosen))
    _table(curves, chosen)
    left, right = st.columns(2, gap="large")
    with left:
        _run_toys(chosen)
    with right:
        _formulas()


def _sliders() -> Chosen:
    cells = st.columns(6, gap="medium")
    M = cells[0].slider("M, trained window", 4, 256, 32, key="M", bind="query-params", help=words.M)
    H = cells[1].slider("H, threshold", -4.0, 4.0, 0.5, 0.25, key="H", bind="query-params", help=words.H)
    N = cells[2].slider(
        "N, exact distances", 1, 255, 4, key="N", bind="query-params",
        help="ReRoPE and Stair PE leave distances up to N as they are; below M.",
    )  # fmt: skip
    E = cells[3].slider(
        "E, keys a step", 1, 64, 4, key="E", bind="query-params", help="Keys that share a step of Stair PE past N."
    )
    slope = cells[4].slider(
        "Slope s", 0.05, 2.0, 1.0, 0.05, key="slope", bind="query-params",
        help="Of the position encoding's term, as in ALiBi: e^(-s W).",
    )  # fmt: skip
    most = cells[5].select_slider(
        "Positions", [2**n for n in range(5, 13)], 256, key="positions", bind="query-params",
        help="How far the curves are drawn.",
    )  # fmt: skip
    return Chosen(M, H, min(N, M - 1), E, slope, int(most))


def _weaves(chosen: Chosen) -> dict[str, Weave | None]:
    return {"NoPE": None, "PE": Linear(), "ReRoPE": Clamp(chosen.N), "Stair PE": Stair(chosen.N, chosen.E)}


def course(weave: Weave | None, chosen: Chosen) -> np.ndarray:
    """o_T at T = 0 .. length - 1 from its formula with exact recovery: (M + 1)/G(t) - 1 + H; None is NoPE, G(t) = t."""
    value = chosen.M + 1
    if weave is None:
        return value / np.arange(1, chosen.length + 1) - 1 + chosen.H
    G = growth(weave, recovered(weave, chosen.length, chosen.slope, "exact"), chosen.slope)
    # A tie, as every integer G makes it, is o = H.
    G = np.where(np.abs(G - value) < 1e-9 * value, value, G)
    return value / G - 1 + chosen.H


def _known(chosen: Chosen) -> dict[str, np.ndarray]:
    return {name: course(weave, chosen) for name, weave in _weaves(chosen).items()}


def _curves(chosen: Chosen) -> dict[str, np.ndarray]:
    """The theorems' curves, and the reader's own.

    Raises:
        ProbeError: the reader's W(d) is none.
    """
    text = st.text_input(
        "Your own W(d)", key="W", bind="query-params", max_chars=200, placeholder="min(d, N) + max(d - N, 0) / E",
        help=f"A relative position for every distance d: {SYNTAX}.",
    )  # fmt: skip
    found = _known(chosen)
    if text and text.strip():
        own = OwnWeave(text, chosen.N, chosen.E, chosen.M, chosen.length)
        if not is_subadditive(own, min(chosen.length, 512)):
            st.caption(
                "W(0) = 0 and W(a + b) ≤ W(a) + W(b) do not hold for it everywhere, so the theorems' bound on its "
                "horizon does not either; the curve is what its formula gives."
            )
        found["W(d)"] = course(own, chosen)
    return found


def _horizon(o: np.ndarray, chosen: Chosen) -> Crossing:
    return crossing(o > chosen.H + 1e-12)


def _figure(
    curves: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray], chosen: Chosen, now: Look
) -> dict[str, Any]:
    data = []
    at = np.arange(chosen.length)
    keep = np.unique(np.geomspace(1, chosen.length, 700).astype(int) - 1)
    for name, o in curves.items():
        colour = now.scheme(COLOURS[name])
        data.append({
            "type": "scatter", "mode": "lines", "name": name, "x": (at[keep] + 0).astype(np.int32), "legendgroup": name,
            "y": o[keep].astype(np.float32), "line": {"color": colour, "width": 2},
            "hovertemplate": f"{name}<br>T = %{{x:,}}: o = %{{y:.4g}}<extra></extra>",
        })  # fmt: skip
        first = _horizon(o, chosen).first_failure
        if first is not None:
            data.append({
                "type": "scatter", "mode": "markers", "x": [first], "y": [float(o[first])], "showlegend": False,
                "marker": {"symbol": "x", "size": 11, "color": colour}, "legendgroup": name,
                "hovertemplate": f"{name}: o is not above H from T = %{{x:,}}<extra></extra>",
            })  # fmt: skip
    for name, o in measured.items():
        shown = np.unique(np.geomspace(1, len(o), 60).astype(int) - 1)
        data.append({
            "type": "scatter", "mode": "markers", "name": f"{name}: toy transformer", "x": shown.astype(np.int32),
            "y": o[shown].astype(np.float32), "legendgroup": name,
            "marker": {"symbol": "circle-open", "size": 7, "color": now.scheme(COLOURS[name])},
            "hovertemplate": f"{name}, measured<br>T = %{{x:,}}: o = %{{y:.4g}}<extra></extra>",
        })  # fmt: skip
    figure: dict[str, Any] = {"data": data, "layout": layout(now, 420)}
    top = max(float(o[min(len(o) - 1, max(1, chosen.M // 4))]) for o in curves.values()) + 1
    figure["layout"]["xaxis"] = axis(now, "T, tokens after the first", range=[0, chosen.length])
    figure["layout"]["yaxis"] = axis(now, "o", range=[min(-1.0, chosen.H - 1) - 0.3, max(top, chosen.H + 2)])
    figure["layout"]["shapes"] = [
        {"type": "line", "x0": chosen.M, "x1": chosen.M, "yref": "paper", "y0": 0, "y1": 1,
         "line": {"color": now.window, "dash": "dash", "width": 1.4}},
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": chosen.H, "y1": chosen.H,
         "line": {"color": now.threshold, "dash": "dash", "width": 1.4}},
    ]  # fmt: skip
    figure["layout"]["annotations"] = [
        {"x": chosen.M, "yref": "paper", "y": 1, "yanchor": "top", "xanchor": "left", "text": f"M = {chosen.M}",
         "showarrow": False, "font": {"color": now.window}},
        {"xref": "paper", "x": 1, "xanchor": "right", "y": chosen.H, "yanchor": "bottom", "text": f"H = {chosen.H:g}",
         "showarrow": False, "font": {"color": now.threshold}},
    ]  # fmt: skip
    return figure


def _alt(curves: Mapping[str, np.ndarray], chosen: Chosen) -> str:
    said = []
    for name, o in curves.items():
        first = _horizon(o, chosen).first_failure
        said.append(f"{name} {'stays above H' if first is None else f'reaches H at {first}'}")
    return f"o over position, M = {chosen.M}, H = {chosen.H:g}: {'; '.join(said)}"


def _table(curves: Mapping[str, np.ndarray], chosen: Chosen) -> None:
    lines = ["| | o first not above H | settles there from |", "|---|---:|---:|"]
    for name, o in curves.items():
        found = _horizon(o, chosen)
        beyond = f"beyond {words.count(chosen.length)}"
        first = beyond if found.first_failure is None else f"T = {words.count(found.first_failure)}"
        settled = beyond if found.settled is None else f"T = {words.count(found.settled)}"
        lines.append(f"| **{name}**{_theorem(name)} | {first} | {settled} |")
    st.markdown("\n".join(lines))
    st.caption(
        "In NoPE and PE o falls to H at T = M, whatever is done (Theorems 3.1 and 3.2); a weave moves that to its "
        "horizon (Theorem 3.3, Corollary 4.1). Curves are with exact recovery of positions."
    )


def _theorem(name: str) -> str:
    return "" if name not in THEOREMS else f", {'Corollary' if name == 'Stair PE' else 'Theorem'} {THEOREMS[name]}"


def _key(chosen: Chosen) -> str:
    return repr(chosen)


def _measured(chosen: Chosen) -> dict[str, np.ndarray]:
    """What the toy transformers gave with these sliders, where they were run."""
    return {name: measured for name, (measured, _) in _kept(chosen).items()}


def _kept(chosen: Chosen) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    kept: tuple[str, dict[str, tuple[np.ndarray, np.ndarray]]] | None = st.session_state.get("toys")
    return kept[1] if kept is not None and kept[0] == _key(chosen) else {}


def _run_toys(chosen: Chosen) -> None:
    st.markdown("**Beside the toy transformers.** Their hand-built weights realise the theorems; this runs all four.")
    if st.button("Run the toy transformers", icon=":material/play_arrow:", key="toys_run"):
        with st.spinner("Running four toy transformers …"):
            found = {name: _toy(theorem, chosen) for name, theorem in THEOREMS.items()}
        st.session_state["toys"] = (_key(chosen), found)
        st.rerun()
    kept = _kept(chosen)
    if kept:
        worst = {name: float(np.max(np.abs(measured - formula))) for name, (measured, formula) in kept.items()}
        st.caption(
            "Largest difference between a transformer's o and the formula of its own weights: "
            + ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
            + f". The one of Theorem 3.2 can tell {chosen.M + 2} positions apart and no more: past M its points lie "
            "below the curve, which is with exact recovery."
        )


def _toy(theorem: str, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
    """o_T of a toy transformer, and the formula of its weights, run in a process of its own: no torch here.

    Raises:
        ProbeError: the theorem has no such transformer.
    """
    length = min(chosen.length, 1024)
    recovery = [] if theorem in ("3.1", "3.2") else ["--recovery", "exact"]
    command = [
        sys.executable, "-m", "constructions", "course", "--theorem", theorem, f"--M={chosen.M}", f"--H={chosen.H}",
        f"--N={chosen.N}", f"--E={chosen.E}", f"--slope={chosen.slope}", f"--length={length}", *recovery,
    ]  # fmt: skip
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, timeout=120, env=environment()
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise ProbeError(f"theorem {theorem}: {lines[-1].partition(': ')[2] or lines[-1]}")
    found = json.loads(done.stdout)
    return np.array(found["measured"]), np.array(found["predicted"])


def _formulas() -> None:
    with st.expander("Closed forms", icon=":material/function:"):
        from constructions.closed_form import FORMS

        names = {
            "linear": "PE",
            "clamp": "ReRoPE",
            "leaky": "Leaky ReRoPE",
            "stair": "Stair PE",
            "grouped": "Self-Extend",
        }
        chosen = st.selectbox("Weave", list(FORMS), format_func=lambda name: names.get(name, name), key="form")
        for line in FORMS[chosen].latex().splitlines():
            st.latex(line)
        st.caption(
            "V = M + 1, s the slope; t counts the first token. Each is checked against the definition: "
            "`python -m constructions proofs`."
        )
