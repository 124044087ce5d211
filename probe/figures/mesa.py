"""The chunk-triangular matrix of Mesa for a real split, as SVG: `python -m probe.figures.mesa --window 512 --length 2048 FILE.svg`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from probe.errors import ProbeError, exit_code
from probe.mesa.split import Split, dynamic_split
from probe.schemes import make_scheme

SIDE, LEFT, TOP = 420, 76, 46
FIRST, OWN, LAST = "#d55e00", "#0072b2", "#009e73"


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


def _label(split: Split, query: float, words: str) -> str:
    return f'<text x="{LEFT - 8}" y="{TOP + query * SIDE / split.prompt + 4:.1f}" text-anchor="end">{words}</text>'


def draw(window: int, length: int) -> str:
    """The picture for mesa's defaults at a window and a prompt length, tokens.

    Raises:
        ProbeError: the prompt is inside the window, where nothing is split.
    """
    if length <= window:
        raise ProbeError(f"--length: expected more than the window of {window}, got {length}")
    p = make_scheme("mesa", window).parameters
    split = dynamic_split(length, window, *(int(p[name]) for name in ("F", "L", "M_max")))
    shapes = [_shape(split, [(0, 0), (split.F, split.F), (0, split.F)], FIRST, f"chunk 0: {split.F} tokens")]
    for n in range(split.chunks):
        shapes += _chunk(split, split.F + n * split.C, split.F + (n + 1) * split.C)
    corners = [(0, split.last), (split.last, split.last), (length, length), (0, length)]
    shapes.append(_shape(split, corners, LAST, f"last chunk: queries {split.last} to {length - 1} see every key"))
    labels = [_label(split, border, str(border)) for border in [*split.borders, length]]
    share = split.pairs() / (length * (length + 1) / 2)
    title = f"M = {window}, T = {length}: F = {split.F}, {split.chunks} chunks of C = {split.C}, last chunk {length - split.last}"
    legend = f"{share:.0%} of the causal pairs; orange: chunk 0, blue: own chunk, green: last chunk (Stair PE)"
    frame = f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="#fff" stroke="#999"/>'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE + LEFT + 150} {SIDE + TOP + 60}" '
        f'width="{SIDE + LEFT + 150}" height="{SIDE + TOP + 60}" font-family="sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{title}</text>', frame, *shapes, *labels,
        f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 20}" text-anchor="middle">key</text>',
        f'<text x="{LEFT}" y="{TOP + SIDE + 44}">{legend}</text>', "</svg>", "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m probe.figures.mesa", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--length", type=int, default=2048)
    args = parser.parse_args(argv)
    return exit_code(lambda: _write(args.file, draw(args.window, args.length)))


def _write(file: Path, picture: str) -> None:
    try:
        file.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise ProbeError(f"{file}: cannot write there ({error.strerror})") from None


if __name__ == "__main__":
    raise SystemExit(main())
