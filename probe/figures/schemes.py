"""The pictures of the schemes page: for every preset its W over d, who sees whom, and its frequencies, as plain SVG.

`probe figure schemes docs/figures/schemes` writes one file per scheme in `DRAWN`. Positions are drawn for a window of
16 tokens and an input of 48, with parameters small enough to see; frequencies for a window of 4096, four windows long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from probe.errors import FieldError
from probe.schemes import Scheme, parse_scheme

WINDOW, LENGTH = 16, 48
HEADS_DIM, BASE, LONG_WINDOW = 128, 10000.0, 4096
SIDE, GAP, TOP, LEFT, BOTTOM = 216, 64, 54, 44, 40
EXACT, CHANGED, FAINT = "#0072b2", "#d55e00", "#e69f00"

DRAWN = {
    "origin": "origin",
    "pi": "pi",
    "ntk": "ntk(a=4)",
    "dynamic-ntk": "dynamic-ntk",
    "yarn": "yarn",
    "rerope": "rerope(N=8)",
    "leaky-rerope": "leaky-rerope(w=8)",
    "stair": "stair(N=8,E=5)",
    "self-extend": "self-extend(W=8,G=5)",
    "dual-chunk": "dual-chunk(s=11,c=14)",
    "streaming-llm": "streaming-llm(x=2,y=12)",
    "streaming-llm-bottom": "streaming-llm(x=2,y=12)+bottom(L=8,N=8,E=5)",
    "lm-infinite": "lm-infinite(n_global=2,n_local=12)",
    "lm-infinite-bottom": "lm-infinite(n_global=2,n_local=12)+bottom(L=8,N=8,E=5)",
    "star": "star(B=12,L=6)",
    "mesa": "mesa(F=4,L=7,N=6,M_max=2)",
    "nope": "nope",
}
"""File name of a picture, and the scheme in it."""


def _text(x: float, y: float, words: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {extra}>{escape(words)}</text>'


def _frame(at: float, title: str, below: str) -> list[str]:
    """A square panel with its title and what its horizontal axis is."""
    return [
        f'<rect x="{at}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="#fff" stroke="#999"/>',
        _text(at, TOP - 8, title, "start", 'font-weight="bold"'),
        _text(at + SIDE / 2, TOP + SIDE + 32, below),
    ]


def _ticks(at: float, values: Sequence[tuple[float, str]], *, upright: bool) -> list[str]:
    """Labels along the bottom or the left edge, at shares of the side."""
    if upright:
        return [_text(at - 5, TOP + SIDE * (1 - share) + 4, label, "end") for share, label in values]
    return [_text(at + SIDE * share, TOP + SIDE + 15, label) for share, label in values]


def _dots(at: float, points: Sequence[tuple[float, float]], colour: str, size: float) -> str:
    """Points as one path of round caps: shares of the side, from the lower left."""
    marks = " ".join(f"M{at + SIDE * x:.1f} {TOP + SIDE * (1 - y):.1f}h0" for x, y in points)
    return f'<path d="{marks}" stroke="{colour}" stroke-width="{size}" stroke-linecap="round" fill="none"/>'


def _weave_panel(scheme: Scheme, at: float) -> list[str]:
    """W over d for the last query, and for an earlier one where queries differ."""
    weave, visibility = scheme.weave_at(LENGTH), scheme.visibility_at(LENGTH)
    queries = [(LENGTH - 1, CHANGED, 4.2)]
    if not (weave.by_distance and visibility.name == "causal"):
        queries.insert(0, (LENGTH - 14, FAINT, 6.5))
    dots = [
        _dots(
            at, [((t - i) / LENGTH, weave(t, i) / LENGTH) for i in range(t + 1) if visibility.sees(t, i)], colour, size
        )
        for t, colour, size in queries
    ]
    grey = 'stroke="#bbb" stroke-dasharray="3 3"'
    window = SIDE * WINDOW / LENGTH
    ticks = [(0, "0"), (WINDOW / LENGTH, "M"), (1, str(LENGTH))]
    named = " (red), ".join(f"query {t}" for t, _, _ in reversed(queries)) + " (amber)" * (len(queries) > 1)
    return [
        *_frame(at, f"W over d: {named}", "distance d = t - i"),
        f'<path d="M{at} {TOP + SIDE}l{SIDE} {-SIDE}M{at} {TOP + SIDE - window:g}h{SIDE}'
        f'M{at + window:g} {TOP}v{SIDE}" {grey}/>',
        *_ticks(at, ticks, upright=True),
        *_ticks(at, ticks, upright=False),
        *dots,
    ]


def _runs(keep: Callable[[int, int], bool]) -> list[tuple[int, int, int]]:
    """Cells that are kept, as (row, first column, how many)."""
    runs = []
    for t in range(LENGTH):
        kept = [i for i in range(LENGTH) if keep(t, i)]
        # Neighbouring columns share the difference of column and rank.
        for _, group in groupby(enumerate(kept), lambda ranked: ranked[1] - ranked[0]):
            columns = [i for _, i in group]
            runs.append((t, columns[0], len(columns)))
    return runs


def _visibility_panel(scheme: Scheme, at: float) -> list[str]:
    """The matrix of queries and keys: blue where W = d, orange where it is something else, white where unseen."""
    weave = scheme.weave_at(LENGTH)
    positions = np.arange(LENGTH)
    seen = scheme.visibility_at(LENGTH).sees(positions[:, None], positions[None]).tolist()
    cell = SIDE / LENGTH

    def filled(colour: str, exact: bool) -> str:
        runs = _runs(lambda t, i: seen[t][i] and (weave(t, i) == t - i) == exact)
        boxes = "".join(
            f"M{at + i * cell:g} {TOP + t * cell:g}h{n * cell:g}v{cell:g}h{-n * cell:g}z" for t, i, n in runs
        )
        return f'<path d="{boxes}" fill="{colour}"/>'

    ticks = [(0, "0"), (WINDOW / LENGTH, "M"), (1, str(LENGTH))]
    upside_down = [(1 - share, label) for share, label in ticks]
    return [
        *_frame(at, "Visible: blue W = d, orange W ≠ d", "key i"),
        filled(EXACT, True),
        filled(CHANGED, False),
        *_ticks(at, upside_down, upright=True),
        *_ticks(at, ticks, upright=False),
        f'<g transform="translate({at - 22} {TOP + SIDE / 2}) rotate(-90)">{_text(0, 0, "query t")}</g>',
    ]


def _frequency_panel(scheme: Scheme, at: float) -> list[str]:
    """The factor on every frequency, fastest first."""
    long = parse_scheme(scheme.spec, LONG_WINDOW)
    factors = long.frequencies.factors(HEADS_DIM, BASE, 4 * LONG_WINDOW, LONG_WINDOW).tolist()
    points = [(j / len(factors), factor * 0.96 + 0.02) for j, factor in enumerate(factors)]
    return [
        *_frame(at, f"Frequency factors, T = 4M = {4 * LONG_WINDOW}", "frequency, fastest first"),
        *_ticks(at, [(0.02, "0"), (0.26, "1/4"), (0.5, "1/2"), (0.98, "1")], upright=True),
        *_ticks(at, [(0, "0"), (1, str(len(factors)))], upright=False),
        _dots(at, points, CHANGED, 4.2),
    ]


def draw(spec: str) -> str:
    """One scheme as an SVG document."""
    scheme = parse_scheme(spec, WINDOW)
    panels = [_weave_panel, _visibility_panel]
    import torch

    untouched = torch.ones(HEADS_DIM // 2, dtype=torch.float64)
    if not torch.equal(scheme.frequencies.factors(HEADS_DIM, BASE, 4 * LONG_WINDOW, LONG_WINDOW), untouched):
        panels.append(_frequency_panel)
    width, height = LEFT + len(panels) * (SIDE + GAP) - GAP + 16, TOP + SIDE + BOTTOM
    body = [line for n, panel in enumerate(panels) for line in panel(scheme, LEFT + n * (SIDE + GAP))]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11" fill="#222">'
    )
    title = f"{spec}, M = {WINDOW}, T = {LENGTH}"
    back = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    parts = [head, f"<title>{escape(title)}</title>", back, _text(LEFT, 20, title, "start", 'font-size="14"'), *body]
    return "\n".join((*parts, "</svg>\n"))


def write(folder: Path) -> list[Path]:
    """Draw every scheme into a folder, which is made; returns the files.

    Raises:
        FieldError: it cannot be written.
    """
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, spec in DRAWN.items():
            files.append(folder / f"{name}.svg")
            files[-1].write_text(draw(spec), encoding="utf-8")
    except OSError as error:
        raise FieldError("folder", hint=f"cannot write there ({error.strerror})", value=folder) from None
    return files
