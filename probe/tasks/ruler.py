"""Generated long-context tasks: RULER's needles, variable tracking and word counts, and LongEval's lines.

Wording, counts and scoring follow RULER (Hsieh et al. 2024, https://github.com/NVIDIA/RULER, scripts/data/synthetic)
and LongEval (Li et al. 2023, https://github.com/DachengLi1/LongChat). Drawn here, and so with other words: keys from
a list of our own, essays from shipped texts. Other than there, a prompt has exactly the length asked for: what a list
of whole items leaves is filled up with RULER's noise sentences, cut where the length ends.
"""

from __future__ import annotations

import string
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import zeta
from transformers import PreTrainedTokenizerBase

from probe.tasks.haystack import NOISE, hide, take_haystack, vocabulary
from probe.tasks.measure import Measure
from probe.tasks.questions import Frame, Question

Draw = np.random.Generator


def _words(name: str) -> list[str]:
    """A shipped list of words."""
    return resources.files("probe.tasks").joinpath("texts", f"{name}.txt").read_text(encoding="utf-8").split()


ADJECTIVES, NOUNS = _words("adjectives"), _words("nouns")
"""Of which names are made: "merry-lizard"."""


@dataclass(frozen=True)
class Ask:
    """What is asked of a generator.

    Attributes:
        tokenizer: of the model.
        measure: in what `length` is counted.
        length: of prompt and answer together.
        haystack: one of `HAYSTACKS`, for tasks that hide something in text.
        prompt: a name in `PROMPTS`.
        question: a name in `PLACEMENTS`.
        text: draws the text that something is hidden in; None for the draws of everything else.
    """

    tokenizer: PreTrainedTokenizerBase
    measure: Measure
    length: int
    haystack: str = "heldout"
    prompt: str = "plain"
    question: str = "end"
    text: Draw | None = None

    def frame(self, head: str, question: str, begun: str, answer: str) -> Frame:
        """What stands around the body."""
        return Frame.make(self.measure, self.tokenizer, self.prompt, (head, question, begun, answer), self.question)


Generator = Callable[[Ask, Draw, float], Question]
"""(what is asked, draws, depth from 0 to 1 of what is hidden in one place) -> a question."""


def _number(draw: Draw) -> str:
    return str(draw.integers(10**6, 10**7))


def _word(draw: Draw) -> str:
    return f"{ADJECTIVES[int(draw.integers(len(ADJECTIVES)))]}-{NOUNS[int(draw.integers(len(NOUNS)))]}"


def _uuid(draw: Draw) -> str:
    return str(uuid.UUID(bytes=draw.bytes(16), version=4))


_KINDS: dict[str, Callable[[Draw], str]] = {"numbers": _number, "words": _word, "uuids": _uuid}


def _distinct(make: Callable[[Draw], str], count: int, draw: Draw) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[make(draw)] = None
    return list(found)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


@dataclass(frozen=True)
class Needles:
    """RULER's needle in a haystack.

    Attributes:
        haystack: "noise", "text" for what the user names, or "needles": nothing but needles with other keys.
        keys: what keys are: "words" or "uuids".
        values: what is hidden under them: "numbers" or "uuids".
        hidden: keys in the text.
        each: values of each key.
        asked: keys that are asked for.
    """

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    hidden: int = 1
    each: int = 1
    asked: int = 1

    def __call__(self, ask: Ask, draw: Draw, depth: float) -> Question:
        """Draw one; the needle asked for, where it is one, is at the depth, all others anywhere."""
        keys = _distinct(_KINDS[self.keys], self.hidden, draw)
        values = _distinct(_KINDS[self.values], self.hidden * self.each, draw)
        mine = [values[at * self.each : (at + 1) * self.each] for at in range(self.hidden)]
        chosen = [int(at) for at in draw.permutation(self.hidden)[: self.asked]]
        answers = [value for at in chosen for value in mine[at]]
        frame = self._frame(ask, [keys[at] for at in chosen], answers)
        needles = [(at, self._needle(ask, keys[at], value)) for at in range(self.hidden) for value in mine[at]]
        taken = sum(len(units) for _, units in needles)
        room = frame.room(ask.measure, ask.length, taken) - taken
        single = len(answers) == 1
        placed = [(depth if single and at == chosen[0] else float(draw.random()), units) for at, units in needles]
        body, depths = hide(self._filler(ask, room, draw, set(keys)), placed)
        at = next(number for number, (owner, _) in enumerate(needles) if owner == chosen[0])
        return frame.ask(ask.measure, body, answers, depths[at] if single else None)

    def _needle(self, ask: Ask, key: str, value: str) -> list[int]:
        return ask.measure.inside(f" One of the special magic {self.values} for {key} is: {value}.")

    def _filler(self, ask: Ask, room: int, draw: Draw, taken: set[str]) -> tuple[list[int], list[int]]:
        if self.haystack != "needles":
            named = NOISE if self.haystack == NOISE else ask.haystack
            return take_haystack(ask.measure, named, room, draw if ask.text is None else ask.text)
        units: list[int] = []
        ends: list[int] = []
        while True:
            key = _KINDS[self.keys](draw)
            if key in taken:
                continue
            other = self._needle(ask, key, _KINDS[self.values](draw))
            if len(units) + len(other) > room:
                return units + _padding(ask, room - len(units)), ends
            units += other
            ends.append(len(units))

    def _frame(self, ask: Ask, queries: Sequence[str], answers: Sequence[str]) -> Frame:
        many, one, query = self.values, self.values[:-1], _listed(queries)
        if len(answers) == 1:
            return ask.frame(
                f"A special magic {one} is hidden within the following text. Make sure to memorize it. I will quiz "
                f"you about the {one} afterwards.\n",
                f"\nWhat is the special magic {one} for {query} mentioned in the provided text?",
                f" The special magic {one} for {query} mentioned in the provided text is",
                f" {answers[0]}",
            )
        return ask.frame(
            f"Some special magic {many} are hidden within the following text. Make sure to memorize it. I will quiz "
            f"you about the {many} afterwards.\n",
            f"\nWhat are all the special magic {many} for {query} mentioned in the provided text?",
            f" The special magic {many} for {query} mentioned in the provided text are",
            f" {_listed(answers)}",
        )


