"""Signals and detectors as one picture: how many failures each speaks at, and how often where nothing fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.errors import ProbeError
from probe.figures.run import page, text
from probe.figures.study import unit_axes

SIDE, LEFT, TOP, RIGHT = 440, 60, 60, 220
"""Pixels of the square, and around it."""
COLOURS = {"range": "#0072B2", "paper": "#B00020", "change": "#009E73", "multivariate": "#CC79A7"}
OTHER = "#8C6D1F"
TITLES = "false alarms, of those that hold", "failures at which it speaks"
NAMED = 4
"""Points with their signal's name beside them: those with the largest share of hits less that of false alarms."""


def leads_svg(summaries: Sequence[Any], said: str) -> str:
    """A point per signal and detector: share of the failures at which it speaks, over the share of those that hold in
    which it speaks; filled where it speaks before the likelihood in the median.

    Args:
        summaries: of `lead_summaries`, the best first.
        said: of what, in words.

    Raises:
        ProbeError: nothing fails, or nothing holds, so that there is no share.
    """
    summaries = [one for one in summaries if one.detector]  # not what is chosen of them
    if not summaries or not summaries[0].failing or summaries[0].pairs == summaries[0].failing:
        raise ProbeError("expected results of probe leads in which something fails and something holds")
    parts = [text(LEFT, 20, f"who speaks at a failure, and who where nothing fails: {said}")]
    parts += [f'<g transform="translate({LEFT},{TOP - 20})">', *unit_axes(SIDE, *TITLES, "3 3")]
    placed: list[tuple[float, float]] = []
    for number, one in enumerate(summaries):
        x = SIDE * one.false_alarms / (one.pairs - one.failing)
        y = SIDE * (1 - one.hits / one.failing)
        colour = COLOURS.get(one.detector, OTHER)
        early = one.lead is not None and one.lead > 0
        lead = "never speaks at a failure" if one.lead is None else f"median lead {one.lead:+.2f} windows"
        counts = f"{one.hits} of {one.failing} failures, {one.false_alarms} false alarms"
        words = f"{one.signal}, {one.detector}: {counts}, {lead}"
        fill = f'fill="{colour}" fill-opacity="0.7"' if early else 'fill="none"'
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="4.5"'
        parts.append(f'<circle {place} {fill} stroke="{colour}"><title>{words}</title></circle>')
        if number < NAMED:
            parts.append(_name(x, y, f"{one.signal}, {one.detector}", colour, placed))
    for number, (name, colour) in enumerate(COLOURS.items()):
        parts.append(f'<circle cx="{SIDE + 18}" cy="{10 + 18 * number}" r="4.5" fill="{colour}"/>')
        parts.append(text(SIDE + 28, 14 + 18 * number, name, font_size="11"))
    for number, (fill, what) in enumerate((("#333", "speaks before, in the median"), ("none", "with it, or after"))):
        y = 24 + 18 * (len(COLOURS) + number)
        parts.append(f'<circle cx="{SIDE + 18}" cy="{y}" r="4.5" fill="{fill}" stroke="#333"/>')
        parts.append(text(SIDE + 28, y + 4, what, font_size="11"))
    return page(LEFT + SIDE + RIGHT, TOP + SIDE + 36, "Who speaks at a failure", [*parts, "</g>"])


def _name(x: float, y: float, said: str, colour: str, placed: list[tuple[float, float]]) -> str:
    """A point's name right of it, moved down where another one is."""
    at = y + 4
    while any(abs(at - other) < 12 and abs(x - left) < 170 for left, other in placed):
        at += 12
    placed.append((x, at))
    return text(x + 8, at, said, font_size="11", fill=colour, stroke="#fff", stroke_width="3", paint_order="stroke")


def write(results: Sequence[Mapping[str, Any]], summaries: Sequence[Any], folder: Path) -> Path:
    """`leads.svg` in a folder, which is made.

    Args:
        results: of `probe leads`, as `Result.to_json` has them.
        summaries: of all of them.
        folder: where it goes.

    Raises:
        ProbeError: as `leads_svg`.
    """
    models = dict.fromkeys(str(result["settings"]["model"]) for result in results)
    drawn = leads_svg(summaries, f"{len(models)} models" if len(models) > 1 else next(iter(models), "no model"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "leads.svg"
    path.write_text(drawn, encoding="utf-8")
    return path
