"""Pass-key retrieval: a number hidden at a known depth in filler, then asked for.

The prompt follows the paper's evaluation (Sec. 4.1, Fig. 3): a task description, filler sentences, the
needle "The pass key is K. Remember it. K is the pass key.", more filler, and the question. Lengths are exact in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from probe.tasks.measure import UNITS, Measure
from probe.tasks.questions import Frame

TASK = "There is a pass key hidden in this text. Find it and remember it."
FILLER = (" The grass is green.", " The sky is blue.", " The sun is yellow.", " Here we go.", " There and back again.")
NEEDLE = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "\nWhat is the pass key?"
BEGUN = " The pass key is"
"""How the answer begins: in the text alone on the line of the question, in a chat as the reply."""
ANSWER = " {key}"
KEY_WORDS = (
    "anchor", "bridge", "candle", "desert", "engine", "forest", "guitar", "hammer",
    "island", "jacket", "kitchen", "lantern", "mirror", "needle", "orange", "pencil",
    "quartz", "ribbon", "silver", "tunnel", "violin", "window", "acorn", "zebra",
)  # fmt: skip
"""Keys of the word variant: common English words, none of them in the filler."""


@dataclass(frozen=True)
class PasskeySample:
    """One prompt with its answer; `prompt` and `answer` together are exactly the length that was asked for."""

    prompt: list[int]
    answer: list[int]
    key: str
    depth: float
    needle: tuple[int, int]
    """Half-open token range of the needle inside the prompt."""


def _cut(
    tokenizer: PreTrainedTokenizerBase, key: str, prompt: str = "plain", unit: str = "tokens", question: str = "end"
) -> tuple[Measure, Frame, list[int]]:
    """(in what is counted, what stands around the filler, the needle).

    Raises:
        ProbeError: an unknown kind of prompt, or one that the tokenizer does not have, or an unknown place.
    """
    measure = UNITS[unit].measure(tokenizer)
    frame = Frame.make(measure, tokenizer, prompt, (TASK, QUESTION, BEGUN, ANSWER.format(key=key)), question)
    return measure, frame, measure.inside(NEEDLE.format(key=key))


def _fill(sentences: Sequence[list[int]], count: int, rng: np.random.Generator) -> list[int]:
    """`count` tokens of whole sentences cycling from a random start; only the last one may be cut."""
    at = int(rng.integers(len(sentences)))
    ids: list[int] = []
    while len(ids) < count:
        ids += sentences[at % len(sentences)]
        at += 1
    return ids[:count]


def _drawn_key(key: str, digits: int, rng: np.random.Generator) -> str:
    """A key: a number whose first digit is never 0, or a word of the English list."""
    if key == "digits":
        return str(rng.integers(10 ** (digits - 1), 10**digits))
    return KEY_WORDS[int(rng.integers(len(KEY_WORDS)))]


def minimum_length(
    tokenizer: PreTrainedTokenizerBase,
    digits: int = 5,
    prompt: str = "plain",
    key: str = "digits",
    unit: str = "tokens",
    question: str = "end",
) -> int:
    """Units that a sample needs with no filler at all."""
    keys = ["1" * digits] if key == "digits" else KEY_WORDS if unit == "tokens" else KEY_WORDS[:1]
    return max(_taken(*_cut(tokenizer, one, prompt, unit, question)) for one in keys)


def _taken(measure: Measure, frame: Frame, needle: list[int]) -> int:
    return frame.taken(measure) + len(needle)


def passkey_sample(
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    depth: float,
    rng: np.random.Generator,
    *,
    digits: int = 5,
    filler: Sequence[list[int]] | None = None,
    prompt: str = "plain",
    key: str = "digits",
    unit: str = "tokens",
    question: str = "end",
    text: np.random.Generator | None = None,
) -> PasskeySample:
    """Draw one sample.

    Args:
        tokenizer: encodes the texts; what it puts before every text starts the prompt.
        length: of prompt and answer together.
        depth: share of the filler that comes before the needle, 0 to 1.
        rng: draws the key and where the filler starts.
        digits: digits of the key; the first is never 0.
        filler: encoded sentences to use in place of the paper's five.
        prompt: a name in `PROMPTS`: what is put around the text.
        key: "digits", or "word" for one of `KEY_WORDS`.
        unit: a name in `UNITS`, of `length`.
        question: a name in `PLACEMENTS`: where the key is asked for.
        text: draws where the filler starts, in place of `rng`.

    Raises:
        ProbeError: an unknown kind of prompt, or one that the tokenizer does not have, or an unknown place.
        ValueError: `length` is too short to hold the task without filler, or depth is outside [0, 1].
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth: expected 0 to 1, got {depth}")
    secret = _drawn_key(key, digits, rng)
    measure, frame, needle = _cut(tokenizer, secret, prompt, unit, question)
    room = length - _taken(measure, frame, needle)
    if room < 0:
        raise ValueError(f"length: expected at least {length - room} {unit} to hold a pass key, got {length}")
    sentences = filler or [measure.inside(text) for text in FILLER]
    before = round(depth * room)
    starts = rng if text is None else text
    early, late = _fill(sentences, before, starts), _fill(sentences, room - before, starts)
    asked = frame.ask(measure, early + needle + late, (secret,), depth)
    start = len(frame.before) + len(measure.final([*frame.head, *early], True))
    stop = start + len(measure.final(needle, False))
    return PasskeySample(asked.prompt, asked.answer, secret, depth, (start, stop))
