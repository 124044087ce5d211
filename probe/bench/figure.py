"""The GPU benchmark as SVG, one file per model. It needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from probe.errors import FieldError, ProbeError
from probe.figures.style import scheme_colour

PANELS = (
    ("prefill_seconds", "time to first token, s"),
    ("tokens_per_second", "decoding, tokens/s"),
    ("peak_bytes", "peak memory above the weights, bytes"),
)
WIDTH, HEIGHT, GAP, LEFT, TOP = 300.0, 260.0, 70.0, 60.0, 40.0
_DASHED = "stock"


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _short(value: float) -> str:
    """A power of ten or a number of tokens, short."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _panel(lines: dict[str, list[tuple[int, float]]], title: str, at: float) -> list[str]:
    """One panel on logarithmic axes: a line per scheme, named at its end."""
    xs = sorted({x for line in lines.values() for x, _ in line})
    ys = [y for line in lines.values() for _, y in line]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 1e-9)
    span = math.log(xs[-1] / xs[0]) or 1.0

    def across(x: float) -> float:
        return at + WIDTH * math.log(x / xs[0]) / span

    def up(y: float) -> float:
        return TOP + HEIGHT * (1 - (math.log10(y) - low) / (high - low))

    parts = [_text(at, TOP - 12, title, "start", 'font-size="13"'), _text(at + WIDTH / 2, TOP + HEIGHT + 34, "tokens")]
    for power in range(low, high + 1):
        y = up(10.0**power)
        parts.append(f'<path d="M{at:.1f} {y:.1f}h{WIDTH:.1f}" stroke="#ddd"/>')
        parts.append(_text(at - 6, y + 4, _short(10.0**power), "end"))
    parts += [_text(across(x), TOP + HEIGHT + 16, f"{x // 1024}k" if x >= 1024 else str(x)) for x in xs]
    for scheme, line in lines.items():
        colour, dash = scheme_colour(scheme), ' stroke-dasharray="5 3"' if scheme == _DASHED else ""
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.2" fill="{colour}"/>' for x, y in line]
    return parts


def _legend(schemes: Sequence[str], x: float) -> list[str]:
    parts = []
    for number, scheme in enumerate(schemes):
        y, dash = TOP + 12 + 18 * number, ' stroke-dasharray="5 3"' if scheme == _DASHED else ""
        parts.append(f'<path d="M{x:.1f} {y:.1f}h22" stroke="{scheme_colour(scheme)}" stroke-width="2"{dash}/>')
        parts.append(_text(x + 28, y + 4, scheme, "start"))
    return parts


def _speeds(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows in which a speed was measured."""
    return [row for row in rows if row.get("kind") == "speed" and row.get("skipped") is None]


def draw(rows: Sequence[Mapping[str, Any]], model: str) -> str:
    """One model's rows as an SVG document.

    Raises:
        ProbeError: nothing was measured for it.
    """
    mine = sorted((row for row in _speeds(rows) if row["model"] == model), key=lambda row: int(row["length"]))
    if not mine:
        raise ProbeError(f"nothing was measured for {model}")
    schemes = list(dict.fromkeys(row["scheme"] for row in mine))
    body: list[str] = []
    for number, (key, title) in enumerate(PANELS):
        lines = {
            name: [(row["length"], row[key]) for row in mine if row["scheme"] == name and row[key] > 0]
            for name in schemes
        }
        body += _panel({name: line for name, line in lines.items() if line}, title, LEFT + number * (WIDTH + GAP))
    right = LEFT + len(PANELS) * (WIDTH + GAP) - GAP + 24
    body += _legend(schemes, right)
    width, height = right + 130, TOP + HEIGHT + 50
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="11" fill="#222">'
    )
    back = f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>'
    return "\n".join((head, f"<title>{escape(model)}</title>", back, *body, "</svg>\n"))


def write(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw every model of a result into a folder; returns the files.

    Args:
        result: as `Result.to_json` has it.
        folder: where to; it is made.

    Raises:
        ProbeError: it holds no rows of the GPU benchmark, or the folder cannot be written.
    """
    rows = _speeds(result["rows"])
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    if not models:
        raise ProbeError("expected a result of 'probe bench gpu' with something measured")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{model}.svg" for model in models]
        for model, path in zip(models, files, strict=True):
            path.write_text(draw(rows, model), encoding="utf-8")
    except OSError as error:
        raise FieldError("folder", hint=f"cannot write there ({error.strerror})", value=folder) from None
    return files
