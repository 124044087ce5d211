"""What a generated task asks: a prompt of exact length, and what its answer must hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from probe.errors import FieldError
from probe.tasks.measure import Measure
from probe.tasks.prompts import PLACEMENTS, PROMPTS


@dataclass(frozen=True)
class Question:
    """One prompt with its answer.

    Attributes:
        prompt: token ids, with what the tokenizer or a chat template puts around.
        answer: ids of the answer as it would be written; prompt and answer together are the length asked for.
        references: what the answer must hold, in any order.
        depth: share of the filler that comes before what is asked for, 0 to 1; None where that is in many places.
    """

    prompt: list[int]
    answer: list[int]
    references: tuple[str, ...]
    depth: float | None


@dataclass(frozen=True)
class Frame:
    """What stands around the body of a prompt, in units of a measure.

    Attributes:
        head: the task's description, and what is asked before the body.
        question: what is asked after the body.
        begun: how the answer begins: after the question, or in a chat as the reply.
        answer: the answer as it would be written.
        before: token ids before everything.
        after: token ids between question and reply; empty where it is no chat.
    """

    head: list[int]
    question: list[int]
    begun: list[int]
    answer: list[int]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def make(
        cls,
        measure: Measure,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str,
        texts: tuple[str, str, str, str],
        question: str = "end",
    ) -> Frame:
        """A frame of (head, question, begun, answer), for a kind of prompt and a place of the question.

        Raises:
            ProbeError: an unknown kind of prompt, or one that the tokenizer does not have, or an unknown place.
        """
        around, place = PROMPTS[prompt].around(tokenizer), PLACEMENTS[question]
        head, question, begun, answer = texts
        if place.before:
            head = f"{head.rstrip()}{question}\n"
        if not place.after:
            question, begun = "", f"\n{begun.strip()}"
        if around.after:
            asked, starts = measure.inside(question) if question else [], measure.begun(begun.strip())
        else:
            asked, starts = measure.inside(question + begun), []
        return cls(measure.begun(head), asked, starts, measure.inside(answer), around.before, around.after)

    def room(self, measure: Measure, length: int, needed: int = 0) -> int:
        """Units that are left for the body.

        Args:
            measure: counts them.
            length: of prompt and answer.
            needed: units that the body must have.

        Raises:
            FieldError: fewer than `needed`.
        """
        taken = self.taken(measure)
        if length < taken + needed:
            raise FieldError("lengths", hint=f"this task needs at least {taken + needed} {measure.unit}, got {length}")
        return length - taken

    def taken(self, measure: Measure) -> int:
        """Units of all that is not the body."""
        units = sum(map(len, (self.head, self.question, self.begun, self.answer)))
        return units + measure.tokens((*self.before, *self.after))

    def ask(
        self, measure: Measure, body: Sequence[int], references: Sequence[str], depth: float | None = None
    ) -> Question:
        """The question with a body of so many units as `room` said."""
        prompt = [*self.before, *measure.final([*self.head, *body, *self.question], True), *self.after]
        return Question(
            prompt + measure.final(self.begun, True), measure.final(self.answer, False), tuple(references), depth
        )


_UNPRINTED = re.compile(r"[\x00-\x1f]")


def recall(said: str, references: Sequence[str]) -> float:
    """Share of the references that a text holds, upper or lower case alike: RULER's `string_match_all`
    (https://github.com/NVIDIA/RULER, scripts/eval/synthetic/constants.py), behind its clean-up of the answer.
    """
    cleaned = _UNPRINTED.sub("\n", said.strip()).strip().lower()
    return sum(one.lower() in cleaned for one in references) / len(references)
