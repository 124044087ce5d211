"""The paper's figures of hidden dimensions by their numbers: what each shows, and of any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from probe.errors import FieldError, literal
from probe.figures.maps import maps_figure
from probe.figures.page import put_script, write_page
from probe.figures.thresholds import threshold_figure
from probe.recording.folder import Run
from probe.tables import Table

FORMATS = ("html", "svg", "png")
WIDTH = 1100
"""Pixels of a still picture whose figure takes what width there is."""


@dataclass(frozen=True)
class NamedFigure:
    """One row.

    Attributes:
        name: its number in the paper.
        help: what it shows, in a few words.
        draw: from a run.
        schemes: that the paper shows.
        layers: that it shows; None for all.
        dims: that it shows; None for all.
    """

    name: str
    help: str
    draw: Callable[[Run], go.Figure]
    schemes: str
    layers: tuple[int, ...] | None
    dims: tuple[int, ...] | None


def _curves(name: str, layers: tuple[int, ...], dims: tuple[int, ...]) -> NamedFigure:
    said = "chosen dimensions over positions, with M, H and the likelihood"
    return NamedFigure(name, said, threshold_figure, "origin,dynamic-ntk,rerope", layers, dims)


def _maps(name: str) -> NamedFigure:
    return NamedFigure(
        name, "all dimensions over positions from M on, by layer", maps_figure, "origin,rerope", None, None
    )


FIGURES: Table[NamedFigure] = Table(
    "figure",
    NamedFigure,
    (
        _curves("2", (1, 2), (1, 6, 7, 9)), _maps("11"), _maps("12"), _curves("13", (1, 2), (1, 6, 7, 9)),
        _curves("14", (4,), (4, 10)), _maps("15"), _maps("16"),
    ),
)  # fmt: skip
"""Figures 11, 12, 15 and 16 of the paper differ in their model, and so do 2, 13 and 14 but for the dimensions."""


def write_figure(figure: go.Figure, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """A figure in several formats, HTML with plotly.js beside it.

    Args:
        figure: what to write.
        folder: where; it is made.
        name: of the files, without an ending.
        formats: of `FORMATS`.

    Raises:
        FieldError: an unknown format, or one that needs kaleido and a Chromium that are not there.
    """
    for one in formats:
        if one not in FORMATS:
            raise FieldError("format", f"some of {', '.join(FORMATS)}", literal(one))
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for one in formats:
        path = folder / f"{name}.{one}"
        if one == "html":
            write_page(figure, path, name, beside=True)
            put_script(folder)
        else:
            _still(figure, path)
        made.append(path)
    return made


def _still(figure: go.Figure, path: Path) -> None:
    """A still picture, by kaleido, which drives a Chromium."""
    try:
        figure.write_image(path, width=figure.layout.width or WIDTH, scale=2 if path.suffix == ".png" else 1)
    except Exception as error:  # whatever kaleido, or the browser that it drives, ends with
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FieldError(
            "format",
            hint=f"{path.suffix[1:]} needs kaleido and a Chromium: pip install 'weavescope[figures]'; html needs "
            f"neither ({literal(said)})",
        ) from None
