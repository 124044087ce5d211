"""How charts look, in light and dark: colours, and the layout that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from probe.figures.style import scheme_colour

CONFIG = {"displaylogo": False, "responsive": True,
          "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d",
                                     "zoom2d", "pan2d"]}  # fmt: skip
"""Of every chart."""


@dataclass(frozen=True)
class Look:
    """Colours of one theme.

    Attributes:
        dark: whether it is the dark one.
        ink: text.
        faint: axes and what is said in passing.
        grid: lines of the grid.
        paper: behind a label.
        window: what marks M.
        threshold: what marks H and the likelihood's band.
    """

    dark: bool
    ink: str
    faint: str
    grid: str
    paper: str
    window: str
    threshold: str

    def scheme(self, spec: str) -> str:
        """The colour of a scheme, the same on every page and in every figure, but for black, which is white here on
        dark ground.
        """
        found = scheme_colour(spec)
        return (
            {"#000000": "#F5F5F5", "#0072B2": "#4AA8E0", "#7B3FA0": "#B48AD0"}.get(found, found) if self.dark else found
        )

    def sequence(self) -> list[list[Any]]:
        """A sequential scale from little to much that keeps its order without colour (viridis)."""
        stops = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
        return [[at / 4, colour] for at, colour in enumerate(stops)]


LIGHT = Look(False, "#1F2328", "#59636E", "#E4E7EB", "rgba(255,255,255,0.8)", "#59636E", "#B00020")
DARK = Look(True, "#E6E8EB", "#A5ADB7", "#30363D", "rgba(14,17,23,0.8)", "#A5ADB7", "#FF6B7A")


def look() -> Look:
    """That of the reader's theme, which follows the system."""
    return DARK if st.context.theme.type == "dark" else LIGHT


def axis(now: Look, title: str, **more: Any) -> dict[str, Any]:
    """An axis with its unit."""
    return {
        "title": {"text": title, "standoff": 6, "font": {"size": 13}}, "gridcolor": now.grid, "zeroline": False,
        "linecolor": now.faint, "tickfont": {"color": now.faint, "size": 12}, "automargin": True, **more,
    }  # fmt: skip


def layout(now: Look, height: int, **more: Any) -> dict[str, Any]:
    """What charts share; zoom and hidden lines survive a redraw."""
    return {
        "height": height, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "uirevision": "kept",
        "font": {"family": "Source Sans, Source Sans Pro, sans-serif", "size": 13, "color": now.ink},
        "margin": {"l": 56, "r": 34, "t": 36, "b": 44}, "hovermode": "closest",
        "modebar": {"orientation": "v", "bgcolor": "rgba(0,0,0,0)", "color": now.faint, "activecolor": now.ink},
        "dragmode": "zoom",
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 13}},
        **more,
    }  # fmt: skip


def chart(figure: dict[str, Any], key: str, alt: str, **more: Any) -> Any:
    """Show a chart; `alt` is what a screen reader says of it."""
    return st.plotly_chart(figure, theme=None, key=key, config=CONFIG, alt=alt, **more)
