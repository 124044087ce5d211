"""Score models on tasks at several lengths, under several schemes: what is asked, and the rows as they are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from probe.errors import FieldError, out_of_memory, unknown
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import Scheme, resolve_schemes
from probe.seam.apply import check_scheme
from probe.seam.passing import layer_progress
from probe.studies.journal import Journal
from probe.tasks.prefixes import PrefixMemory, in_order, saving
from probe.tasks.scoring import BATCH_TOKENS
from probe.tasks.table import TASKS, Asked, Cell, Mark, Task, check_chosen
from probe.text import lengths_at

CHOSEN = ("input", "prompt", "tail", "haystack", "unit", "depths", "question", "haystacks")
"""Fields of `Asked` that some tasks go by."""

WORTH = (0.1, 0.4)
"""Share of the tokens that reading common beginnings once must save to be done: where a batch would be one sample, and
where it would be several, which gains something too.
"""

_STOPPED = -1
"""Number of the line in a journal that says why a row has no further samples."""


def task_names(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """Names of tasks, from text or a list.

    Raises:
        ProbeError: one is unknown, or there is none.
    """
    named = [part.strip() for part in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    names = tuple(dict.fromkeys(name for name in named if name))
    if not names:
        raise FieldError("task", "at least one", "none")
    for name in names:
        if name not in TASKS:
            raise unknown("task", name, TASKS)
    return names


def check_task(tasks: str | Sequence[str], samples: int, **chosen: Any) -> None:
    """Refuse what needs no model to be seen.

    Args:
        tasks: names in `TASKS`.
        samples: per length.
        chosen: fields in `CHOSEN`, None where they are left open.

    Raises:
        ProbeError: an unknown task, no samples, or a choice that is unknown or that none of the tasks goes by.
    """
    names = task_names(tasks)
    if samples < 1:
        raise FieldError("samples", "at least 1", samples)
    for name, value in chosen.items():
        if value is not None and not any(name in TASKS[task].takes for task in names):
            whose = [one for one, other in TASKS.items() if name in other.takes]
            said = f"{whose[0]}{f' and {len(whose) - 1} others' if len(whose) > 1 else ''}"
            raise FieldError(name, hint=f"is for {{task}} {said}, got {{task}} {', '.join(names)}; leave it out")
    check_chosen(**chosen)


@dataclass
class Evaluation:
    """Tasks at several lengths under several schemes, under way: `rows` has one per task, length and scheme (and depth)
    as they are done.

    Attributes:
        loaded: the model.
        task: a name in `TASKS`, or several.
        schemes: text, objects or both; they are resolved to objects.
        lengths: tokens, or text such as "M/2"; None for M/4, M/2, M and 2M.
        samples: per length and seed.
        seed: draws them; of several, each draws so many.
        tail: positions that the mean of "nll" is over; None for the last quarter.
        input: of "nll", what is read; None for held-out text.
        prompt: of generated tasks, a name in `PROMPTS`; None for the text alone.
        haystack: in what tasks hide something; None for held-out text.
        unit: in what the lengths of generated tasks are counted; None for tokens.
        depths: to how many depths samples are dealt; None spreads them evenly.
        question: of generated tasks, where the question stands; None for behind the text.
        haystacks: in how many texts samples hide something; None for a text of its own for each.
        early_stop: a scheme's longer lengths are left out after one where none of at least so many answers was right;
            None for never.
        journal: keeps every sample as it is done, and has those of an evaluation that was stopped.
        rows: what is done.
        tell: told a line within a row, when `share` has changed.
    """

    loaded: LoadedModel
    task: str | Sequence[str]
    schemes: Any
    lengths: Sequence[int | str] | None
    samples: int = 50
    seed: int | Sequence[int] = 0
    tail: int | None = None
    input: str | None = None
    prompt: str | None = None
    haystack: str | None = None
    unit: str | None = None
    depths: int | None = None
    question: str | None = None
    haystacks: int | None = None
    early_stop: int | None = None
    journal: Journal = field(default_factory=Journal)
    rows: list[Any] = field(default_factory=list)
    tell: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        """Check everything, so that no length is reached in vain.

        Raises:
            ProbeError: an unknown task, no samples, no tokenizer, a scheme that does not fit the model, or a length
                that the task does not fit.
        """
        check_task(self.task, self.samples, **self._chosen())
        window = self.loaded.window
        self.tasks = task_names(self.task)
        self.seeds = (self.seed,) if isinstance(self.seed, int) else tuple(dict.fromkeys(self.seed))
        self.schemes = resolve_schemes(self.schemes, window)
        default = (window // 4, window // 2, window, 2 * window)
        self.lengths = default if self.lengths is None else lengths_at(window, self.lengths)
        if not self.lengths or not self.seeds:
            raise FieldError("lengths" if self.seeds else "seed", "at least one", "none")
        self._done = 0.0
        shortest, longest = min(self.lengths), max(self.lengths)
        if self.tail is not None and not 1 <= self.tail < shortest:
            raise FieldError("tail", f"1 to {shortest - 1}, less than the shortest length", self.tail)
        if self.early_stop is not None and self.early_stop < 1:
            raise FieldError("early_stop", "at least 1 sample", self.early_stop)
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
            for length in self.lengths:
                scheme.weave_at(length)
                scheme.visibility_at(length)
        for task in self.tasks:
            for length in {shortest, longest}:
                TASKS[task].draw(self.loaded, self._asked(task, length, self.seeds[0]))

    def _chosen(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in CHOSEN}

    def _asked(self, task: str, length: int, seed: int) -> Asked:
        mine = {
            name: value for name, value in self._chosen().items() if value is not None and name in TASKS[task].takes
        }
        return Asked(length, self.samples, seed, **mine)

    @property
    def total(self) -> int:
        """Cells that there will be."""
        return len(self.tasks) * len(self.lengths or ()) * len(self.schemes)

    @property
    def cost(self) -> float:
        """Tokens that all of it will read, to weigh what is done."""
        return float(sum(self.lengths or ())) * len(self.tasks) * len(self.schemes) * len(self.seeds) * self.samples  # type: ignore[arg-type]

    @property
    def share(self) -> float:
        """Of the tokens that all of it will read, those that are read, 0 to 1."""
        return min(1.0, self._done / self.cost)

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each cell was."""
        for task in self.tasks:
            hopeless: dict[str, int] = {}
            for length in self.lengths or ():
                asked = [self._asked(task, int(length), seed) for seed in self.seeds]
                drawn = [TASKS[task].draw(self.loaded, one) for one in asked]
                for scheme in self.schemes:
                    yield self._cell(TASKS[task], scheme, asked, drawn, hopeless)

    def _cell(
        self,
        task: Task,
        scheme: Scheme,
        asked: Sequence[Asked],
        drawn: Sequence[Sequence[Any]],
        hopeless: dict[str, int],
    ) -> str:
        """The rows of one task, length and scheme."""
        length, marks, stopped = asked[0].length, [], None
        failed = hopeless.get(scheme.spec)
        if failed is not None and length > failed:
            stopped = f"no right answer at {failed:,}, so none is looked for at more"
        else:
            for one, samples in zip(asked, drawn, strict=True):
                mine, stopped = _Samples(self, task, scheme, one, samples).marks()
                marks += mine
                if stopped is not None:
                    break
        self._done += length * (self.samples * len(self.seeds) - len(marks))  # those that are left out
        cell = Cell(self.loaded.name, task.name, scheme, length, stopped)
        self.rows += task.rows(cell, marks, asked[0])
        enough = self.early_stop is not None and len(marks) >= self.early_stop
        if task.answers and enough and not any(mark.score >= 1 for mark in marks):
            hopeless[scheme.spec] = min(length, failed or length)
        return f"{task.name} {scheme.spec} {length}"

    def advance(self, tokens: float, line: str) -> None:
        """So many more tokens are read."""
        self._done += tokens
        self.tell(line)

    def settings(self) -> dict[str, Any]:
        """What was chosen, with what was left open filled in."""
        asked = asdict(self._asked(self.tasks[0], 0, 0))
        chosen = {name: value for name, value in self._chosen().items() if value is not None}
        one = {name: asked[name] for name in TASKS[self.tasks[0]].takes} if len(self.tasks) == 1 else {}
        return {
            "model": self.loaded.name,
            "window": self.loaded.window,
            "task": ",".join(self.tasks),
            "schemes": [scheme.spec for scheme in self.schemes],
            "lengths": list(self.lengths or ()),
            "samples": self.samples,
            "seed": self.seeds[0] if len(self.seeds) == 1 else list(self.seeds),
            **one,
            **chosen,
        }

    def result(self, complete: bool) -> Result[Any]:
        """The rows so far, with what they were made with."""
        return Result("eval", self.settings(), Provenance.now(), Records(self.rows), complete)


