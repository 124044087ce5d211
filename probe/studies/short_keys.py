"""Pass keys in short prompts that stand for a long one: moved as far away as there, or among as many keys as there."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from probe.schemes import Scheme
from probe.schemes.copies import with_copies
from probe.schemes.cut_out import without_middle
from probe.tasks.passkey import PasskeySample, minimum_length, passkey_sample

MOVED, AMONG = (0.0, 0.4), (0.6, 1.0)
"""Depths of the key, shares of the filler: in the part that is moved away, and behind the part that counts often."""


def short_length(window: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a prompt: short enough to be cheap, long enough to hold the task twice, inside the window."""
    return min(window, max(3 * minimum_length(tokenizer), 256, window // 8))


def key_prompts(
    tokenizer: PreTrainedTokenizerBase, short: int, count: int, depths: tuple[float, float], draw: np.random.Generator
) -> list[PasskeySample]:
    """Prompts of `short` tokens with the key in one part of the filler, evenly spread over it."""
    low, high = depths
    places = low + (high - low) * (np.arange(count) + draw.random(count)) / count
    return [passkey_sample(tokenizer, short, float(depth), draw) for depth in places]


def moved_away(scheme: Scheme, short: int, length: int) -> Scheme:
    """The scheme under which the first half of a short prompt lies as far away as in one of `length` tokens."""
    return without_middle(scheme, short // 2, length - short)


def among_more(scheme: Scheme, short: int, length: int) -> Scheme | None:
    """The scheme under which the first half of a short prompt counts as often as there are keys more in one of `length`
    tokens; None where not every query sees all that came before it.
    """
    half = short // 2
    return with_copies(scheme, half, 1 + max(1, round((length - short) / (half - 1))))
