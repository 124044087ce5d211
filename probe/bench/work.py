"""What is timed: one layer's attention, a prefill, a step of decoding; each for a scheme's model or the stock one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from probe.bench.timing import Work, synchronize
from probe.errors import ProbeError
from probe.models.load import LoadedModel
from probe.models.random import random_ids

STEPS = 16
"""Decoding steps in a repeat; its seconds are their median."""


def prefill(model: PreTrainedModel, ids: Tensor) -> Any:
    """The whole input to the logits of its last position, keeping the cache."""
    with torch.no_grad():
        return model(ids, use_cache=True, logits_to_keep=1)


def decode(model: PreTrainedModel, after: Any, steps: int = STEPS) -> tuple[Any, list[float]]:
    """Greedy steps on from an output, and the seconds of each.

    Args:
        model: the model whose cache it is.
        after: a prefill's output, or that of an earlier call.
        steps: how many.
    """
    seconds = []
    with torch.no_grad():
        for _ in range(steps):
            token = after.logits[:, -1:].argmax(-1)
            synchronize(token.device)
            began = time.perf_counter()
            after = model(token, past_key_values=after.past_key_values, use_cache=True, logits_to_keep=1)
            synchronize(token.device)
            seconds.append(time.perf_counter() - began)
    return after, seconds


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary on the first dimensions of every head, as transformers writes it: x cos + (-x2, x1) sin."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    turned = turned * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


def _random_qkv(loaded: LoadedModel, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys, values as a layer makes them: [1, heads, length, dim] seen in [1, length, heads, dim]."""
    config: Any = loaded.model.config
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    generator = torch.Generator().manual_seed(seed)
    return cast(
        tuple[Tensor, Tensor, Tensor],
        tuple(
            torch.randn(1, length, count, dim, generator=generator)
            .to(loaded.device, loaded.model.dtype)
            .transpose(1, 2)
            for count in (heads, kv_heads, kv_heads)
        ),
    )


def attention(
    loaded: LoadedModel, model: PreTrainedModel, stock: bool, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """The first layer's attention, through the function that the model itself would call: [1, length, heads, dim].

    The stock model turns q and k by its rotary first, which a scheme does inside.
    """
    family = loaded.family
    module = family.layer_list(model)[0].get_submodule(family.attn)
    if stock:
        positions = torch.arange(query.shape[2], device=query.device)[None]
        cos, sin = model.get_submodule(family.rotary)(value, positions)
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
    attend = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
    out, _ = attend(module, query, key, value, None, scaling=query.shape[-1] ** -0.5, dropout=0.0)
    return cast(Tensor, out)


def attention_work(loaded: LoadedModel, model: PreTrainedModel, stock: bool, length: int, seed: int) -> Work:
    """The first layer's attention over `length` random tokens.

    Raises:
        ProbeError: a family without a rotary.
    """
    if not loaded.family.rotary:
        raise ProbeError(f"bench attention: expected a model with a rotary, got family {loaded.family.name!r}")
    inputs = _random_qkv(loaded, length, seed)

    def work() -> None:
        with torch.no_grad():
            attention(loaded, model, stock, *inputs)

    return work


def prefill_work(loaded: LoadedModel, model: PreTrainedModel, stock: bool, length: int, seed: int) -> Work:
    """A prefill of `length` random tokens."""
    ids = random_ids(loaded, length, seed)

    def work() -> None:
        prefill(model, ids)

    return work


def decode_work(loaded: LoadedModel, model: PreTrainedModel, stock: bool, length: int, seed: int) -> Work:
    """`STEPS` greedy steps on a cache that holds `length` tokens at first and grows from repeat to repeat."""
    after = prefill(model, random_ids(loaded, length, seed))

    def work() -> list[float]:
        nonlocal after
        after, seconds = decode(model, after)
        return seconds

    return work


WORKS: dict[str, Callable[[LoadedModel, PreTrainedModel, bool, int, int], Work]] = {
    "attention": attention_work, "prefill": prefill_work, "decode": decode_work,
}  # fmt: skip
"""By the name of the benchmark."""