def _padding(ask: Ask, count: int) -> list[int]:
    """Noise that fills up what whole items left."""
    return take_haystack(ask.measure, NOISE, count, np.random.default_rng(0))[0]


_HOPS = 4


def _chain(draw: Draw, letters: int) -> tuple[list[str], str, list[str]]:
    """(the variables, their value, the sentences that assign it)."""
    names = _distinct(lambda rng: "".join(rng.choice(list(string.ascii_uppercase), letters)), _HOPS + 1, draw)
    value = str(draw.integers(10_000, 100_000))
    hops = [f" VAR {after} = VAR {before}" for before, after in pairwise(names)]
    return names, value, [f" VAR {names[0]} = {value}", *hops]


_TRACK = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"


def _tracked(value: str) -> tuple[str, str]:
    """(question, how the answer begins)."""
    return (
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above.",
        f" Answer: According to the chain(s) of variable assignment in the text above, {_HOPS + 1} variables are "
        f"assigned the value {value}, they are:",
    )


def track_variables(ask: Ask, draw: Draw, depth: float) -> Question:
    """RULER's variable tracking: one chain of five variables, in order anywhere in noise, behind a solved example."""
    shown, worth, example = _chain(draw, 3)
    asked, begins = _tracked(worth)
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    solved = f"{_TRACK}{noise}{''.join(example)} {noise}{asked}{begins} {' '.join(shown)}\n\n"
    names, value, chain = _chain(draw, 5)
    question, begun = _tracked(value)
    frame = ask.frame(solved + _TRACK, question, begun, " " + " ".join(names))
    pieces = [ask.measure.inside(hop + ".") for hop in chain]
    taken = sum(map(len, pieces))
    room = frame.room(ask.measure, ask.length, taken) - taken
    places = sorted(float(place) for place in draw.random(len(pieces)))
    body, _ = hide(take_haystack(ask.measure, NOISE, room, draw), list(zip(places, pieces, strict=True)))
    return frame.ask(ask.measure, body, names)


_COMMON = 10
_COUNT = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
_COUNT_ASKED = "\nQuestion: What are the 10 most common words in the above list?"
_COUNT_BEGUN = " Answer: The top 10 words that appear most often in the list are:"


def _numbered(words: Sequence[str]) -> str:
    return "".join(f" {number}. {word}" for number, word in enumerate(words, 1))


def _shuffled(common: Sequence[str], often: int, rare: Sequence[str], seldom: int, draw: Draw) -> list[str]:
    words = [*common] * often + [*rare] * seldom
    return [words[at] for at in draw.permutation(len(words))]


