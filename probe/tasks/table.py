"""The tasks that a model is scored on: what is drawn, how each sample is marked, and what a row of marks comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.schemes import Scheme
from probe.tables import Table
from probe.tasks.haystack import HAYSTACKS, NOISE, haystack_text
from probe.tasks.inputs import draw_input
from probe.tasks.intervals import wilson
from probe.tasks.measure import UNITS
from probe.tasks.nll import not_finite
from probe.tasks.passkey import PasskeySample
from probe.tasks.prefixes import PrefixMemory
from probe.tasks.prompts import PLACEMENTS, PROMPTS
from probe.tasks.questions import Question, recall
from probe.tasks.ruler import (
    Ask,
    Generator,
    Needles,
    common_words,
    frequent_words,
    longeval_lines,
    track_variables,
)
from probe.tasks.scoring import (
    depth_grid,
    draw_passkeys,
    heldout_nll,
    passkey_answers,
    spread_depths,
    text_draws,
    written_answers,
)


@dataclass(frozen=True)
class Asked:
    """What is asked of a task at one length.

    Attributes:
        length: of prompt and answer together, in `unit`.
        samples: how many.
        seed: draws them.
        input: of tasks that read a text, what `draw_input` takes.
        prompt: of tasks that ask a question, a name in `PROMPTS`.
        tail: of tasks that are a mean over the last positions, how many; None for the last quarter.
        haystack: of tasks that hide something in text, one of `HAYSTACKS`.
        unit: of generated tasks, a name in `UNITS`.
        depths: of tasks that hide something in one place: to how many depths samples are dealt; None spreads them.
        question: of tasks that ask a question, a name in `PLACEMENTS`.
        haystacks: of tasks that hide something: in how many texts samples hide it, which then read alike up to there;
            None for a text of its own for each sample.
    """

    length: int
    samples: int
    seed: int
    input: str = "heldout"
    prompt: str = "plain"
    tail: int | None = None
    haystack: str = "heldout"
    unit: str = "tokens"
    depths: int | None = None
    question: str = "end"
    haystacks: int | None = None


def check_chosen(
    input: str | None = None,
    prompt: str | None = None,
    tail: int | None = None,
    haystack: str | None = None,
    unit: str | None = None,
    depths: int | None = None,
    question: str | None = None,
    haystacks: int | None = None,
) -> None:
    """Refuse values that no model could make right.

    Raises:
        ProbeError: an unknown kind of prompt, haystack, unit or place, an unreadable file, no depth or no text.
    """
    if prompt is not None:
        PROMPTS[prompt]
    if unit is not None:
        UNITS[unit]
    if haystack is not None and haystack != NOISE:
        haystack_text(haystack)
    if question is not None:
        PLACEMENTS[question]
    for name, count in (("depths", depths), ("haystacks", haystacks)):
        if count is not None and count < 1:
            raise FieldError(name, "at least 1", count)


@dataclass(frozen=True)
class Mark:
    """What one sample got.

    Attributes:
        score: share of what the answer must hold that it holds, 0 to 1; of a likelihood, nats per token.
        depth: where what was asked for stood, the share of filler before it; None where that is in no one place.
        said: what the model wrote; None where nothing was written.
    """

    score: float
    depth: float | None = None
    said: str | None = None


@dataclass(frozen=True)
class AnswerScore:
    """Right answers of a scheme at a length.

    Attributes:
        model: as it was named.
        task: a name in `TASKS`.
        scheme: its text.
        length: tokens of prompt and answer, or words where the lengths are counted so.
        depth: where what was asked for stood, 0 to 1; None over all depths.
        correct: samples whose answer holds everything that it must.
        total: samples.
        accuracy: share of them, 0 to 1; None where none was run.
        low: lower end of its 95% interval (Wilson).
        high: upper end.
        recall: mean share of what answers must hold: RULER's score. The accuracy, where it is one thing.
        worst_decile: the lowest accuracy over the ten deciles of depth; None for a row of one depth.
        weave: the weave's parameters as they came out for the length.
        hits: (depth, whether the answer was right) of every sample; depth None where it is in no one place.
        stopped: why fewer samples were run than were asked for; None where all were.
    """

    model: str
    task: str
    scheme: str
    length: int
    depth: float | None
    correct: int
    total: int
    accuracy: float | None
    low: float | None
    high: float | None
    recall: float | None
    worst_decile: float | None
    weave: Mapping[str, float]
    hits: tuple[tuple[float | None, bool], ...]
    stopped: str | None = None


@dataclass(frozen=True)
class LikelihoodScore:
    """Likelihood of a text under a scheme at a length in tokens.

    Attributes:
        model: as it was named.
        task: a name in `TASKS`.
        scheme: its text.
        length: tokens of a window.
        nll: mean over the last positions of every window, nats per token; None where none was run.
        standard_error: of that mean over windows; None for one window, which has none.
        weave: the weave's parameters as they came out for the length.
        each: the mean of every window, nats per token: two schemes' differences are paired.
        stopped: why fewer samples were run than were asked for; None where all were.
    """

    model: str
    task: str
    scheme: str
    length: int
    nll: float | None
    standard_error: float | None
    weave: Mapping[str, float]
    each: tuple[float, ...]
    stopped: str | None = None


@dataclass(frozen=True)
class Cell:
    """What a row is of."""

    model: str
    task: str
    scheme: Scheme
    length: int
    stopped: str | None = None

    @property
    def weave(self) -> Mapping[str, float]:
        """The weave's parameters as they came out for the length."""
        return self.scheme.weave_at(self.length).parameters()


