"""The theory page: its commands exist, its tables are what the commands print, its figures are there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from constructions.__main__ import _parser
from constructions.errata import ERRATA
from constructions.figures import FIGURES, Axes, Curve, svg
from constructions.tables import horizon_table, precision_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m constructions ([^`#\n]+)", PAGE))))
def test_every_command_on_the_page_is_understood(command):
    _parser().parse_args(command.split())


def test_every_erratum_is_on_the_page_with_its_command():
    shown = re.findall(r"constructions erratum ([a-z0-9-]+)", PAGE)
    assert shown == list(ERRATA)


@pytest.mark.parametrize("node", re.findall(r"pytest (tests/constructions/\S+::\w+)", PAGE))
def test_every_test_named_on_the_page_exists(node):
    path, name = node.split("::")
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_tables_on_the_page_are_what_the_commands_print():
    assert precision_table() in PAGE
    assert horizon_table(32, 4, 4, 1.0) in PAGE


def test_every_figure_on_the_page_is_drawn_and_committed():
    names = re.findall(r"figures/theory/(\w+)\.svg", PAGE)
    assert sorted(names) == sorted(FIGURES)
    for name in names:
        assert (ROOT / "docs" / "figures" / "theory" / f"{name}.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_figure_draws_every_point_where_there_is_room_and_else_the_extremes():
    sparse = Curve("a", np.arange(1, 11), np.arange(1, 11))
    dense = Curve("b", np.arange(1, 10_001), np.tile([0.0, 1.0], 5000))
    axes = Axes((1, 10_000), (0, 10), log_x=False)
    text = svg("title <&>", axes, [sparse, dense], {"M": 5}, 0.5)
    few, many = re.findall(r'points="([^"]+)"', text)
    assert len(few.split()) <= 10 and len(many.split()) < 2 * 760 + 2
    assert {round(axes.down(0.0), 1), round(axes.down(1.0), 1)} == {
        float(point.split(",")[1]) for point in many.split()
    }
    assert "title &lt;&amp;&gt;" in text
