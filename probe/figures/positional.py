"""How much of the hidden vectors is position, layer by layer, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.errors import ProbeError
from probe.figures.run import page, text
from probe.figures.style import scheme_colour

WIDE, HIGH, LEFT, TOP, RIGHT = 520, 300, 56, 56, 170
"""Pixels of the field, and around it."""
DASH = {"inside": "5 4", "past": ""}


def positional_svg(result: Mapping[str, Any]) -> str:
    """A line per scheme over layers: dashed inside the window, whole past it, with 95% intervals.

    Args:
        result: of `probe positional`, as `Result.to_json` has it.

    Raises:
        ProbeError: it is something else.
    """
    try:
        rows, said = list(result["rows"]), result["settings"]
        layers = sorted({int(row["layer"]) for row in rows})
        top = max(0.05, *(float(row["high"]) for row in rows))
        title = (
            f"{said['model']}: share of hidden variance that is position, {said['samples']} texts of {said['input']}"
        )
        schemes = dict.fromkeys(str(row["scheme"]) for row in rows)
        lines = {
            (scheme, where): [row for row in rows if (row["scheme"], row["where"]) == (scheme, where)]
            for scheme in schemes for where in DASH
        }  # fmt: skip
    except (KeyError, TypeError, ValueError):
        raise ProbeError("expected the JSON of probe positional, with at least one row") from None
    across = WIDE / max(1, len(layers) - 1)

    def x_of(layer: int) -> float:
        return layers.index(layer) * across if len(layers) > 1 else WIDE / 2

    def y_of(share: float) -> float:
        return HIGH * (1 - min(max(share, 0.0), top) / top)

    parts = [text(LEFT, 22, title), f'<g transform="translate({LEFT},{TOP})">']
    for n in range(5):
        share = top * n / 4
        parts.append(f'<path d="M0 {y_of(share):.1f}H{WIDE}" stroke="#e5e5e5"/>')
        parts.append(text(-6, y_of(share) + 4, f"{share:.0%}", text_anchor="end", font_size="11"))
    step = max(1, len(layers) // 12)
    parts += [text(x_of(one), HIGH + 18, str(one), text_anchor="middle", font_size="11") for one in layers[::step]]
    parts.append(text(WIDE / 2, HIGH + 38, "layer", text_anchor="middle"))
    for (scheme, where), mine in lines.items():
        parts += _line(mine, scheme_colour(scheme), DASH[where], x_of, y_of)
    for n, scheme in enumerate(schemes):
        parts.append(text(WIDE + 14, 12 + 18 * n, scheme, fill=scheme_colour(scheme)))
    for n, where in enumerate(DASH):
        y = 24 + 18 * (len(schemes) + n)
        parts.append(f'<path d="M{WIDE + 14} {y - 4}H{WIDE + 44}" stroke="#333" stroke-dasharray="{DASH[where]}"/>')
        parts.append(text(WIDE + 50, y, "inside M" if where == "inside" else "past M", font_size="11"))
    return page(LEFT + WIDE + RIGHT, TOP + HIGH + 50, "Share of position", [*parts, "</g>"])


def _line(mine: Sequence[Mapping[str, Any]], colour: str, dash: str, x_of: Any, y_of: Any) -> list[str]:
    points = " ".join(f"{x_of(row['layer']):.1f},{y_of(row['share']):.1f}" for row in mine)
    style = f'stroke="{colour}" stroke-dasharray="{dash}"'
    found = [f'<polyline points="{points}" fill="none" stroke-width="1.6" {style}/>']
    for row in mine:
        x, words = x_of(row["layer"]), f"{row['scheme']}, layer {row['layer']}, {row['where']}: {row['share']:.1%}"
        found.append(
            f'<path d="M{x:.1f} {y_of(row["low"]):.1f}V{y_of(row["high"]):.1f}" {style} stroke-opacity="0.6"/>'
        )
        place = f'cx="{x:.1f}" cy="{y_of(row["share"]):.1f}" r="3"'
        found.append(f'<circle {place} fill="{colour}"><title>{words}</title></circle>')
    return found


def write(result: Mapping[str, Any], folder: Path, name: str) -> Path:
    """The picture in a folder, which is made.

    Raises:
        ProbeError: as `positional_svg`.
    """
    drawn = positional_svg(result)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    path.write_text(drawn, encoding="utf-8")
    return path
