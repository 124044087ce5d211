"""What needles are hidden in: a stream of filler of any length, and places in it where a sentence ends."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from probe.errors import FieldError, literal, unknown
from probe.tasks.corpus import documents
from probe.tasks.documents import DOCUMENTS
from probe.tasks.measure import Measure
from probe.tasks.passkey import FILLER

NOISE = "noise"
HAYSTACKS = (NOISE, "heldout", "documents", "text:FILE")
"""What can be named: RULER's five sentences, the standard library's prose, the shipped long documents, a file."""

_REACH = 24
"""Units to either side in which a needle's place moves to the end of a sentence."""


def haystack_text(spec: str) -> str:
    """The text of a haystack that is not noise.

    Raises:
        FieldError: no such kind, or a file that cannot be read or is empty.
    """
    kind, colon, path = spec.partition(":")
    if kind == "text" and colon:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            said = f"cannot read {literal(path)}: {type(error).__name__}"
            raise FieldError("haystack", hint=said, value=literal(spec)) from None
        if not text.strip():
            raise FieldError("haystack", "a file with some text", "an empty one", value=literal(spec))
        return text
    if spec == "heldout":
        return _prose()
    if spec == "documents":
        return "\n\n".join(row.text() for row in DOCUMENTS.values())
    raise unknown("haystack", spec, HAYSTACKS)


@lru_cache(maxsize=1)
def _prose() -> str:
    """Docstrings and manual topics of the held-out split: prose, where sources are mostly names."""
    return "\n\n".join(text for path, text in documents("heldout") if path.endswith("#doc"))


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Words of four to ten letters that the shipped documents use, sorted: what lists of words are drawn from."""
    found: set[str] = set()
    for row in DOCUMENTS.values():
        found |= set(re.findall(r"\b[a-z]{4,10}\b", row.text()))
    return tuple(sorted(found))


@lru_cache(maxsize=4)
def _sentences(spec: str) -> tuple[str, ...]:
    """What a haystack repeats, each as it comes inside a text."""
    if spec == NOISE:
        return FILLER
    found = re.split(r"(?<=[.!?])\s+", " ".join(haystack_text(spec).split()))
    return tuple(f" {sentence}" for sentence in found if sentence)


def take_haystack(measure: Measure, spec: str, count: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Filler from a haystack, which begins anew where it ends.

    Args:
        measure: cuts it into units.
        spec: one of `HAYSTACKS`.
        count: units to take.
        rng: draws the sentence to begin with.

    Returns:
        (the units, where sentences end in them).

    Raises:
        FieldError: there is no such haystack, or it cannot be read.
    """
    sentences = _sentences(spec)
    at = int(rng.integers(len(sentences)))
    cut: dict[int, list[int]] = {}
    units: list[int] = []
    ends = []
    while len(units) < count:
        number = at % len(sentences)
        if number not in cut:
            cut[number] = measure.inside(sentences[number])
        units += cut[number]
        ends.append(len(units))
        at += 1
    return units[:count], [end for end in ends if end <= count]


def snapped(place: int, ends: Sequence[int], room: int) -> int:
    """The end of a sentence nearest to a place, if there is one within reach; 0 and `room` are ends too."""
    if place in (0, room):
        return place
    at = bisect.bisect_left(ends, place)
    near = [end for end in (0, *ends[max(0, at - 1) : at + 1], room) if abs(end - place) <= _REACH]
    return min(near, key=lambda end: abs(end - place), default=place)


def hide(
    filler: tuple[list[int], list[int]], needles: Sequence[tuple[float, Sequence[int]]]
) -> tuple[list[int], list[float]]:
    """Put needles into filler.

    Args:
        filler: from `take_haystack`.
        needles: (share of the filler that comes before it, its units), in any order.

    Returns:
        (the units, where each needle came to be: the share of the filler before it).
    """
    units, ends = filler
    room = len(units)
    places = [snapped(round(depth * room), ends, room) for depth, _ in needles]
    body: list[int] = []
    before = 0
    for number in sorted(range(len(needles)), key=lambda one: (places[one], one)):
        body += units[before : places[number]]
        body += needles[number][1]
        before = places[number]
    return body + units[before:], [place / room if room else 0.0 for place in places]
