"""Presets: their defaults, what each lets a query see, and what all of them have in common."""

from __future__ import annotations

import itertools

import pytest
import torch

from constructions.weave import CacheIndex, Clamp, DualChunk, Grouped, Linear, Switched
from probe.attention.dense import visible_mask
from probe.schemes import OPTIONS, PRESETS, make_scheme, parse_scheme
from probe.schemes.visibility import Lambda

COMBINED = ("streaming-llm+bottom", "lm-infinite+bottom", "star(B=8)+rerope", "stair+yarn", "rerope+lambda+logn")
ALL = (*PRESETS, *COMBINED)
SEES_ALL = {
    "origin",
    "dynamic-ntk",
    "pi",
    "ntk",
    "yarn",
    "rerope",
    "leaky-rerope",
    "stair",
    "self-extend",
    "dual-chunk",
    "nope",
    "stair+yarn",
}


def defaults(name: str, window: int) -> dict[str, float]:
    return make_scheme(name, window).parameters


def test_defaults_are_the_published_ones_from_2048_on_and_in_proportion_below() -> None:
    assert defaults("self-extend", 4096) == {"W": 1024, "G": 4}
    assert defaults("dual-chunk", 4096) == {"s": 2816, "c": 3072}  # 3M/4, and M/16 less
    assert defaults("streaming-llm", 4096) == {"x": 4, "y": 4092}
    assert defaults("lm-infinite", 2048) == {"n_global": 100, "n_local": 2048}
    assert defaults("yarn", 4096) == {"s": 0, "beta_fast": 32, "beta_slow": 1}
    assert defaults("ntk", 4096) == {"a": 8} and defaults("star", 4096) == {"B": 0, "L": 0}
    assert defaults("self-extend", 512) == {"W": 256, "G": 4}
    assert defaults("lm-infinite", 512) == {"n_global": 25, "n_local": 512}
    assert OPTIONS["bottom"].defaults(4096) == {"L": 512, "N": 512, "E": 50}


@pytest.mark.parametrize("window", [2, 3, 7, 16, 100, 2047, 131072])
@pytest.mark.parametrize("name", [*PRESETS, *(f"origin+{option}" for option in OPTIONS)])
def test_defaults_are_valid_at_every_window(name: str, window: int) -> None:
    scheme = parse_scheme(name, window)
    for length in (1, 2, window, 3 * window + 1):
        assert scheme.weave_at(length)(0, 0) == 0 and bool(scheme.visibility_at(length).sees(0, 0))


@pytest.mark.parametrize("name", ALL)
def test_every_query_sees_itself_at_0_and_nothing_later(name: str) -> None:
    scheme, length = parse_scheme(name, 32), 100
    mask = visible_mask(scheme.visibility_at(length), 0, length)
    assert bool(mask.diagonal().all()) and not bool(mask.triu(1).any())
    weave = scheme.weave_at(length)
    assert all(weave(t, t) == 0 for t in range(length))
    assert bool((mask == torch.ones_like(mask).tril()).all()) == (name in SEES_ALL)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("dual-chunk",)])
def test_over_the_visible_keys_a_farther_one_is_not_nearer(name: str) -> None:
    scheme, length = parse_scheme(name, 32), 100
    weave, mask = scheme.weave_at(length), visible_mask(scheme.visibility_at(length), 0, length)
    for t in range(length):
        positions = [weave(t, i) for i in range(t, -1, -1) if mask[t, i]]
        assert all(nearer <= farther + 1e-9 for nearer, farther in itertools.pairwise(positions))


@pytest.mark.parametrize("name", ["rerope", "self-extend", "dual-chunk", "streaming-llm", "lm-infinite"])
def test_positions_stay_within_the_window(name: str) -> None:
    """At lengths that the defaults reach. LM-Infinite's limit is M itself, one past the largest trained distance."""
    scheme, length = parse_scheme(name, 64), 150
    weave, mask = scheme.weave_at(length), visible_mask(scheme.visibility_at(length), 0, length)
    largest = max(weave(t, i) for t in range(length) for i in range(t + 1) if mask[t, i])
    assert largest == 64 if name == "lm-infinite" else largest <= 63


def test_what_presets_are_made_of() -> None:
    assert make_scheme("self-extend", 64, W=9, G=2).weave == Grouped(9, 2)
    assert make_scheme("dual-chunk", 64).weave == DualChunk(44, 48)
    streaming, infinite = make_scheme("streaming-llm", 64), make_scheme("lm-infinite", 64)
    assert (streaming.weave, streaming.visibility) == (CacheIndex(4, 60), Lambda(4, 60))
    assert (infinite.weave, infinite.visibility) == (Clamp(64), Lambda(3, 64))


def test_star_blocks() -> None:
    def seen(spec: str, length: int, t: int, prompt: int | None = None) -> list[int]:
        return [i for i in range(length) if parse_scheme(spec, 64).visibility_at(length, prompt).sees(t, i)]

    assert seen("star(B=4)", 18, 9) == [0, 1, 2, 3, 8, 9]
    assert seen("star(B=4)", 18, 16) == list(range(17))  # the last block, 16 and 17
    assert seen("star(B=4,L=3)", 18, 14) == [0, 1, 2, 3, 12, 13, 14]
    assert seen("star(B=4,L=3)", 18, 15) == list(range(16))
    assert seen("star(B=4)", 30, 25, prompt=18) == list(range(26))  # a generated token
    assert seen("star(B=4)", 30, 9, prompt=18) == [0, 1, 2, 3, 8, 9]  # decoding leaves the prompt's blocks alone
    assert seen("star", 20, 12) == [0, 1, 2, 3, 4, 10, 11, 12]  # a quarter of the prompt


def test_bottom_attention_starts_l_tokens_before_the_prompts_end() -> None:
    scheme = parse_scheme("streaming-llm(x=2,y=6)+bottom(L=5,N=4,E=3)", 64)
    weave, visibility = scheme.weave_at(40, prompt=30), scheme.visibility_at(40, prompt=30)
    assert isinstance(weave, Switched) and weave.start == 25
    assert [i for i in range(40) if visibility.sees(24, i)] == [0, 1, *range(19, 25)]
    assert all(visibility.sees(t, i) for t in range(25, 40) for i in range(t + 1))
    assert [weave(39, i) for i in (39, 35, 34, 0)] == [0, 4, 5, 4 + 12]
    assert parse_scheme("star(B=9)+bottom-plain(L=5)", 64).weave_at(40) == Linear()
    assert scheme.parameters == {"x": 2, "y": 6, "bottom.L": 5, "bottom.N": 4, "bottom.E": 3}


def test_bottom_attention_can_take_any_weave_also_one_that_follows_the_length() -> None:
    for weave in ("stair", "rerope", "leaky-rerope", "self-extend", "dual-chunk"):
        switched = parse_scheme(f"lm-infinite+bottom-{weave}", 64).weave_at(200)
        assert isinstance(switched, Switched) and switched.after == make_scheme(weave, 64).weave_at(200)