def common_words(ask: Ask, draw: Draw, depth: float) -> Question:
    """RULER's common words: ten words 30 times each among others three times each, numbered, behind a solved example;
    six times and once below 4096, as there.
    """
    often, seldom = (30, 3) if ask.length >= 4096 else (6, 1)
    pool = vocabulary()
    words = [pool[at] for at in draw.permutation(len(pool))]
    shown, others, common, rare = words[:10], words[10:20], words[20:30], words[30:]
    solved = _numbered(_shuffled(shown, 3, others, 1, draw))
    example = f"{_COUNT}{solved}{_COUNT_ASKED}{_COUNT_BEGUN}{_numbered(shown)}\n"
    frame = ask.frame(example + _COUNT, _COUNT_ASKED, _COUNT_BEGUN, _numbered(common))
    room = frame.room(ask.measure, ask.length, int(_sizes(ask, common, often, (), seldom)[0]))
    # A word and its number take two units at least.
    sizes = _sizes(ask, common, often, rare[: room // (2 * seldom) + 1], seldom)
    fitting = int((sizes <= room).sum()) - 1
    body = _items(ask, _shuffled(common, often, rare[:fitting], seldom, draw))
    return frame.ask(ask.measure, _padding(ask, room - len(body)) + body, common)


def _items(ask: Ask, words: Sequence[str]) -> list[int]:
    return [
        unit
        for number, word in enumerate(words, 1)
        for piece in (f" {number}.", f" {word}")
        for unit in ask.measure.inside(piece)
    ]


def _sizes(ask: Ask, common: Sequence[str], often: int, rare: Sequence[str], seldom: int) -> Any:
    """Units of a numbered list with the first 0, 1, 2, ... of the rare words: numbers and words are cut apart."""

    def size(piece: str) -> int:
        return len(ask.measure.inside(piece))

    base = often * sum(size(f" {word}") for word in common)
    words = base + seldom * np.cumsum([0, *(size(f" {word}") for word in rare)])
    items = often * len(common) + seldom * np.arange(len(rare) + 1)
    numbers = np.cumsum([0, *(size(f" {number}.") for number in range(1, int(items[-1]) + 1))])
    return words + numbers[items]


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest count up to `most` that fits, where more never fits better; 0 always does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


_ALPHA = 2.0
_DOTS = "..."
_LEAST_CODED = 60
"""Words in all from which the third to be named comes more often than the next: 2.3 times to 1.5, cut to whole ones."""


def _coded(words: Sequence[str], total: int) -> list[str]:
    """Words as often as Zipf's law with exponent 2 says, of so many in all."""
    counts = (total * np.arange(1, len(words) + 1, dtype=float) ** -_ALPHA / zeta(_ALPHA)).astype(int)
    return [word for word, count in zip(words, counts, strict=True) for _ in range(count)]


def frequent_words(ask: Ask, draw: Draw, depth: float) -> Question:
    """RULER's frequent words: made-up words in a Zipf distribution, the most frequent of them dots; which come next?"""
    made = _distinct(lambda rng: "".join(rng.choice(list(string.ascii_lowercase), 6)), max(20, ask.length // 50), draw)
    words = [_DOTS, *made]
    sizes = {word: len(ask.measure.inside(f" {word}")) for word in words}
    frame = ask.frame(
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        "appeared coded words.",
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
        "appeared words in the above coded text?",
        " Answer: According to the coded text above, the three most frequently appeared words are:",
        " " + ", ".join(made[:3]),
    )

    def taken(total: int) -> int:
        return sum(sizes[word] for word in _coded(words, total))

    room = frame.room(ask.measure, ask.length, taken(_LEAST_CODED))
    text = _coded(words, _most(lambda total: taken(total) <= room, room))
    body = [unit for at in draw.permutation(len(text)) for unit in ask.measure.inside(f" {text[at]}")]
    return frame.ask(ask.measure, _padding(ask, room - len(body)) + body, made[:3])


def longeval_lines(ask: Ask, draw: Draw, depth: float) -> Question:
    """LongEval's lines: a number under a name in each line; the one at the depth is asked for."""

    def lines() -> Iterator[tuple[str, str]]:
        seen: set[str] = set()
        while True:
            if (name := _word(draw)) not in seen:
                seen.add(name)
                yield name, str(draw.integers(1, 50_000))

    def cut(name: str, value: str) -> list[int]:
        return ask.measure.inside(f"\nline {name}: REGISTER_CONTENT is <{value}>")

    made = lines()
    wanted, value = next(made)
    frame = ask.frame(
        "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
        "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its "
        "corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding "
        "<REGISTER_CONTENT> of a certain line index. Now the record start:\n",
        f"\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {wanted}? I need the number.",
        f" The <REGISTER_CONTENT> in line {wanted} is",
        f" <{value}>",
    )
    needle, most = cut(wanted, value), len(ADJECTIVES) * len(NOUNS) - 1
    room = frame.room(ask.measure, ask.length, len(needle)) - len(needle)
    units: list[int] = []
    ends = []
    for _ in range(most):
        other = cut(*next(made))
        if len(units) + len(other) > room:
            break
        units += other
        ends.append(len(units))
    padding = _padding(ask, room - len(units))
    filler = padding + units, [len(padding) + end for end in (0, *ends)]
    place = filler[1][round(depth * (len(filler[1]) - 1))]
    body = filler[0][:place] + needle + filler[0][place:]
    return frame.ask(ask.measure, body, (value,), place / room if room else 0.0)
