"""The Mesa page's picture is what the script draws, and the cost it states is what is visited."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.commands.main import main
from probe.errors import ProbeError
from probe.figures.mesa import draw
from probe.schemes import parse_scheme
from probe.schemes.mesa import split_of
from probe.schemes.pieces import compile_pieces
from probe.schemes.scheme import Extent

DOCS = Path(__file__).parents[2] / "docs"


def test_the_picture_is_up_to_date(tmp_path: Path) -> None:
    committed = (DOCS / "figures" / "mesa.svg").read_text(encoding="utf-8")
    assert committed == draw(512, 2048) and ElementTree.fromstring(committed).tag.endswith("svg")
    assert main(["figure", "mesa", str(tmp_path / "new"), "--window", "64", "--length", "300"]) == 0
    assert main(["figure", "mesa", str(tmp_path / "new"), "--window", "64", "--length", "64"]) == 2


def texts(picture: str) -> list[tuple[str, float, float]]:
    """Words of a picture, with where they stand; those that are turned have no place."""
    found = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    return [(text.text or "", float(text.get("x", "nan")), float(text.get("y", "nan"))) for text in found]


def test_both_axes_begin_at_0_end_with_the_prompt_and_are_named() -> None:
    words = texts(draw(512, 2048))
    # By hand: F = 25, four chunks of 473, then the last from 1917 on.
    assert sorted(int(word) for word, _, _ in words if word.isdigit()) == sorted(
        [0, 25, 498, 971, 1444, 1917, 2048] * 2
    )
    assert {"query", "key"} <= {word for word, _, _ in words}


@given(window=st.integers(16, 80), times=st.floats(1.05, 20))
def test_no_two_labels_of_an_axis_overlap(window: int, times: float) -> None:
    ticks = [(word, x, y) for word, x, y in texts(draw(window, int(window * times) + 1)) if word.isdigit()]
    for n, (_, x, y) in enumerate(ticks):
        assert all(abs(x - right) >= 3 * len(word) or abs(y - below) >= 11 for word, right, below in ticks[n + 1 :])


def test_the_picture_follows_the_parameters_and_says_when_it_cannot() -> None:
    # n = floor((600 - 300 - 200)/312) = 0 whole chunks and 100 tokens left, more than M_max: one chunk of 100.
    assert "F = 200, 1 chunk of C = 100, last chunk 300" in draw(512, 600, F=200, L=300)
    assert "no middle chunk, last chunk 400" in draw(512, 600, F=200, L=400)
    for parameters, said in (({"F": 512}, "F: expected 1 to 511"), ({"F": 511}, "at most 400")):
        with pytest.raises(ProbeError, match=said):
            draw(512, 2048, **parameters)


@given(window=st.integers(16, 80), times=st.floats(1.05, 9))
def test_pairs_are_what_the_pieces_visit(window: int, times: float) -> None:
    prompt = int(window * times) + 1
    scheme = parse_scheme("mesa", window)
    split = split_of(scheme.parameters, Extent(prompt, prompt, window))
    assert split is not None
    weave, visibility = scheme.weave_at(prompt), scheme.visibility_at(prompt)
    visited = sum(piece.pairs() for piece in compile_pieces(weave, visibility, 0, prompt))
    seen = visibility.sees(torch.arange(prompt)[:, None], torch.arange(prompt)[None])
    assert split.pairs() == visited == int(seen.sum())


@pytest.mark.parametrize("row", ["| 8M | 8 | 1948 | 700 | 21% |", "| 32M | 34 | 1909 | 530 | 5% |"])
def test_the_cost_table_is_the_splits(row: str) -> None:
    times, chunks, width, last, share = (cell.strip() for cell in row.strip("| ").split("|"))
    prompt = int(times[:-1]) * 2048
    split = split_of(parse_scheme("mesa", 2048).parameters, Extent(prompt, prompt, 2048))
    assert split is not None
    got = (split.chunks, split.C, prompt - split.last, f"{split.pairs() / (prompt * (prompt + 1) / 2):.0%}")
    assert got == (int(chunks), int(width), int(last), share)
    assert row in (DOCS / "mesa.md").read_text(encoding="utf-8")
