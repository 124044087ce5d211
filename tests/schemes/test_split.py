"""DynamicSplit: what the paper asks of it, for any prompt and parameters."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probe.errors import ProbeError
from probe.schemes import parse_scheme
from probe.schemes.split import Split, dynamic_split


@st.composite
def settings(draw: st.DrawFn) -> dict[str, int]:
    window = draw(st.integers(2, 3000))
    return {
        "window": window, "F": draw(st.integers(1, window - 1)), "L": draw(st.integers(1, 600)),
        "M_max": draw(st.integers(0, 600)), "prompt": window + draw(st.integers(1, 8 * window)),
    }  # fmt: skip


def widths(split: Split) -> list[int]:
    """Tokens of every chunk."""
    starts = [0, *split.borders, split.prompt]
    return [b - a for a, b in pairwise(starts)]


@given(at=settings())
@example(at={"window": 4, "F": 3, "L": 2, "M_max": 0, "prompt": 9})
def test_chunks_cover_the_prompt_inside_the_window(at: dict[str, int]) -> None:
    split = dynamic_split(**at)
    first, *middle, last = widths(split)
    assert sum(widths(split)) == at["prompt"] and min(widths(split)) > 0
    assert at["F"] == first and middle == [split.C] * split.chunks
    assert (split.C > 0) == (split.chunks > 0) and at["window"] >= split.F + split.C
    assert last >= min(at["L"], at["prompt"] - at["F"])


@given(at=settings())
@example(at={"window": 4, "F": 3, "L": 2, "M_max": 0, "prompt": 9})
def test_the_last_chunk_takes_no_more_than_the_algorithm_leaves_it(at: dict[str, int]) -> None:
    """L and less than M_max where chunks are as wide as can be; else L and fewer tokens than there are chunks."""
    split = dynamic_split(**at)
    spare = at["prompt"] - split.last - at["L"]
    if split.chunks:
        full = at["window"] - at["F"] == split.C
        assert spare < max(split.chunks, at["M_max"] if full else 0)


@given(at=settings())
def test_pairs_are_those_of_the_visibility(at: dict[str, int]) -> None:
    at = at | {"window": min(at["window"], 40)}
    at |= {"F": min(at["F"], at["window"] - 1), "prompt": min(at["prompt"], 200)}
    if at["prompt"] <= at["window"]:
        return
    parameters = ",".join(f"{name}={at[name]}" for name in ("F", "L", "M_max"))
    visibility = parse_scheme(f"mesa({parameters})", at["window"]).visibility_at(at["prompt"])
    seen = sum(bool(visibility.sees(t, i)) for t in range(at["prompt"]) for i in range(t + 1))
    assert dynamic_split(**at).pairs() == seen


def test_a_prompt_not_longer_than_chunk_0_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"expected a prompt longer than chunk 0 \(7 tokens\), got 7"):
        dynamic_split(7, window=9, F=7, L=1, M_max=0)
