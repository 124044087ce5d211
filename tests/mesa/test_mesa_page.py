"""The Mesa page's picture is what the script draws, and the cost it states is what is visited."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.figures.mesa import draw, main
from probe.schemes import parse_scheme
from probe.schemes.mesa import split_of
from probe.schemes.pieces import compile_pieces
from probe.schemes.scheme import Extent

DOCS = Path(__file__).parents[2] / "docs"


def test_the_picture_is_up_to_date(tmp_path: Path) -> None:
    committed = (DOCS / "figures" / "mesa.svg").read_text(encoding="utf-8")
    assert committed == draw(512, 2048) and ElementTree.fromstring(committed).tag.endswith("svg")
    assert main([str(tmp_path / "new.svg"), "--window", "64", "--length", "300"]) == 0
    assert main([str(tmp_path / "new.svg"), "--window", "64", "--length", "64"]) == 2


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
