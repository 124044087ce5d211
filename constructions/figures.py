"""The figures of the theory page, drawn from runs of the constructions, as SVG that no viewer needs a library for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from constructions.horizon import predicted
from constructions.toy import Parameters, build
from constructions.verify import measure, words

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 52, 52
# Okabe and Ito's palette: told apart by readers who do not see red and green.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


@dataclass(frozen=True)
class Curve:
    """A named line through (x, y); dashed if it is a formula beside a measurement."""

    name: str
    x: np.ndarray
    y: np.ndarray
    dashed: bool = False


@dataclass(frozen=True)
class Axes:
    """Data ranges; x logarithmic or not; and where the key's first row starts, in pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool = True
    key: tuple[int, int] = (WIDTH - RIGHT - 250, TOP + 18)

    def across(self, x: float) -> float:
        """Pixels from the left."""
        scale: Callable[[float], float] = math.log10 if self.log_x else float
        low, high = scale(self.x[0]), scale(self.x[1])
        return LEFT + (scale(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        """Pixels from the top."""
        return TOP + (self.y[1] - y) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, words: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(words)}</text>'


def _line(a: tuple[float, float], b: tuple[float, float], style: str) -> str:
    return f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" {style}/>'


def _thinned(curve: Curve, axes: Axes) -> str:
    """The points within the x range; where several share a pixel column, the lowest and the highest of them."""
    columns: dict[int, list[tuple[float, float]]] = {}
    for x, y in zip(curve.x, curve.y, strict=True):
        if axes.x[0] <= x <= axes.x[1]:
            across = axes.across(float(x))
            columns.setdefault(round(across), []).append((across, axes.down(float(y))))
    kept = []
    for points in columns.values():
        ends = {min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])}
        kept += sorted(ends)
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in kept)


def _ticks(axes: Axes) -> list[str]:
    grid = 'stroke="#e3e3e3"'
    parts = []
    for x in [v for v in _x_ticks(axes) if axes.x[0] <= v <= axes.x[1]]:
        across = axes.across(x)
        parts += [_line((across, TOP), (across, HEIGHT - BOTTOM), grid), _text(across, HEIGHT - BOTTOM + 16, f"{x:g}")]
    for n in range(6):
        y = axes.y[0] + (axes.y[1] - axes.y[0]) * n / 5
        down = axes.down(y)
        parts += [_line((LEFT, down), (WIDTH - RIGHT, down), grid), _text(LEFT - 6, down + 4, f"{y:.2g}", "end")]
    return parts


def _x_ticks(axes: Axes) -> list[float]:
    if axes.log_x:
        return [m * 10.0**e for e in range(5) for m in (1, 2, 5)]
    step = 2 * 10 ** math.floor(math.log10(axes.x[1] / 8))
    return [float(step * n) for n in range(1 + math.ceil(axes.x[1] / step))]


def _drawn(curve: Curve, axes: Axes, colour: str, row: int) -> list[str]:
    """A curve and its line in the key."""
    stroke = f'stroke="{colour}"' + (' stroke-dasharray="5 4"' if curve.dashed else "")
    key, width = axes.key[0], 40 + 6.8 * len(curve.name)
    return [
        f'<polyline points="{_thinned(curve, axes)}" fill="none" stroke-width="1.6" clip-path="url(#plot)" {stroke}/>',
        f'<rect x="{key - 4}" y="{row - 13}" width="{width:.0f}" height="17" fill="white" fill-opacity="0.8"/>',
        _line((key, row - 4), (key + 24, row - 4), f'{stroke} stroke-width="2.5"'),
        _text(key + 30, row, curve.name, "start"),
    ]


