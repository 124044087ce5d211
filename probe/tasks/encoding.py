"""Text as a tokenizer gives it in running text, and what a model reads first: a rule each, for all inputs and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from probe.errors import FieldError, literal

_REPEATS = 12
"""Repetitions in which a repeated word must show its period."""
_ANCHOR = "."
_CHARACTERS_PER_TOKEN = 8
_MARGIN = 64
"""Tokens that are encoded beyond those wanted, since a cut changes the last ones."""


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as text: nothing is put before or behind it, and no special token is read out of what it spells."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def encode_inside(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as they come inside a longer one, after a full stop.

    A tokenizer that marks the beginning of every text (Llama 2's puts a space there) marks it once, not at every piece.
    """
    before, both = encode(tokenizer, _ANCHOR), encode(tokenizer, _ANCHOR + text)
    return both[len(before) :] if both[: len(before)] == before else encode(tokenizer, text)


def encode_prefix(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> list[int]:
    """The first `tokens` ids of a text, or all there are, without encoding much more than that."""
    size = _CHARACTERS_PER_TOKEN * (tokens + _MARGIN)
    while True:
        ids = encode(tokenizer, text[:size])
        if size >= len(text) or len(ids) >= tokens + _MARGIN:
            return ids[:tokens]
        size *= 2


@dataclass(frozen=True)
class First:
    """What a model reads first: its ids (one or none), and where they come from."""

    ids: tuple[int, ...]
    source: str


def first_token(tokenizer: Any, config: Any) -> First:
    """What is put before every text: what the tokenizer itself puts there, since that is what the model was given.

    A tokenizer that has a `<bos>` and does not put it first (SmolLM2, GPT-NeoX, Qwen2) trained its model without one.
    Where there is no tokenizer, the config's `bos_token_id` counts.
    """
    if tokenizer is None:
        bos = getattr(config, "bos_token_id", None)
        return First((bos,), "config") if isinstance(bos, int) else First((), "none: no tokenizer, none in the config")
    plain, whole = encode(tokenizer, _ANCHOR), list(tokenizer.encode(_ANCHOR))
    at = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0)
    put = tuple(whole[:at])
    return First(put, "tokenizer") if put else First((), "none: the tokenizer puts none before a text")


def first_before_repeats(tokenizer: Any, config: Any, unit: Sequence[int]) -> First:
    """What is put before a repeated unit: `first_token`, or where that is nothing, a token that differs from the unit.

    Relative positions tell one query from another by what lies at which distance. Where every key is alike, so is every
    attention's output, whatever the weights: each hidden state would be the first one's, at any length.
    """
    found = first_token(tokenizer, config)
    if any(token not in unit for token in found.ids):
        return found
    named = {
        f"the config's {name}_token_id": getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")
    }
    if tokenizer is not None:
        named |= {
            "a full stop": next(iter(encode(tokenizer, _ANCHOR)), None),
            "a comma": next(iter(encode(tokenizer, ",")), None),
        }
    for name, token in named.items():
        if isinstance(token, int) and token >= 0 and token not in unit:
            return First((token, *found.ids), f"{name}: a repeated word alone is alike at every position")
    return found


def repeated_unit(tokenizer: PreTrainedTokenizerBase, word: str, spec: str) -> list[int]:
    """Ids of a word as it comes back and back in running text: repeated, they are what the tokenizer gives.

    Raises:
        FieldError: repeated, the word gives ids without a period.
    """
    unit = encode(tokenizer, " " + word)
    running = encode(tokenizer, (" " + word) * _REPEATS)
    if running == unit * _REPEATS:
        return unit
    # A mark at the beginning, or merges across words: the period is looked for behind the first words.
    for start in range(len(running) // 3):
        for period in range(1, max(1, (len(running) - start) // (_REPEATS // 2)) + 1):
            rest = running[start:]
            if all(a == b for a, b in zip(rest, rest[period:], strict=False)):
                return rest[:period]
    raise FieldError(
        "input",
        hint=f"repeated, {literal(repr(word))} gives this tokenizer no repeating ids, so that the input would not be "
        "constant; use another word, or token:ID",
        value=spec,
    )
