"""Where the prompt of a call ends, and at which positions it is: what schemes need to know beside queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from probe.seam.given import GivenPositions


@dataclass
class PromptState:
    """The prompt of the calls that go on now.

    Attributes:
        told: its length in tokens, where the user or `generate` said so.
        usual: whether positions are known to be the usual ones, without a look at them (inside `generate`).
        current: its length for the present call, padding included, as the cache says; None outside a call.
        given: positions that the caller of the present call gave; None for the usual ones.
    """

    told: int | None = None
    usual: bool = False
    current: int | None = None
    given: GivenPositions | None = None

    def whole(self, total: int) -> int:
        """Tokens of the prompt, padding included, that a pass of `total` tokens begins; more, where the rest follows in
        later passes.
        """
        return total if self.told is None else self.told

    def keys(self, keys: int) -> int:
        """How many of so many keys, or of those to come, are the prompt's, padding included."""
        return self.whole(keys if self.current is None else self.current)

    @contextmanager
    def call(self, prompt: int, given: GivenPositions | None) -> Iterator[None]:
        """Calls inside are parts of a prompt of so many tokens, or continue it, at positions given or usual."""
        self.current, self.given = prompt, given
        try:
            yield
        finally:
            self.current = self.given = None

    @contextmanager
    def generating(self, prompt: int | None, usual: bool) -> Iterator[None]:
        """Passes inside are parts of a prompt of so many tokens and what follows it, unless the user said so of
        another; `usual` says that nobody gave them positions.
        """
        before = self.told, self.usual
        self.told, self.usual = prompt if before[0] is None else before[0], usual
        try:
            yield
        finally:
            self.told, self.usual = before
