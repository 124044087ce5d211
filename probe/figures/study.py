"""Scans as one picture: the rise that passes inside the window predict, and the rise measured, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.errors import ProbeError
from probe.figures.run import page, text
from probe.figures.style import THRESHOLD_COLOUR, scheme_colour

SIDE, LEFT, TOP, RIGHT = 460, 56, 58, 190
"""Pixels of the square, and around it."""
STEPS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def predicted(row: Mapping[str, Any]) -> float:
    """The larger predicted rise of both causes, or that of the distances where the keys' cannot be told."""
    found: float = row["inside"].get("causes", row["inside"]["distances"])
    return found


def study_svg(results: Sequence[Mapping[str, Any]]) -> str:
    """A point per pair of scheme and length of every scan, coloured by scheme; hollow where the number of keys could
    not be told.

    Args:
        results: scans, as `Result.to_json` has them.

    Raises:
        ProbeError: one that is no result of `probe scan`, or no pair at all.
    """
    try:
        rows = [(result["settings"], row, predicted(row)) for result in results for row in result["rows"]]
        floor = results[0]["settings"]["floor"]
        ends = [value for _, row, guess in rows for value in (guess, row["rise"])]
        models = dict.fromkeys(said["model"] for said, _, _ in rows)
        low, high = min(-0.5, *ends), max(1.0, *ends)
    except (KeyError, TypeError, IndexError, AttributeError):
        raise ProbeError("expected the JSON of probe scan, with at least one pair") from None

    def at(value: float) -> float:
        return SIDE * (value - low) / (high - low)

    title = f"{len(models)} models, {len(rows)} pairs of scheme and length: rise in nats per token"
    parts = [text(LEFT, 18, title), f'<g transform="translate({LEFT},{TOP - 20})">', *_axes(low, high, at)]
    for path in (f"M{at(floor):.1f} 0V{SIDE}", f"M0 {SIDE - at(floor):.1f}H{SIDE}"):
        parts.append(f'<path d="{path}" stroke="{THRESHOLD_COLOUR}" stroke-dasharray="2 2"/>')
    parts.append(f'<path d="M0 {SIDE}L{SIDE} 0" stroke="#999"/>')
    for said, row, guess in rows:
        colour = scheme_colour(row["scheme"])
        told = f"{said['model']}, {row['scheme']}, {row['length']} tokens of {said['input']}"
        words = f"{told}: predicted {guess:.2f}, measured {row['rise']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        fill = f'fill="{colour}" fill-opacity="0.55"' if "causes" in row["inside"] else 'fill="none"'
        place = f'cx="{at(guess):.1f}" cy="{SIDE - at(row["rise"]):.1f}" r="3"'
        parts.append(f'<circle {place} {fill} stroke="{colour}"><title>{words}</title></circle>')
    parts += [*_key(dict.fromkeys(row["scheme"] for _, row, _ in rows)), "</g>"]
    return page(LEFT + SIDE + RIGHT, TOP + SIDE + 36, "Predicted inside the window, and measured", parts)


