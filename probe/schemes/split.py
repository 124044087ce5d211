"""DynamicSplit (paper Alg. 2): chunk 0, middle chunks of equal width, and a last chunk."""

from __future__ import annotations

from dataclasses import dataclass

from probe.errors import ProbeError


@dataclass(frozen=True)
class Split:
    """A prompt of `prompt` tokens in chunks: [0, F), then `chunks` times C tokens, then the rest.

    C is 0 where there is no middle chunk. `last` is the first position of the last chunk.
    """

    prompt: int
    F: int
    C: int
    chunks: int

    @property
    def last(self) -> int:
        """First position of the last chunk."""
        return self.F + self.chunks * self.C

    @property
    def borders(self) -> list[int]:
        """First positions of all chunks but chunk 0."""
        return [self.F + n * self.C for n in range(self.chunks)] + [self.last]

    def pairs(self) -> int:
        """(query, key) pairs visible in the prefill: what attention costs, in pairs."""
        first = self.F * (self.F + 1) // 2
        middle = self.chunks * (self.C * self.F + self.C * (self.C + 1) // 2)
        rest = self.prompt - self.last
        return first + middle + rest * self.last + rest * (rest + 1) // 2


def dynamic_split(prompt: int, window: int, F: int, L: int, M_max: int) -> Split:
    """Split a prompt that is longer than the window (paper Alg. 2).

    n = floor((I - L - F)/(M - F)) chunks of the largest width M - F fit, and m tokens are left. Up to M_max of them
    join the last chunk, which has L tokens and what is left; otherwise there are n + 1 chunks of equal, smaller width,
    and fewer than n + 1 tokens are left.

    The paper is silent on: a prompt of at most L + F tokens past chunk 0, which has no middle chunk here; n = 0 with m
    < M_max, where the printed C = M - F fits zero times: no middle chunk either, nor where n + 1 chunks have no token
    each (M - F = 1 and M_max = 0); and what becomes of the remainder, which joins the last chunk. A prompt inside the
    window is not split at all: ask only for longer ones.

    Args:
        prompt: tokens I.
        window: trained window M.
        F: tokens of chunk 0.
        L: least tokens of the last chunk.
        M_max: largest remainder that joins the last chunk.

    Raises:
        ProbeError: F, L or M_max outside its domain, or a prompt not longer than chunk 0.
    """
    check_split(window, F, L, M_max)
    if prompt <= F:
        raise ProbeError(f"dynamic split: expected a prompt longer than chunk 0 ({F} tokens), got {prompt}")
    between = prompt - L - F
    if between <= 0:
        return Split(prompt, F, 0, 0)
    n, m = divmod(between, window - F)
    chunks, C = (n, window - F) if m < M_max else (n + 1, between // (n + 1))
    return Split(prompt, F, C, chunks) if chunks and C else Split(prompt, F, 0, 0)


def check_split(window: int, F: int, L: int, M_max: int) -> None:
    """Refuse parameters that split nothing.

    Raises:
        ProbeError: F, L or M_max outside its domain; the message says which and how.
    """
    if not 1 <= F < window:
        raise ProbeError(f"mesa: F: expected 1 to {window - 1} (less than the window of {window}), got {F}")
    if L < 1:
        raise ProbeError(f"mesa: L: expected an integer >= 1, got {L}")
    if M_max < 0:
        raise ProbeError(f"mesa: M_max: expected an integer >= 0, got {M_max}")
