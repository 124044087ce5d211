"""What `probe causes` found, as SVG: a field per scheme with the rise by length, predicted and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.errors import ProbeError, unknown
from probe.figures.run import page, text
from probe.figures.style import THRESHOLD_COLOUR, scheme_colour

WIDE, HIGH, LEFT, TOP, GAP_X, GAP_Y = 250, 190, 46, 62, 40, 58
COLUMNS = 3
KINDS = {
    "all": ("measured", ""),
    "keys": ("measured, distances folded back", "2 3"),
    "distances, predicted": ("distances, predicted", "7 4"),
    "keys, predicted": ("keys, predicted", "7 3 2 3"),
}
"""Causes as the result names them: what they are called here, and the dashes of their lines."""


def causes_svg(result: Mapping[str, Any], schemes: Sequence[str] | None = None) -> str:
    """A field per scheme: nats over the trained model in its window, by length in windows, with 95% intervals.

    Args:
        result: as `Result.to_json` has it.
        schemes: which; default all.

    Raises:
        ProbeError: it is no result of `probe causes`, or has no numbers; a scheme that is not in it.
    """
    try:
        window, floor = result["settings"]["window"], result["settings"]["floor"]
        rows = [row for row in result["rows"] if row["rise"] is not None]
        if not rows:
            raise ValueError
        known = list(dict.fromkeys(row["scheme"] for row in rows))
        model = result["settings"]["model"]
    except (KeyError, TypeError, ValueError):
        raise ProbeError("expected the JSON of probe causes, with at least one row") from None
    for scheme in schemes or ():
        if scheme not in known:
            raise unknown("scheme", scheme, known)
    schemes = list(schemes or known)
    rows = [row for row in rows if row["scheme"] in schemes]
    ends = [math.log2(row["length"] / window) for row in rows]
    low, high = min(0.0, *(row["low"] for row in rows)), max(2 * floor, *(row["high"] for row in rows))
    scale = _Scale(max(ends), low, high)
    columns = min(COLUMNS, len(schemes))
    height = TOP + -(-len(schemes) // columns) * (HIGH + GAP_Y)
    width = max(720, LEFT + columns * (WIDE + GAP_X))
    title = f"{model}, M = {window}: rise in nats per token over the trained model in its window"
    parts = [text(LEFT, 18, title), *_key()]
    for number, scheme in enumerate(schemes):
        x, y = LEFT + number % columns * (WIDE + GAP_X), TOP + number // columns * (HIGH + GAP_Y)
        parts.append(f'<g transform="translate({x},{y})">')
        parts += _field(scheme, [row for row in rows if row["scheme"] == scheme], window, floor, scale)
        parts.append("</g>")
    return page(width, height, "Why it fails, by length", parts)


def _key() -> list[str]:
    """What the lines are."""
    parts, x = [], LEFT
    for said, dashes in KINDS.values():
        parts.append(f'<path d="M{x} 34h26" stroke="#333" stroke-width="1.6" stroke-dasharray="{dashes}"/>')
        parts.append(text(x + 32, 38, said, font_size="11"))
        x += 48 + 6 * len(said)
    return parts


class _Scale:
    """Where a length and a rise lie in a field."""

    def __init__(self, octaves: float, low: float, high: float) -> None:
        self.octaves, self.low, self.high = octaves, low, high

    def x(self, octaves: float) -> float:
        """Pixels from a field's left edge, of octaves past the window."""
        return WIDE * octaves / self.octaves

    def y(self, rise: float) -> float:
        """Pixels from its top edge."""
        return HIGH * (self.high - rise) / (self.high - self.low)


def _field(scheme: str, rows: Sequence[Mapping[str, Any]], window: int, floor: float, scale: _Scale) -> list[str]:
    colour = scheme_colour(scheme)
    parts = [text(0, -8, scheme, fill=colour), f'<rect width="{WIDE}" height="{HIGH}" fill="none" stroke="#ccc"/>']
    step = next(one for one in (0.2, 0.5, 1, 2, 5, 10) if (scale.high - scale.low) / one <= 8)
    for n in range(math.ceil(scale.low / step), math.floor(scale.high / step) + 1):
        y = scale.y(n * step)
        parts.append(f'<path d="M0 {y:.1f}H{WIDE}" stroke="#eee"/>')
        parts.append(text(-6, y + 4, f"{n * step:g}", text_anchor="end"))
    parts.append(f'<path d="M0 {scale.y(floor):.1f}H{WIDE}" stroke="{THRESHOLD_COLOUR}" stroke-dasharray="2 2"/>')
    last = -1e9
    for length in sorted({row["length"] for row in rows}):
        x = scale.x(math.log2(length / window))
        if x - last > 30:  # names of lengths that stand close would overlap
            parts.append(text(x, HIGH + 16, f"{length / window:g}M", text_anchor="middle", font_size="11"))
            last = x
    for kind, (_, dashes) in KINDS.items():
        mine = sorted((row for row in rows if row["cause"] == kind), key=lambda row: row["length"])
        places = [(scale.x(math.log2(row["length"] / window)), row) for row in mine]
        line = " ".join(f"{x:.1f},{scale.y(row['rise']):.1f}" for x, row in places)
        if not places:
            continue
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dashes}"/>'
        )
        for x, row in places:
            said = f"{kind}, {row['length']} tokens: {row['rise']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            bar = f"M{x:.1f} {scale.y(row['low']):.1f}V{scale.y(row['high']):.1f}"
            parts.append(f'<path d="{bar}" stroke="{colour}" stroke-opacity="0.35"/>')
            at = f'cx="{x:.1f}" cy="{scale.y(row["rise"]):.1f}" r="2.6"'
            parts.append(f'<circle {at} fill="{colour}"><title>{said}</title></circle>')
    return parts


def write(result: Mapping[str, Any], folder: Path, name: str = "causes", schemes: Sequence[str] | None = None) -> Path:
    """`NAME.svg` in a folder, which is made.

    Raises:
        ProbeError: it is no result of `probe causes`, or a scheme is not in it.
    """
    drawn = causes_svg(result, schemes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    path.write_text(drawn, encoding="utf-8")
    return path
