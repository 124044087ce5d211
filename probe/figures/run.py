"""Two still pictures of a run, as SVG: the likelihood by position, and which dimensions of which layers cross."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probe.errors import FieldError, unknown
from probe.figures.style import scheme_colour
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.thresholds.detectors import as_single
from probe.thresholds.verdicts import Verdict, read_verdicts

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 860, 400, 56, 30, 150, 44
POINTS = 240
"""Bins of a line, each drawn as its mean: a text's likelihood of single tokens is noise at this size."""
ACROSS = 900
"""Pixels that fields of dimensions beside each other may take."""
LABEL = 13
"""Pixels that a line's name takes."""


def binned(values: NDArray[np.float64], bins: int = POINTS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle position and mean of each of so many bins; entry 0, which nothing predicts, is left out."""
    edges = np.linspace(1, len(values), min(bins, len(values) - 1) + 1).astype(int)
    pairs = list(pairwise(edges.tolist()))
    middle = np.array([(start + stop - 1) / 2 for start, stop in pairs])
    return middle, np.array([values[start:stop].mean() for start, stop in pairs])


def text(x: float, y: float, said: str, **style: str) -> str:
    """A piece of text in SVG; `style` are its attributes, an underscore for every hyphen."""
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(said)}</text>'


def page(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A whole SVG page of these parts, with a title that screen readers say."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#333" role="img"><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>' + "".join(parts) + "</svg>\n"
    )


def _spread(wanted: Sequence[float]) -> list[float]:
    """Places of labels, moved apart downwards where they would overlap."""
    placed: list[float] = []
    for y in sorted(wanted):
        placed.append(max(y, placed[-1] + LABEL if placed else y))
    over = max(0.0, placed[-1] - (HEIGHT - BOTTOM)) if placed else 0.0
    return [y - over for y in placed]


def likelihood_svg(
    run: Run, schemes: Sequence[str] | None = None, most: float | None = None, bins: int = POINTS
) -> str:
    """NLL by position, means of bins, a line per scheme with its name at its end.

    Args:
        run: a run of a model with a vocabulary head.
        schemes: which; default those that the run shows.
        most: nats at the upper edge; default what the lines reach.
        bins: points of a line, each a mean.

    Raises:
        ProbeError: a scheme that did not run, or a run without likelihoods.
    """
    shown, info = list(run.info.shown if schemes is None else schemes), run.info
    for scheme in shown:
        if scheme not in run.nll:
            raise unknown("scheme", scheme, run.nll)
    lines = {scheme: binned(run.nll[scheme], bins) for scheme in shown}
    if not all(np.isfinite(y).all() for _, y in lines.values()):
        raise FieldError("folder", "a run with likelihoods", "one of a model without a vocabulary head")
    top = most or float(max(y.max() for _, y in lines.values()))
    low = float(min(y.min() for _, y in lines.values()))
    across, up = (WIDTH - LEFT - RIGHT) / info.input.length, (HEIGHT - TOP - BOTTOM) / (top - low)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (min(value, top) - low) * up

    parts = []
    for nats in np.arange(np.ceil(low), top + 1e-9):
        parts.append(f'<path d="M{LEFT} {y_of(nats):.1f}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>')
        parts.append(text(LEFT - 8, y_of(nats) + 4, f"{nats:g}", text_anchor="end"))
    for times in np.arange(0, info.input.length / info.window + 1e-9, 0.5):
        x = LEFT + times * info.window * across
        parts.append(text(x, HEIGHT - BOTTOM + 18, f"{times:g}M" if times else "0", text_anchor="middle"))
    edge = LEFT + info.window * across
    parts.append(f'<path d="M{edge:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#777" stroke-dasharray="5 4"/>')
    ends = sorted(shown, key=lambda scheme: y_of(lines[scheme][1][-1]))
    places = _spread([y_of(lines[scheme][1][-1]) for scheme in ends])
    for scheme, y in zip(ends, places, strict=True):
        parts.append(text(WIDTH - RIGHT + 6, y + 4, scheme, fill=scheme_colour(scheme)))
    for scheme, (x, values) in lines.items():
        points = " ".join(f"{LEFT + a * across:.1f},{y_of(b):.1f}" for a, b in zip(x, values, strict=True))
        colour = scheme_colour(scheme)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    parts.append(text(LEFT, 18, f"{info.model}: nats per token by position, {info.input.spec}, M = {info.window}"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "position", text_anchor="middle"))
    return page(WIDTH, HEIGHT, "Likelihood by position", parts)


def crossings_svg(run: Run, schemes: Sequence[str] | None = None) -> str:
    """A square per layer (down) and recorded dimension (across), one field per scheme: dark where it crosses its
    threshold, the earlier the darker.

    Raises:
        ProbeError: a scheme that is not among the run's verdicts.
    """
    info = run.info
    verdicts = read_verdicts(run, as_single(info.detector))
    shown = list(info.shown if schemes is None else schemes)
    known = list(dict.fromkeys(verdict.scheme for verdict in verdicts))
    for scheme in shown:
        if scheme not in known:
            raise unknown("scheme", scheme, known)
    cell, gap = 8, 34
    wide, high = cell * len(info.dims), cell * len(info.layers)
    columns = max(1, min(len(shown), ACROSS // (wide + gap)))
    width, height = 40 + columns * (wide + gap), 30 + -(-len(shown) // columns) * (high + gap)
    parts = [text(40, 16, f"{info.model}: dimensions that cross, {info.input.spec}, {info.input.length} tokens")]
    for number, scheme in enumerate(shown):
        left, top = 40 + number % columns * (wide + gap), 50 + number // columns * (high + gap)
        mine = [verdict for verdict in verdicts if verdict.scheme == scheme and verdict.site == info.sites[0]]
        count = sum(verdict.predicted is not None for verdict in mine)
        parts.append(text(left, top - 6, f"{scheme}: {count} of {len(mine)}", fill=scheme_colour(scheme)))
        parts.append(f'<rect x="{left}" y="{top}" width="{wide}" height="{high}" fill="#f4f4f4" stroke="#bbb"/>')
        parts += [_cell(verdict, info, left, top, cell) for verdict in mine]
        for row, layer in enumerate(info.layers):
            if layer == info.layers[0] or layer % 5 == 0:
                parts.append(text(left - 4, top + row * cell + 8, str(layer), text_anchor="end", font_size="10"))
    return page(width, height, "Dimensions that cross, by layer", parts)


def _cell(verdict: Verdict, info: RunInfo, left: int, top: int, cell: int) -> str:
    """One square; empty where the dimension does not cross."""
    if verdict.predicted is None:
        return ""
    x, y = left + cell * info.dims.index(verdict.dim), top + cell * info.layers.index(verdict.layer)
    late = min(1.0, max(0.0, (verdict.predicted - info.window) / max(1, info.input.length - info.window)))
    said = f"layer {verdict.layer}, dim {verdict.dim}: {verdict.predicted}"
    return (
        f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="{scheme_colour(verdict.scheme)}" '
        f'fill-opacity="{1 - 0.65 * late:.2f}"><title>{said}</title></rect>'
    )


def write(
    run: Run, folder: Path, schemes: Sequence[str] | None = None, most: float | None = None, bins: int = POINTS
) -> list[Path]:
    """Both pictures, named after the run.

    Args:
        run: a run folder.
        folder: where they go; made.
        schemes: which; default those that the run shows.
        most: nats at the upper edge of the likelihood.
        bins: points of its lines, each a mean.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        folder / f"{run.path.name}-likelihood.svg": likelihood_svg(run, schemes, most, bins),
        folder / f"{run.path.name}-crossings.svg": crossings_svg(run, schemes),
    }
    for path, drawn in made.items():
        path.write_text(drawn, encoding="utf-8")
    return list(made)