@dataclass
class _Samples:
    """The samples of one task, scheme, length and seed."""

    work: Evaluation
    task: Task
    scheme: Scheme
    asked: Asked
    drawn: Sequence[Any]

    def __post_init__(self) -> None:
        loaded, asked = self.work.loaded, self.asked
        self.key: Mapping[str, Any] = {
            "model": loaded.name, "window": loaded.window, "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": loaded.device.type, "task": self.task.name, "scheme": self.scheme.spec, "length": asked.length,
            "seed": asked.seed, "samples": asked.samples, **{name: getattr(asked, name) for name in self.task.takes},
        }  # fmt: skip
        self.line = f"{self.task.name} {self.scheme.spec} {asked.length}"
        self.found: dict[int, Mark] = {}
        self.memory: PrefixMemory | None = None

    def marks(self) -> tuple[list[Mark], str | None]:
        """(marks in the order of the samples, why some are missing).

        Those that the journal has are taken from there.
        """
        journal = self.work.journal
        for number in range(len(self.drawn)):
            kept = journal.take(self.key, number)
            if kept is not None:
                self.found[number] = Mark(kept["score"], kept["depth"], kept["said"])
        self.work.advance(self.asked.length * len(self.found), self.line)
        stop = journal.take(self.key, _STOPPED)
        stopped = None if stop is None else str(stop["stopped"])
        if stopped is None:
            stopped = self._run([number for number in range(len(self.drawn)) if number not in self.found])
        return [self.found[number] for number in sorted(self.found)], stopped

    def _run(self, missing: list[int]) -> str | None:
        """Mark what is missing, in batches that halve where the memory does not hold them, or one by one, where samples
        have enough in common that is then read once.
        """
        size = max(1, BATCH_TOKENS // self.asked.length)
        if (alike := self._alike(missing, size)) is not None:
            missing, size, self.memory = alike, 1, PrefixMemory()
        while missing:
            batch = missing[:size]
            try:
                self._mark(batch)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self.memory is not None:
                    self.memory = None  # its keys take room, too
                    continue
                if len(batch) > 1:
                    size = len(batch) // 2
                    continue
                why = f"out of memory at {self.asked.length:,} {self.asked.unit}"
                self.work.journal.add(self.key, [_STOPPED], [{"stopped": why}])
                return why
            missing = missing[size:]
        return None

    def _alike(self, missing: list[int], size: int) -> list[int] | None:
        """The missing samples in an order in which what they have in common is read once; None where that is not worth
        while. A GPU gains more from batches, where they hold more than one.
        """
        if self.task.reads is None or (size > 1 and self.work.loaded.device.type != "cpu"):
            return None
        rows = [list(self.task.reads(self.drawn[number])) for number in missing]
        return [missing[at] for at in in_order(rows)] if saving(rows) >= WORTH[size > 1] else None

    def _mark(self, batch: list[int]) -> None:
        loaded, length = self.work.loaded, self.asked.length
        told, before = 0.0, self.work._done

        def tick(share: float) -> None:
            nonlocal told
            told = min(1.0, told + share)
            self.work._done = before
            self.work.advance(told * length * len(batch), f"{self.line}: {len(self.found)} of {len(self.drawn)}")

        began = time.perf_counter()
        layers = loaded.family.layer_list(loaded.model) if loaded.family.head else None
        with nullcontext() if layers is None else layer_progress(layers, tick, length):
            shared = {} if self.memory is None else {"memory": self.memory}
            marks = self.task.mark(loaded, self.scheme, [self.drawn[number] for number in batch], self.asked, **shared)
        seconds = (time.perf_counter() - began) / len(batch)
        self.work._done = before
        rows = [
            {"score": one.score, "depth": one.depth, "said": one.said, "seconds": round(seconds, 4)} for one in marks
        ]
        self.work.journal.add(self.key, batch, rows)
        self.found |= dict(zip(batch, marks, strict=True))
        self.work.advance(length * len(batch), f"{self.line}: {len(self.found)} of {len(self.drawn)}")
