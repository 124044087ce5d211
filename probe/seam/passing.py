"""How far a pass through a model is, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def layer_progress(layers: Any, tick: Callable[[float], None], length: int) -> Iterator[None]:
    """Tell `tick` the share of the pass that a layer's call was; in all 1, however many calls an input of `length`
    tokens takes.

    Args:
        layers: the model's decoder layers.
        tick: told of every call.
        length: tokens of the input, to which calls beyond it count nothing.
    """
    left = [length] * len(layers)

    def hook(number: int) -> Callable[..., None]:
        def count(_module: nn.Module, _inputs: object, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            # No more than are left: a call that ran out of memory in a deeper layer is seen twice.
            tokens = min(left[number], hidden.shape[1])
            left[number] -= tokens
            tick(tokens / length / len(layers))

        return count

    handles = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
