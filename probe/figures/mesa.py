"""The chunk-triangular matrix of Mesa for a real split, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from probe.errors import FieldError, ProbeError
from probe.schemes import make_scheme
from probe.schemes.mesa import split_of
from probe.schemes.scheme import Extent
from probe.schemes.split import Split

SIDE, LEFT, TOP, RIGHT, BOTTOM = 420, 104, 46, 60, 124
FIRST, OWN, LAST = "#d55e00", "#0072b2", "#009e73"
MAX_CHUNKS = 400
"""Middle chunks drawn at most: more are narrower than a pixel."""


def _shape(split: Split, corners: Sequence[tuple[float, float]], colour: str, title: str) -> str:
    """A polygon of (key, query) corners, with a title that a pointer shows."""
    scale = SIDE / split.prompt
    points = " ".join(f"{LEFT + key * scale:.1f},{TOP + query * scale:.1f}" for key, query in corners)
    return f'<polygon points="{points}" fill="{colour}"><title>{title}</title></polygon>'


def _chunk(split: Split, start: int, stop: int) -> list[str]:
    """A middle chunk: chunk 0's columns, and its own triangle."""
    where = f"queries {start} to {stop - 1}"
    return [
        _shape(split, [(0, start), (split.F, start), (split.F, stop), (0, stop)], FIRST, f"{where}: all of chunk 0"),
        _shape(split, [(start, start), (stop, stop), (start, stop)], OWN, f"{where}: their own chunk, causally"),
    ]


def _lanes(split: Split, least: float) -> list[tuple[int, int]]:
    """Where chunks begin and the prompt ends, each with a lane of labels; what lacks `least` pixels there is left out.

    The ends of chunk 0 and of the middle chunks go to lane 1 instead, which is beside it.
    """
    scale = SIDE / split.prompt
    taken: tuple[list[int], list[int]] = ([], [])
    for place in dict.fromkeys([0, split.prompt, *split.borders]):
        lanes = taken if place in (split.F, split.last) else taken[:1]
        free = [lane for lane in lanes if all(abs(place - other) * scale >= least for other in lane)]
        if free:
            free[0].append(place)
    return sorted((place, lane) for lane in (0, 1) for place in taken[lane])


def _query_ticks(split: Split) -> list[str]:
    """Labels left of the square, from 0 at the top."""
    marks = []
    for place, lane in _lanes(split, 13):
        y, reach = TOP + place * SIDE / split.prompt, 5 + 36 * lane
        marks.append(f'<path d="M{LEFT} {y:.1f}h{-reach}" stroke="#999"/>')
        marks.append(f'<text x="{LEFT - reach - 3}" y="{y + 4:.1f}" text-anchor="end">{place}</text>')
    return marks


def _key_ticks(split: Split) -> list[str]:
    """Labels below the square."""
    marks = []
    for place, lane in _lanes(split, 8 * len(str(split.prompt)) + 4):
        x, reach = LEFT + place * SIDE / split.prompt, 5 + 15 * lane
        marks.append(f'<path d="M{x:.1f} {TOP + SIDE}v{reach}" stroke="#999"/>')
        marks.append(f'<text x="{x:.1f}" y="{TOP + SIDE + reach + 12}" text-anchor="middle">{place}</text>')
    return marks


def _legend(y: float) -> list[str]:
    """What the colours are, in a row."""
    marks, x = [], float(LEFT)
    for colour, words in ((FIRST, "chunk 0"), (OWN, "own chunk"), (LAST, "last chunk, sees all")):
        marks.append(f'<rect x="{x:g}" y="{y - 10:g}" width="12" height="12" fill="{colour}"/>')
        marks.append(f'<text x="{x + 17:g}" y="{y:g}">{words}</text>')
        x += 40 + 7 * len(words)
    return marks


def share(split: Split) -> float:
    """Visible pairs of the prefill as a share of all causal pairs, 0 to 1."""
    return split.pairs() / (split.prompt * (split.prompt + 1) / 2)


def draw(window: int, length: int, **parameters: int) -> str:
    """The picture for a window and a prompt length, tokens.

    Args:
        window: trained window M.
        length: the prompt's tokens T.
        parameters: of mesa, where they are not the defaults.

    Raises:
        ProbeError: the prompt is inside the window, where nothing is split; parameters outside their domain; more
        chunks than can be seen.
    """
    if length <= window:
        raise FieldError("length", f"more than the window of {window}", length)
    split = split_of(make_scheme("mesa", window, **parameters).parameters, Extent(length, length, window))
    assert split is not None, "a prompt longer than the window is split"
    if split.chunks > MAX_CHUNKS:
        raise ProbeError(f"a picture shows at most {MAX_CHUNKS} middle chunks, got {split.chunks}")
    shapes = [_shape(split, [(0, 0), (split.F, split.F), (0, split.F)], FIRST, f"chunk 0: {split.F} tokens")]
    for n in range(split.chunks):
        shapes += _chunk(split, split.F + n * split.C, split.F + (n + 1) * split.C)
    corners = [(0, split.last), (split.last, split.last), (length, length), (0, length)]
    shapes.append(_shape(split, corners, LAST, f"last chunk: queries {split.last} to {length - 1} see every key"))
    middle = f"{split.chunks} chunk{'s' * (split.chunks > 1)} of C = {split.C}" if split.chunks else "no middle chunk"
    title = f"M = {window}, T = {length}: F = {split.F}, {middle}, last chunk {length - split.last}"
    width, height = LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM
    frame = f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="#fff" stroke="#999"/>'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="14">{title}</text>',
        frame, *shapes, *_query_ticks(split), *_key_ticks(split),
        f'<text transform="translate({LEFT - 84} {TOP + SIDE / 2}) rotate(-90)" text-anchor="middle">query</text>',
        f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 52}" text-anchor="middle">key</text>',
        *_legend(TOP + SIDE + 84),
        f'<text x="{LEFT}" y="{TOP + SIDE + 108}">{share(split):.0%} of the causal pairs are visited</text>',
        "</svg>", "",
    ])  # fmt: skip


def write(folder: Path, window: int, length: int, **parameters: int) -> Path:
    """Draw into `mesa.svg` of a folder, which is made; arguments as `draw` takes them. Returns the file.

    Raises:
        ProbeError: what `draw` refuses, or the folder cannot be written.
    """
    picture, file = draw(window, length, **parameters), folder / "mesa.svg"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise FieldError("folder", hint=f"cannot write there ({error.strerror})", value=folder) from None
    return file