def svg(title: str, axes: Axes, curves: Sequence[Curve], marks: Mapping[str, float], H: float) -> str:
    """o_T over T: curves, vertical marks by name, and a horizontal line at the threshold H."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>',
        _text(LEFT, 18, title, "start", 'font-size="14" font-weight="bold"'),
        *_ticks(axes),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "T"),
        f'<g transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">{_text(0, 0, "o_T")}</g>',
    ]
    level = axes.down(H)
    parts += [_line((LEFT, level), (WIDTH - RIGHT, level), 'stroke="#222" stroke-dasharray="6 3"')]
    parts += [_text(WIDTH - RIGHT - 4, level - 5, "H", "end")]
    for name, x in marks.items():
        across = axes.across(x)
        parts += [_line((across, TOP), (across, HEIGHT - BOTTOM), 'stroke="#222" stroke-dasharray="2 3"')]
        parts += [_text(across, TOP - 6, name)]
    for n, curve in enumerate(curves):
        parts += _drawn(curve, axes, COLOURS[n], axes.key[1] + 17 * n)
    return "\n".join([*parts, "</svg>\n"])


def _o(name: str, theorem: str, length: int, **chosen: object) -> Curve:
    built = build(theorem, Parameters(length=length, **chosen))  # type: ignore[arg-type]
    o, _ = measure(built, words(built, length))
    return Curve(name, np.arange(1, length), o[1:].astype(float))


def overview() -> str:
    """o_T against T for NoPE, PE, ReRoPE and Stair, M = 32, with H and M: the theorems in one picture."""
    curves = [
        _o("NoPE (3.1)", "3.1", 400),
        _o("PE (3.2), the same numbers", "3.2", 400, capacity=400),
        _o("ReRoPE N = 4 (3.3)", "3.3", 1800, recovery="exact"),
        _o("Stair N = 4, E = 4 (4.1)", "4.1", 1800, recovery="exact"),
    ]
    curves[1] = Curve(curves[1].name, curves[1].x, curves[1].y, dashed=True)
    axes = Axes((4, 1800), (-1, 4), key=(LEFT + 10, HEIGHT - BOTTOM - 68))
    marks = {"M": 32, "573": 573, "1145": 1145, "1640": 1640}
    return svg(
        "o_T crosses H at M without a weave, far later with one (M = 32, H = 0.5)",
        axes,
        curves,
        marks,
        0.5,
    )


def recovery() -> str:
    """o_T under ReRoPE and Stair for exact recovery and for the weights of Theorem 3.2."""
    curves = [
        _o("ReRoPE N = 2, exact", "3.3", 900, M=6, N=2, recovery="exact"),
        _o("ReRoPE N = 2, weights of 3.2", "3.3", 900, M=6, N=2),
        _o("Stair N = 2, E = 4, exact", "4.1", 900, M=6, N=2, recovery="exact"),
        _o("Stair N = 2, E = 4, weights of 3.2", "4.1", 900, M=6, N=2),
    ]
    axes = Axes((2, 900), (-0.5, 2.5))
    return svg(
        "The drift of the real MLP moves the horizon outwards (M = 6, H = 0.5)",
        axes,
        curves,
        {"M": 6, "521": 521},
        0.5,
    )


def sawtooth() -> str:
    """o_T under Stair around its horizon: it crosses H with period E before it settles."""
    curve = _o("Stair N = 2, E = 4, exact, measured", "4.1", 330, N=2, recovery="exact")
    built = build("4.1", Parameters(N=2, recovery="exact", length=330))
    formula = Curve("closed form", np.arange(1, 330), predicted(built, 330)[1:], dashed=True)
    axes = Axes((90, 329), (-0.3, 1.2), log_x=False)
    shown = [Curve(c.name, c.x[89:], c.y[89:], c.dashed) for c in (curve, formula)]
    marks = {"first failure 119": 119, "settled 267": 267}
    return svg("Stair PE crosses H once per residue of T modulo E (M = 32, H = 0.5)", axes, shown, marks, 0.5)


FIGURES: dict[str, Callable[[], str]] = {"overview": overview, "recovery": recovery, "sawtooth": sawtooth}


def draw_all(folder: Path) -> list[Path]:
    """Write every figure as SVG into folder; returns the paths.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        path = folder / f"{name}.svg"
        path.write_text(draw(), encoding="utf-8")
        paths.append(path)
    return paths