def _answer_row(cell: Cell, marks: Sequence[Mark], depth: float | None) -> AnswerScore:
    found = np.array([mark.score >= 1 for mark in marks], dtype=float)
    right, total = int(found.sum()), len(found)
    low, high = wilson(right, total) if total else (None, None)
    return AnswerScore(
        cell.model, cell.task, cell.scheme.spec, cell.length, depth, right, total,
        right / total if total else None, low, high,
        sum(mark.score for mark in marks) / total if total else None,
        None if depth is not None else min((float(part.mean()) for part in np.array_split(found, 10) if len(part)),
                                           default=None),
        cell.weave,
        tuple((None if mark.depth is None else round(mark.depth, 4), mark.score >= 1) for mark in marks),
        cell.stopped,
    )  # fmt: skip


def answer_rows(cell: Cell, marks: Sequence[Mark], asked: Asked) -> list[AnswerScore]:
    """One row over all depths; one for each, where samples were dealt to some."""
    places = [mark.depth for mark in marks]
    if asked.depths is None or not marks or any(place is None for place in places):
        return [_answer_row(cell, marks, None)]
    # A needle moves to the end of a sentence: it counts for the depth that it was dealt to.
    grid = depth_grid(asked.depths)
    dealt = [min(grid, key=lambda depth: abs(depth - (place or 0.0))) for place in places]
    rows = []
    for depth in grid:
        mine = [mark for mark, own in zip(marks, dealt, strict=True) if own == depth]
        if mine:
            rows.append(_answer_row(cell, mine, round(depth, 4)))
    return rows


