"""Score a model on a task at several lengths, under several schemes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import Scheme, resolve_schemes
from probe.seam.apply import apply_scheme, check_scheme
from probe.tables import Table
from probe.tasks.heldout import heldout_batch
from probe.tasks.nll import nll_per_position, not_finite
from probe.tasks.passkey import PasskeySample, minimum_length, passkey_sample

BATCH_TOKENS = 8192


def _batches(count: int, length: int) -> list[range]:
    size = max(1, BATCH_TOKENS // length)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def draw_passkeys(loaded: LoadedModel, length: int, samples: int, seed: int) -> list[PasskeySample]:
    """Samples whose depths are spread evenly over [0, 1), so that every decile has its share.

    Raises:
        ProbeError: no tokenizer, or a length too short for the task.
    """
    tokenizer = loaded.tokenizer_for("task passkey")
    least = minimum_length(tokenizer)
    if length < least:
        raise FieldError("lengths", hint=f"a pass key needs at least {least} tokens of this tokenizer, got {length}")
    rng = np.random.default_rng((seed, length))
    depths = (np.arange(samples) + rng.random(samples)) / samples
    return [passkey_sample(tokenizer, length, float(depth), rng) for depth in depths]


@torch.no_grad()
def passkey_hits(loaded: LoadedModel, scheme: Scheme, drawn: Sequence[PasskeySample]) -> Bool[Tensor, " samples"]:
    """Whether greedy decoding gives exactly the key: every answer token is the argmax after its true prefix."""
    longest = max(len(sample.answer) for sample in drawn)
    hits = []
    with apply_scheme(loaded.model, scheme):
        for batch in _batches(len(drawn), len(drawn[0].prompt) + longest):
            mine = [drawn[n] for n in batch]
            ids = torch.tensor([sample.prompt + sample.answer for sample in mine], device=loaded.device)
            logits = loaded.model(input_ids=ids, use_cache=False, logits_to_keep=longest + 1).logits
            right = logits[:, :-1].argmax(-1) == ids[:, -longest:]
            # A tokenizer may cut keys into different numbers of tokens: only the answer's own count.
            hits += [bool(row[longest - len(sample.answer) :].all()) for row, sample in zip(right, mine, strict=True)]
    return torch.tensor(hits)


def heldout_nll(loaded: LoadedModel, scheme: Scheme, ids: Tensor, tick: Callable[[], None] = lambda: None) -> Tensor:
    """NLL per position of every window, [samples, length], nats; entry 0 is NaN."""
    rows = []
    with apply_scheme(loaded.model, scheme):
        for batch in _batches(len(ids), ids.shape[1]):
            rows.append(nll_per_position(loaded.model, ids[batch.start : batch.stop].to(loaded.device)))
            tick()
    return torch.cat(rows)


@dataclass(frozen=True)
class PasskeyScore:
    """Exact answers of a scheme at a length in tokens.

    Attributes:
        scheme: its text.
        length: tokens of prompt and answer.
        accuracy: share of exact answers, 0 to 1.
        worst_decile: the lowest share over the ten deciles of depth.
        weave: the weave's parameters as they came out for the length.
    """

    scheme: str
    length: int
    accuracy: float
    worst_decile: float
    weave: Mapping[str, float]


@dataclass(frozen=True)
class LikelihoodScore:
    """Likelihood of held-out text under a scheme at a length in tokens.

    Attributes:
        scheme: its text.
        length: tokens of a window.
        nll: mean over the last positions of every window, nats per token.
        standard_error: of that mean over windows; None for one window, which has none.
        weave: the weave's parameters as they came out for the length.
    """

    scheme: str
    length: int
    nll: float
    standard_error: float | None
    weave: Mapping[str, float]


def _passkey_scores(
    loaded: LoadedModel, scheme: Scheme, drawn: Sequence[PasskeySample], length: int, _tail: int | None
) -> PasskeyScore:
    hits = passkey_hits(loaded, scheme, drawn).double()
    deciles = [float(part.mean()) for part in hits.tensor_split(10) if len(part)]
    weave = scheme.weave_at(length).parameters()
    return PasskeyScore(scheme.spec, length, float(hits.mean()), min(deciles), weave)


def _draw_windows(loaded: LoadedModel, length: int, samples: int, seed: int) -> Tensor:
    if length < 2:
        raise FieldError("lengths", "at least 2 tokens", length)
    return heldout_batch(loaded, length, samples, seed)


def _nll_scores(loaded: LoadedModel, scheme: Scheme, ids: Tensor, length: int, tail: int | None) -> LikelihoodScore:
    nll = heldout_nll(loaded, scheme, ids)
    per_sample = nll[:, -(tail or max(1, ids.shape[1] // 4)) :].double().mean(-1)
    if not bool(per_sample.isfinite().all()):
        raise not_finite(scheme.spec)
    error = float(per_sample.std() / len(ids) ** 0.5) if len(ids) > 1 else None
    return LikelihoodScore(scheme.spec, length, float(per_sample.mean()), error, scheme.weave_at(length).parameters())


@dataclass(frozen=True)
class Task:
    """One row: what is asked of a model at a length, and how a scheme is scored on it.

    Attributes:
        name: by which users ask for it.
        help: what it measures, in a few words.
        draw: (model, length in tokens, samples, seed) -> what every scheme is scored on.
        score: (model, scheme, what was drawn, length, tail) -> a frozen dataclass with `scheme`, `length` and the
            scores.
        has_tail: whether it is a mean over the last positions, and so takes a tail.
    """

    name: str
    help: str
    draw: Callable[[LoadedModel, int, int, int], Any]
    score: Callable[[LoadedModel, Scheme, Any, int, int | None], Any]
    has_tail: bool = False


TASKS: Table[Task] = Table(
    "task",
    Task,
    (
        Task("passkey", "exact answers of a five-digit key hidden in filler", draw_passkeys, _passkey_scores),
        Task("nll", "nats per token of held-out text, over the last positions", _draw_windows, _nll_scores, True),
    ),
)


@dataclass
class Evaluation:
    """A task at several lengths under several schemes, under way: `rows` has one per (length, scheme) as they are done.

    Attributes:
        loaded: the model.
        task: a name in `TASKS`.
        schemes: text, objects or both; they are resolved to objects.
        lengths: tokens; None for M/4, M/2, M and 2M.
        samples: per length.
        seed: draws them.
        tail: positions that the mean of "nll" is over; None for the last quarter.
        rows: what is done.
    """

    loaded: LoadedModel
    task: str
    schemes: Any
    lengths: Sequence[int] | None
    samples: int
    seed: int
    tail: int | None = None
    rows: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything, so that no length is reached in vain.

        Raises:
            ProbeError: an unknown task, no samples, no tokenizer, a scheme that does not fit the model, or a length
                that the task does not fit.
        """
        check_task(self.task, self.samples, self.tail)
        window = self.loaded.window
        self.schemes = resolve_schemes(self.schemes, window)
        self.lengths = (window // 4, window // 2, window, 2 * window) if self.lengths is None else tuple(self.lengths)
        if not self.lengths:
            raise FieldError("lengths", "at least one", "none")
        shortest, longest = min(self.lengths), max(self.lengths)
        if self.tail is not None and not 1 <= self.tail < shortest:
            raise FieldError("tail", f"1 to {shortest - 1}, less than the shortest length", self.tail)
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
            for length in self.lengths:
                scheme.weave_at(length)
                scheme.visibility_at(length)
        for length in {shortest, longest}:
            TASKS[self.task].draw(self.loaded, length, 1, self.seed)

    @property
    def total(self) -> int:
        """Rows that there will be."""
        return len(self.lengths or ()) * len(self.schemes)

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each one was."""
        task = TASKS[self.task]
        for length in self.lengths or ():
            drawn = task.draw(self.loaded, length, self.samples, self.seed)
            for scheme in self.schemes:
                self.rows.append(task.score(self.loaded, scheme, drawn, length, self.tail))
                yield f"{scheme.spec} {length}"

    def result(self, complete: bool) -> Result[Any]:
        """The rows so far, with what they were made with."""
        settings = {
            "model": self.loaded.name,
            "window": self.loaded.window,
            "task": self.task,
            "schemes": [scheme.spec for scheme in self.schemes],
            "lengths": list(self.lengths or ()),
            "samples": self.samples,
            "seed": self.seed,
            "tail": self.tail,
        }
        return Result("eval", settings, Provenance.now(), Records(self.rows), complete)


def check_task(task: str, samples: int, tail: int | None = None) -> None:
    """Refuse what needs no model to be seen.

    Raises:
        ProbeError: an unknown task, no samples, or a tail for a task that has none.
    """
    row = TASKS[task]
    if samples < 1:
        raise FieldError("samples", "at least 1", samples)
    if tail is not None and not row.has_tail:
        raise FieldError("tail", hint=f"is for {{task}} nll, got {{task}} {task}; leave it out")
