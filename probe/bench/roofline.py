"""What a pass must do at least, in floating-point operations and bytes, and what the machine reaches on plain work."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from probe.bench.timing import synchronize
from probe.models.random import Shape
from probe.schemes.scheme import Scheme


def _widths(shape: Shape) -> tuple[int, int, int]:
    """All query heads together, all key heads together, and the MLP."""
    config = shape.config()
    head = shape.width // shape.heads
    return shape.width, config.num_key_value_heads * head, config.intermediate_size


def matrix_weights(shape: Shape) -> int:
    """Weights that every token is multiplied with: the layers', without embeddings, norms and the vocabulary head."""
    queries, keys, mlp = _widths(shape)
    return shape.layers * shape.width * (2 * queries + 2 * keys + 3 * mlp)


def cache_bytes(shape: Shape, tokens: int, size: int) -> int:
    """Bytes of the keys and values of so many tokens in all layers, `size` a number."""
    return 2 * tokens * _widths(shape)[1] * shape.layers * size


def visible_pairs(scheme: Scheme | None, first: int, length: int, prompt: int) -> int:
    """(query, key) pairs that the queries first..length-1 see, per head; None is the stock model's causal mask."""
    t = torch.arange(first, length)
    if scheme is None:
        return int((t + 1).sum())
    return sum(int((hi - lo).clamp(min=0).sum()) for lo, hi in scheme.visibility_at(length, prompt).intervals(t))


def prefill_operations(shape: Shape, scheme: Scheme | None, length: int) -> int:
    """Floating-point operations of a prefill that keeps the last position's logits.

    2 per weight and token in the layers, 2 per weight of the vocabulary head once, and 4 per visible pair and query
    width (a product and a sum for the score, and for the value) in each layer.
    """
    attention = 4 * visible_pairs(scheme, 0, length, length) * shape.width * shape.layers
    return 2 * matrix_weights(shape) * length + 2 * shape.width * shape.vocab + attention


def decode_bytes(shape: Shape, scheme: Scheme | None, length: int, prompt: int, size: int) -> int:
    """Bytes that one step must read: every weight but the embedding table, and the keys and values that the query sees.

    Args:
        shape: the model's.
        scheme: None for the stock model.
        length: tokens after the step.
        prompt: how many of them were the prompt.
        size: bytes of a number.
    """
    pairs = visible_pairs(scheme, length - 1, length, prompt)
    cache = 2 * pairs * _widths(shape)[1] * shape.layers
    return size * (matrix_weights(shape) + shape.width * shape.vocab + cache)


def _rate(work: Callable[[], object], amount: float, device: torch.device, repeats: int) -> float:
    for _ in range(3):
        work()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return amount * repeats / (time.perf_counter() - began)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 30) -> float:
    """Floating-point operations per second of a product of two random `size` x `size` matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return _rate(lambda: a @ b, 2.0 * size**3, device, repeats)


def bandwidth(device: torch.device, size: int, repeats: int = 30) -> float:
    """Bytes per second of a copy of `size` bytes on the device, read and written counted."""
    source = torch.randint(1 << 30, (size // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return _rate(lambda: target.copy_(source), 2.0 * size, device, repeats)