def likelihood_rows(cell: Cell, marks: Sequence[Mark], asked: Asked) -> list[LikelihoodScore]:
    """The row."""
    each = torch.tensor([mark.score for mark in marks], dtype=torch.float64)
    error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else None
    return [
        LikelihoodScore(
            cell.model, cell.task, cell.scheme.spec, cell.length, float(each.mean()) if len(each) else None, error,
            cell.weave, tuple(round(value, 5) for value in each.tolist()), cell.stopped,
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One row: what is asked of a model at a length, and how every sample is marked.

    Attributes:
        name: by which users ask for it.
        help: what it measures, in a few words.
        draw: (model, what is asked) -> the samples, the same for every scheme.
        mark: (model, scheme, some of the samples, what is asked) -> a mark for each.
        rows: (what the row is of, the marks, what is asked) -> frozen dataclasses with `model`, `task`, `scheme` and
            `length`; from no marks too.
        takes: which of the fields of `Asked` beside length, samples and seed it goes by.
        answers: whether its score is a share of right answers; else it is nats per token.
        reads: of a sample, the ids that the model reads. `mark` of a task that has it takes `memory=` too, a
            `PrefixMemory`, with which samples that begin alike are read from where they differ.
    """

    name: str
    help: str
    draw: Callable[[LoadedModel, Asked], Sequence[Any]]
    mark: Callable[..., list[Mark]]
    rows: Callable[[Cell, Sequence[Mark], Asked], Sequence[Any]] = answer_rows
    takes: tuple[str, ...] = ()
    answers: bool = True
    reads: Callable[[Any], Sequence[int]] | None = None


def _draw_keys(loaded: LoadedModel, asked: Asked, key: str) -> list[PasskeySample]:
    return draw_passkeys(
        loaded, asked.length, asked.samples, asked.seed, asked.prompt, depths=asked.depths, key=key, unit=asked.unit,
        question=asked.question, haystacks=asked.haystacks,
    )  # fmt: skip


def _whole(sample: PasskeySample) -> Sequence[int]:
    return sample.prompt + sample.answer


def _prompt(question: Question) -> Sequence[int]:
    return question.prompt


def _mark_exact(
    loaded: LoadedModel,
    scheme: Scheme,
    batch: Sequence[PasskeySample],
    asked: Asked,
    memory: PrefixMemory | None = None,
) -> list[Mark]:
    hits, _ = passkey_answers(loaded, scheme, batch, memory)
    return [Mark(float(hit), one.depth) for one, hit in zip(batch, hits, strict=True)]


def _draw_questions(loaded: LoadedModel, asked: Asked, generator: Generator) -> list[Question]:
    tokenizer = loaded.tokenizer_for("a generated task")
    measure = UNITS[asked.unit].measure(tokenizer)
    ask = Ask(tokenizer, measure, asked.length, asked.haystack, asked.prompt, asked.question)
    rng = np.random.default_rng((asked.seed, asked.length))
    texts = text_draws(asked.seed, asked.length, asked.haystacks)
    places = enumerate(spread_depths(asked.samples, rng, asked.depths))
    return [generator(replace(ask, text=texts(number)), rng, depth) for number, depth in places]


def _mark_written(
    loaded: LoadedModel,
    scheme: Scheme,
    batch: Sequence[Question],
    asked: Asked,
    memory: PrefixMemory | None = None,
) -> list[Mark]:
    said = written_answers(loaded, scheme, batch, memory)
    return [Mark(recall(text, one.references), one.depth, text) for one, text in zip(batch, said, strict=True)]


def _draw_windows(loaded: LoadedModel, asked: Asked) -> list[Tensor]:
    if asked.length < 2:
        raise FieldError("lengths", "at least 2 tokens", asked.length)
    return list(draw_input(loaded, asked.input, asked.length, asked.samples, asked.seed).ids)


def _mark_nats(loaded: LoadedModel, scheme: Scheme, batch: Sequence[Tensor], asked: Asked) -> list[Mark]:
    ids = torch.stack(list(batch))
    nll = heldout_nll(loaded, scheme, ids)
    each = nll[:, -(asked.tail or max(1, ids.shape[1] // 4)) :].double().mean(-1)
    if not bool(each.isfinite().all()):
        raise not_finite(scheme.spec)
    return [Mark(float(value)) for value in each]


_ASKED = ("prompt", "unit", "question")


def _written(name: str, help: str, generator: Generator, *takes: str) -> Task:
    """A task whose answer is written by the model and marked by what it holds."""
    return Task(
        name, help, partial(_draw_questions, generator=generator), _mark_written, takes=(*_ASKED, *takes),
        reads=_prompt,
    )  # fmt: skip


_HID = ("haystack", "depths", "haystacks")

TASKS: Table[Task] = Table(
    "task",
    Task,
    (
        Task("passkey", "exact answers of a five-digit key hidden in filler", partial(_draw_keys, key="digits"),
             _mark_exact, takes=(*_ASKED, "depths", "haystacks"), reads=_whole),
        Task("passkey-word", "the same with an English word as the key", partial(_draw_keys, key="word"),
             _mark_exact, takes=(*_ASKED, "depths", "haystacks"), reads=_whole),
        _written("niah-single-1", "RULER: a number under a word, in noise", Needles(NOISE), "depths", "haystacks"),
        _written("niah-single-2", "RULER: a number under a word, in text", Needles("text"), *_HID),
        _written("niah-single-3", "RULER: a UUID under a word, in text", Needles("text", values="uuids"), *_HID),
        _written("niah-multikey-1", "RULER: one of four keys in text is asked for", Needles("text", hidden=4), *_HID),
        _written("niah-multikey-2", "RULER: one key among nothing but others", Needles("needles"), "depths"),
        _written("niah-multikey-3", "RULER: the same with UUIDs as keys and values",
                 Needles("needles", keys="uuids", values="uuids"), "depths"),
        _written("niah-multivalue", "RULER: four numbers under one word", Needles("text", each=4), "haystack",
                 "haystacks"),
        _written("niah-multiquery", "RULER: four keys are asked for", Needles("text", hidden=4, asked=4), "haystack",
                 "haystacks"),
        _written("vt", "RULER: variable tracking, five variables of one value", track_variables),
        _written("cwe", "RULER: the ten most common words of a list", common_words),
        _written("fwe", "RULER: the three most frequent made-up words", frequent_words),
        _written("lines", "LongEval: the number in a named line of a record", longeval_lines, "depths"),
        Task("nll", "nats per token of a text's last positions", _draw_windows, _mark_nats, likelihood_rows,
             ("input", "tail"), answers=False),
    ),
)  # fmt: skip

__all__ = ["HAYSTACKS", "TASKS", "AnswerScore", "Asked", "Cell", "LikelihoodScore", "Mark", "Task", "check_chosen"]
