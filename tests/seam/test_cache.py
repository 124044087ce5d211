"""The buffered cache against the one of transformers, operation by operation."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache

from probe.seam.cache import ROOM, buffered, truncate

OPERATIONS: dict[str, Callable[[DynamicCache, int], DynamicCache | None]] = {
    "crop": lambda cache, n: cache.crop(-n),
    "reorder": lambda cache, n: cache.reorder_cache(torch.tensor([n % rows(cache), *range(1, rows(cache))])),
    "select": lambda cache, n: cache.batch_select_indices(torch.tensor([n % rows(cache)])),
    "repeat": lambda cache, n: cache.batch_repeat_interleave(1 + n % 2),
    "reset": lambda cache, n: cache.reset(),
    "copy": lambda cache, n: copy.deepcopy(cache),
    "pickle": lambda cache, n: pickle.loads(pickle.dumps(cache)),
    "truncate": lambda cache, n: truncate(cache, n),
}  # fmt: skip
"""What is done to a cache between updates, with a number to choose by; some return another cache."""


def rows(cache: DynamicCache) -> int:
    return len(cache.layers[0].keys)


def grown(cache: DynamicCache, count: int, batch: int, dtype: torch.dtype, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Update two layers with so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(batch, 2, count, 4, generator=generator).to(dtype)  # noqa: E731
    return [cache.update(draw(), draw(), layer) for layer in range(2)]


@example(steps=[("select", 0), ("truncate", 0), ("grow", 0)], first=1, expected=0, dtype=torch.float32)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["grow", *OPERATIONS]), st.integers(0, 40)), max_size=12),
    first=st.integers(1, 40),
    expected=st.sampled_from([0, 60]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_it_holds_what_the_concatenating_one_holds(
    steps: list[tuple[str, int]], first: int, expected: int, dtype: torch.dtype
) -> None:
    stock, mine = DynamicCache(), buffered(DynamicCache(), expected)
    batch = 2
    for number, (name, n) in enumerate([("grow", first), *steps]):
        if name == "grow":
            if stock.layers and stock.layers[0].is_initialized and stock.layers[0].keys.ndim == 4:
                batch = rows(stock)  # also where no token is left
            pairs = zip(*(grown(cache, n, batch, dtype, number) for cache in (stock, mine)), strict=True)
            assert n == 0 or all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))
        elif stock.get_seq_length() > (n if name == "crop" else 0):
            stock, mine = (OPERATIONS[name](cache, n) or cache for cache in (stock, mine))
        assert stock.get_seq_length() == mine.get_seq_length()
        if stock.get_seq_length():
            for a, b in zip(stock.layers, mine.layers, strict=True):
                assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


def test_a_step_copies_nothing_until_the_room_is_used_up() -> None:
    cache = buffered(DynamicCache(), 10)
    grown(cache, 10, 1, torch.float32, 0)
    place, before = cache.layers[0].keys.data_ptr(), cache.layers[0].keys
    for step in range(ROOM):
        grown(cache, 1, 1, torch.float32, step)
    assert cache.layers[0].keys.data_ptr() == place
    kept = before.clone()
    grown(cache, 1, 1, torch.float32, 9)
    assert cache.layers[0].keys.data_ptr() != place and torch.equal(cache.layers[0].keys[:, :, :10], kept)
    assert torch.equal(before, kept)


def test_a_copy_shares_no_memory() -> None:
    cache = buffered(DynamicCache(), 10)
    grown(cache, 10, 1, torch.float32, 0)
    other = copy.deepcopy(cache)
    grown(cache, 1, 1, torch.float32, 1)
    grown(other, 1, 1, torch.float32, 2)
    assert not torch.equal(cache.layers[0].keys[:, :, 10], other.layers[0].keys[:, :, 10])


def test_what_inference_mode_filled_can_be_continued_outside_it() -> None:
    cache, stock = buffered(DynamicCache(), 10), DynamicCache()
    for one in (cache, stock):
        with torch.inference_mode():
            grown(one, 10, 1, torch.float32, 0)
        grown(one, 3, 1, torch.float32, 1)
        with torch.inference_mode():
            grown(one, 3, 1, torch.float32, 2)
    assert torch.equal(cache.layers[1].keys, stock.layers[1].keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_stock_model_decodes_with_it_to_the_bit(dtype: torch.dtype, tiny_llama: Callable[..., nn.Module]) -> None:
    """No scheme: the same model, token by token, with either cache."""
    model = tiny_llama().to(dtype)
    tokens = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(0))
    logits = []
    for cache in (DynamicCache(), buffered(DynamicCache(), 0)):
        parts = tokens.split([8, *[1] * 32], dim=1)
        logits.append(torch.cat([model(part, past_key_values=cache).logits for part in parts], dim=1))
    assert torch.equal(*logits)
