"""In what the length of a generated prompt is counted: a tokenizer's tokens, or words that are alike for all models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from probe.tables import Table
from probe.tasks.encoding import encode, encode_inside

_WORD = re.compile(r"\s*\S+|\s+")
"""A word with the space before it; what is left of the text at its end."""


@dataclass(frozen=True)
class Tokens:
    """Units are the model's tokens: a length is what the model's window is counted in."""

    tokenizer: PreTrainedTokenizerBase
    unit: ClassVar[str] = "tokens"

    def begun(self, text: str) -> list[int]:
        """Its ids, nothing put before or behind."""
        return encode(self.tokenizer, text)

    def inside(self, text: str) -> list[int]:
        """Its ids as they come inside a longer text."""
        return encode_inside(self.tokenizer, text)

    def final(self, units: Sequence[int], first: bool) -> list[int]:
        """They are that already."""
        return list(units)

    def tokens(self, ids: Sequence[int]) -> int:
        """Each is one."""
        return len(ids)

    def text(self, units: Sequence[int]) -> str:
        """Decoded."""
        return str(self.tokenizer.decode(list(units), clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class Words:
    """Units are words between spaces: two models of different tokenizers read the same text at a length."""

    tokenizer: PreTrainedTokenizerBase
    known: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    unit: ClassVar[str] = "words"

    def begun(self, text: str) -> list[int]:
        """Its words, numbered in the order in which they were first seen."""
        for word in (found := _WORD.findall(text)):
            if word not in self.numbers:
                self.numbers[word] = len(self.known)
                self.known.append(word)
        return [self.numbers[word] for word in found]

    def inside(self, text: str) -> list[int]:
        """As at the beginning."""
        return self.begun(text)

    def final(self, units: Sequence[int], first: bool) -> list[int]:
        """The ids of the words as one text."""
        return (encode if first else encode_inside)(self.tokenizer, self.text(units))

    def tokens(self, ids: Sequence[int]) -> int:
        """What a template puts around differs between models, and is no part of the text."""
        return 0

    def text(self, units: Sequence[int]) -> str:
        """Put together."""
        return "".join(self.known[unit] for unit in units)


Measure = Tokens | Words
"""Cuts text into units, and turns units into the ids that a model reads."""


@dataclass(frozen=True)
class Unit:
    """One row: a unit of length.

    Attributes:
        name: by which users ask for it.
        help: what it is, in a few words.
        measure: from a tokenizer, what counts in it.
    """

    name: str
    help: str
    measure: Callable[[PreTrainedTokenizerBase], Measure]


UNITS: Table[Unit] = Table(
    "unit of length",
    Unit,
    (
        Unit("tokens", "of the model's tokenizer, what its window is counted in", Tokens),
        Unit("words", "between spaces: the same text for every model", Words),
    ),
)
