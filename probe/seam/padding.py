"""How many padded keys each row of a call has at its left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from jaxtyping import Bool
from torch import Tensor

from probe.errors import ProbeError

V = TypeVar("V")


class Last(Generic[V]):
    """The last value made from a tensor. All layers of a call are given the same one, and on a GPU every look at it is
    a wait.
    """

    def __init__(self) -> None:
        self.kept: tuple[Tensor, V] | None = None

    def of(self, x: Tensor, make: Callable[[Tensor], V]) -> V:
        """`make(x)`, or what it was."""
        if self.kept is None or self.kept[0] is not x:
            self.kept = x, make(x)
        return self.kept[1]


def left_padding(mask: Tensor | None, batch: int, keys: int, seen: Last[list[int]]) -> list[int]:
    """Padded keys at the left of each row.

    Raises:
        ProbeError: a mask that is not a plain (batch, keys) one, or with holes.
    """
    if mask is None:
        return [0] * batch
    if mask.ndim != 2 or mask.shape[1] != keys:
        raise ProbeError(f"attention_mask: expected shape (batch, {keys}), got {tuple(mask.shape)}")
    return seen.of(mask, _pads_of)


def _pads_of(mask: Bool[Tensor, "batch keys"]) -> list[int]:
    real = mask.cpu().bool()
    pads = real.int().argmax(-1)
    # After its first real token a row may only end (right padding, which no real token sees), never resume.
    resumes = ((~real[:, :-1]) & real[:, 1:]).sum(-1)
    if bool((resumes > (pads > 0)).any()):
        raise ProbeError("attention_mask: expected padding at the ends only, got a hole between real tokens")
    found: list[int] = pads.tolist()
    return found
