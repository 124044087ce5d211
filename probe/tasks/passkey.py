"""Pass-key retrieval: a number hidden at a known depth in filler, then asked for.

The prompt follows the paper's evaluation (Sec. 4.1, Fig. 3): a task description, filler sentences, the
needle "The pass key is K. Remember it. K is the pass key.", more filler, and the question. Lengths are exact in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from probe.tasks.encoding import encode, encode_inside
from probe.tasks.prompts import PROMPTS

TASK = "There is a pass key hidden in this text. Find it and remember it."
FILLER = (" The grass is green.", " The sky is blue.", " The sun is yellow.", " Here we go.", " There and back again.")
NEEDLE = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "\nWhat is the pass key?"
BEGUN = " The pass key is"
"""How the answer begins: in the text alone on the line of the question, in a chat as the reply."""
ANSWER = " {key}"


@dataclass(frozen=True)
class PasskeySample:
    """One prompt with its answer; `prompt` and `answer` together are exactly the length that was asked for."""

    prompt: list[int]
    answer: list[int]
    key: str
    depth: float
    needle: tuple[int, int]
    """Half-open token range of the needle inside the prompt."""


def _pieces(
    tokenizer: PreTrainedTokenizerBase, key: str, prompt: str = "plain"
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids of head, needle, question and answer.

    Raises:
        ProbeError: an unknown kind of prompt, or one that the tokenizer does not have.
    """
    around = PROMPTS[prompt].around(tokenizer)
    question = (
        [*encode_inside(tokenizer, QUESTION), *around.after, *encode(tokenizer, BEGUN.strip())]
        if around.after
        else encode_inside(tokenizer, QUESTION + BEGUN)
    )
    return (
        [*around.before, *encode(tokenizer, TASK)],
        encode_inside(tokenizer, NEEDLE.format(key=key)),
        question,
        encode_inside(tokenizer, ANSWER.format(key=key)),
    )


def _fill(sentences: Sequence[list[int]], count: int, rng: np.random.Generator) -> list[int]:
    """`count` tokens of whole sentences cycling from a random start; only the last one may be cut."""
    at = int(rng.integers(len(sentences)))
    ids: list[int] = []
    while len(ids) < count:
        ids += sentences[at % len(sentences)]
        at += 1
    return ids[:count]


def minimum_length(tokenizer: PreTrainedTokenizerBase, digits: int = 5, prompt: str = "plain") -> int:
    """Tokens that a sample needs with no filler at all."""
    return sum(map(len, _pieces(tokenizer, "1" * digits, prompt)))


def passkey_sample(
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    depth: float,
    rng: np.random.Generator,
    *,
    digits: int = 5,
    filler: Sequence[list[int]] | None = None,
    prompt: str = "plain",
) -> PasskeySample:
    """Draw one sample.

    Args:
        tokenizer: encodes the texts; what it puts before every text starts the prompt.
        length: tokens of prompt and answer together.
        depth: share of the filler that comes before the needle, 0 to 1.
        rng: draws the key and where the filler starts.
        digits: digits of the key; the first is never 0.
        filler: encoded sentences to use in place of the paper's five.
        prompt: a name in `PROMPTS`: what is put around the text.

    Raises:
        ProbeError: an unknown kind of prompt, or one that the tokenizer does not have.
        ValueError: `length` is too short to hold the task without filler, or depth is outside [0, 1].
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth: expected 0 to 1, got {depth}")
    key = str(rng.integers(10 ** (digits - 1), 10**digits))
    head, needle, question, answer = _pieces(tokenizer, key, prompt)
    room = length - sum(map(len, (head, needle, question, answer)))
    if room < 0:
        raise ValueError(f"length: expected at least {length - room} tokens to hold a pass key, got {length}")
    sentences = filler or [encode_inside(tokenizer, text) for text in FILLER]
    before = round(depth * room)
    text = head + _fill(sentences, before, rng)
    start = len(text)
    text += needle + _fill(sentences, room - before, rng) + question
    return PasskeySample(text, answer, key, depth, (start, start + len(needle)))