def _axes(low: float, high: float, at: Any) -> list[str]:
    parts = [f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#ccc"/>']
    step = next(one for one in STEPS if (high - low) / one <= 10)
    for n in range(math.ceil(low / step), math.floor(high / step) + 1):
        x = at(n * step)
        parts.append(f'<path d="M{x:.1f} 0V{SIDE}M0 {SIDE - x:.1f}H{SIDE}" stroke="#eee"/>')
        parts.append(text(x, SIDE + 16, f"{n * step:g}", text_anchor="middle", font_size="11"))
        parts.append(text(-6, SIDE - x + 4, f"{n * step:g}", text_anchor="end", font_size="11"))
    parts.append(text(SIDE / 2, SIDE + 36, "predicted from passes inside the window", text_anchor="middle"))
    turned = f"rotate(-90 -38 {SIDE / 2})"
    parts.append(text(-38, SIDE / 2, "measured on the long input", text_anchor="middle", transform=turned))
    return parts


def _key(schemes: Mapping[str, None]) -> list[str]:
    """Which colour is which scheme, and what a hollow point is."""
    parts = []
    for n, scheme in enumerate(schemes):
        colour, y = scheme_colour(scheme), 10 + 18 * n
        parts.append(f'<circle cx="{SIDE + 18}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(text(SIDE + 28, y + 4, scheme, font_size="11"))
    y = 10 + 18 * len(schemes) + 8
    parts.append(f'<circle cx="{SIDE + 18}" cy="{y}" r="4" fill="none" stroke="#333"/>')
    parts.append(text(SIDE + 28, y + 4, "keys: cannot tell", font_size="11"))
    return parts


CURVES = ("#1b6ca8", "#e07a1f", "#6a3d9a", "#2e8b57")
"""Of the scores of a calibration curve, one after another."""


def calibration_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """What failed, over the probability that was said: a point per score and bin, with its 95% interval, as large as it
    has pairs.

    Args:
        rows: of a study's calibration, as JSON has them.

    Raises:
        ProbeError: there is none.
    """
    if not rows:
        raise ProbeError("expected the JSON of probe study with a calibration: its scans have no failure to judge by")
    scores = list(dict.fromkeys(str(row["score"]) for row in rows))

    def at(share: float) -> float:
        return SIDE * share

    parts = [text(LEFT, 18, "probability of failure said by the other models, and what failed [95%]")]
    parts += [f'<g transform="translate({LEFT},{TOP - 20})">', *unit_axes(SIDE, "said", "failed")]
    for number, score in enumerate(scores):
        colour = CURVES[number % len(CURVES)]
        mine = [row for row in rows if row["score"] == score]
        line = " ".join(f"{at(row['said']):.1f},{SIDE - at(row['share']):.1f}" for row in mine)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        for row in mine:
            x, low, high = at(row["said"]), SIDE - at(row["share_low"]), SIDE - at(row["share_high"])
            parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity="0.6"/>')
            words = f"{score}: {row['failing']} of {row['pairs']} fail, said {row['said']:.0%}"
            place = f'cx="{x:.1f}" cy="{SIDE - at(row["share"]):.1f}" r="{2 + math.log10(row["pairs"]):.1f}"'
            parts.append(f'<circle {place} fill="{colour}"><title>{words}</title></circle>')
        parts.append(f'<circle cx="{SIDE + 18}" cy="{10 + 18 * number}" r="4" fill="{colour}"/>')
        kind = str(mine[0]["kind"])
        said = score if kind in score else f"{score}, {kind}"
        parts.append(text(SIDE + 28, 14 + 18 * number, said, font_size="11"))
    return page(LEFT + SIDE + RIGHT, TOP + SIDE + 36, "Calibration of predicted failures", [*parts, "</g>"])


def unit_axes(side: float, across: str, up: str, diagonal: str = "") -> list[str]:
    """A square of two shares, 0 to 100%, with its diagonal and what each side is."""
    parts = [f'<rect width="{side}" height="{side}" fill="none" stroke="#ccc"/>']
    for n in range(6):
        at = side * n / 5
        parts.append(f'<path d="M{at:.1f} 0V{side}M0 {side - at:.1f}H{side}" stroke="#eee"/>')
        parts.append(text(at, side + 16, f"{n * 20}%", text_anchor="middle", font_size="11"))
        parts.append(text(-6, side - at + 4, f"{n * 20}%", text_anchor="end", font_size="11"))
    parts.append(f'<path d="M0 {side}L{side} 0" stroke="#aaa" stroke-dasharray="{diagonal}"/>')
    parts.append(text(side / 2, side + 36, across, text_anchor="middle"))
    turned = f"rotate(-90 -42 {side / 2})"
    parts.append(text(-42, side / 2, up, text_anchor="middle", transform=turned))
    return parts


def write(results: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """`study.svg` of scans and `calibration.svg` of a study in a folder, which is made.

    Args:
        results: scans, or studies (`probe study --out`), or both, as `Result.to_json` has them.
        folder: where they go.

    Raises:
        ProbeError: as `study_svg` and `calibration_svg`.
    """
    studies = [one for one in results if one.get("kind") == "study"]
    scans = [one for one in results if one.get("kind") != "study"]
    drawn = {"study.svg": study_svg(scans)} if scans else {}
    if studies:
        drawn["calibration.svg"] = calibration_svg([row for one in studies for row in one.get("calibration", ())])
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        (folder / name).write_text(svg, encoding="utf-8")
    return [folder / name for name in drawn]
