"""Score a model on a task at several lengths, under several schemes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import Scheme, resolve_schemes
from probe.seam.apply import apply_scheme, check_scheme
from probe.tables import Table
from probe.tasks.inputs import draw_input
from probe.tasks.intervals import wilson
from probe.tasks.nll import nll_per_position, not_finite
from probe.tasks.passkey import PasskeySample, minimum_length, passkey_sample
from probe.tasks.prompts import PROMPTS

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Asked:
    """What is asked of a task at one length.

    Attributes:
        length: tokens.
        samples: how many.
        seed: draws them.
        input: of tasks that read a text, what `draw_input` takes.
        prompt: of tasks that ask a question, a name in `PROMPTS`.
        tail: of tasks that are a mean over the last positions, how many; None for the last quarter.
    """

    length: int
    samples: int
    seed: int
    input: str = "heldout"
    prompt: str = "plain"
    tail: int | None = None


T = TypeVar("T")


def batches(items: Sequence[T], length: int) -> list[Sequence[T]]:
    """Items of `length` tokens each, as many at once as `BATCH_TOKENS` hold, at least one."""
    size = max(1, BATCH_TOKENS // length)
    return [items[start : start + size] for start in range(0, len(items), size)]


def draw_passkeys(
    loaded: LoadedModel, length: int, samples: int, seed: int, prompt: str = "plain"
) -> list[PasskeySample]:
    """Samples whose depths are spread evenly over [0, 1), so that every decile has its share.

    Raises:
        ProbeError: no tokenizer, an unknown kind of prompt or one it does not have, or a length too short for the task.
    """
    tokenizer = loaded.tokenizer_for("task passkey")
    least = minimum_length(tokenizer, prompt=prompt)
    if length < least:
        raise FieldError("lengths", hint=f"a pass key needs at least {least} tokens of this tokenizer, got {length}")
    rng = np.random.default_rng((seed, length))
    depths = (np.arange(samples) + rng.random(samples)) / samples
    return [passkey_sample(tokenizer, length, float(depth), rng, prompt=prompt) for depth in depths]


def passkey_hits(loaded: LoadedModel, scheme: Scheme, drawn: Sequence[PasskeySample]) -> Bool[Tensor, " samples"]:
    """Whether greedy decoding gives exactly the key: every answer token is the argmax after its true prefix."""
    return passkey_answers(loaded, scheme, drawn)[0]


@torch.no_grad()
def passkey_answers(
    loaded: LoadedModel, scheme: Scheme, drawn: Sequence[PasskeySample]
) -> tuple[Bool[Tensor, " samples"], Float[Tensor, " samples"]]:
    """(whether greedy decoding gives exactly the key, nats per token of the key), of every sample."""
    longest = max(len(sample.answer) for sample in drawn)
    hits, nats = [], []
    with apply_scheme(loaded.model, scheme):
        for mine in batches(drawn, len(drawn[0].prompt) + longest):
            ids = torch.tensor([sample.prompt + sample.answer for sample in mine], device=loaded.device)
            logits = loaded.model(input_ids=ids, use_cache=False, logits_to_keep=longest + 1).logits
            for row, truth, sample in zip(logits[:, :-1].float(), ids[:, -longest:], mine, strict=True):
                # A tokenizer may cut keys into different numbers of tokens: only the answer's own count.
                own = slice(longest - len(sample.answer), None)
                hits.append(bool((row[own].argmax(-1) == truth[own]).all()))
                nats.append(float(cross_entropy(row[own], truth[own])))
    return torch.tensor(hits), torch.tensor(nats)


def heldout_nll(loaded: LoadedModel, scheme: Scheme, ids: Tensor, tick: Callable[[], None] = lambda: None) -> Tensor:
    """NLL per position of every window, [samples, length], nats; entry 0 is NaN."""
    rows = []
    with apply_scheme(loaded.model, scheme):
        for mine in ids.split(max(1, BATCH_TOKENS // ids.shape[1])):
            rows.append(nll_per_position(loaded.model, mine.to(loaded.device)))
            tick()
    return torch.cat(rows)


@dataclass(frozen=True)
class PasskeyScore:
    """Exact answers of a scheme at a length in tokens.

    Attributes:
        scheme: its text.
        length: tokens of prompt and answer.
        correct: exact answers.
        total: samples.
        accuracy: share of exact answers, 0 to 1.
        low: lower end of its 95% interval (Wilson).
        high: upper end.
        worst_decile: the lowest share over the ten deciles of depth.
        weave: the weave's parameters as they came out for the length.
        hits: (share of the filler before the key, whether the answer was exact) of every sample.
    """

    scheme: str
    length: int
    correct: int
    total: int
    accuracy: float
    low: float
    high: float
    worst_decile: float
    weave: Mapping[str, float]
    hits: tuple[tuple[float, bool], ...]


@dataclass(frozen=True)
class LikelihoodScore:
    """Likelihood of held-out text under a scheme at a length in tokens.

    Attributes:
        scheme: its text.
        length: tokens of a window.
        nll: mean over the last positions of every window, nats per token.
        standard_error: of that mean over windows; None for one window, which has none.
        weave: the weave's parameters as they came out for the length.
        each: the mean of every window, nats per token: two schemes' differences are paired.
    """

    scheme: str
    length: int
    nll: float
    standard_error: float | None
    weave: Mapping[str, float]
    each: tuple[float, ...]


def _passkey_scores(loaded: LoadedModel, scheme: Scheme, drawn: Sequence[PasskeySample], asked: Asked) -> PasskeyScore:
    found = passkey_hits(loaded, scheme, drawn)
    deciles = [float(part.double().mean()) for part in found.tensor_split(10) if len(part)]
    right, total = int(found.sum()), len(found)
    low, high = wilson(right, total)
    hits = tuple((round(one.depth, 4), bool(hit)) for one, hit in zip(drawn, found, strict=True))
    weave = scheme.weave_at(asked.length).parameters()
    return PasskeyScore(
        scheme.spec, asked.length, right, total, right / total, low, high, min(deciles), weave, hits
    )  # fmt: skip


def _draw_keys(loaded: LoadedModel, asked: Asked) -> list[PasskeySample]:
    return draw_passkeys(loaded, asked.length, asked.samples, asked.seed, asked.prompt)


def _draw_windows(loaded: LoadedModel, asked: Asked) -> Tensor:
    if asked.length < 2:
        raise FieldError("lengths", "at least 2 tokens", asked.length)
    return draw_input(loaded, asked.input, asked.length, asked.samples, asked.seed).ids


def _nll_scores(loaded: LoadedModel, scheme: Scheme, ids: Tensor, asked: Asked) -> LikelihoodScore:
    nll = heldout_nll(loaded, scheme, ids)
    each = nll[:, -(asked.tail or max(1, ids.shape[1] // 4)) :].double().mean(-1)
    if not bool(each.isfinite().all()):
        raise not_finite(scheme.spec)
    error = float(each.std() / len(ids) ** 0.5) if len(ids) > 1 else None
    weave = scheme.weave_at(asked.length).parameters()
    samples = tuple(round(value, 5) for value in each.tolist())
    return LikelihoodScore(scheme.spec, asked.length, float(each.mean()), error, weave, samples)


@dataclass(frozen=True)
class Task:
    """One row: what is asked of a model at a length, and how a scheme is scored on it.

    Attributes:
        name: by which users ask for it.
        help: what it measures, in a few words.
        draw: (model, what is asked) -> what every scheme is scored on.
        score: (model, scheme, what was drawn, what is asked) -> a frozen dataclass with `scheme`, `length` and the
            scores.
        takes: which of "input", "prompt" and "tail" it goes by.
    """

    name: str
    help: str
    draw: Callable[[LoadedModel, Asked], Any]
    score: Callable[[LoadedModel, Scheme, Any, Asked], Any]
    takes: tuple[str, ...] = ()


TASKS: Table[Task] = Table(
    "task",
    Task,
    (
        Task("passkey", "exact answers of a five-digit key hidden in filler", _draw_keys, _passkey_scores, ("prompt",)),
        Task("nll", "nats per token of a text's last positions", _draw_windows, _nll_scores, ("input", "tail")),
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
        input: of "nll", what is read; None for held-out text.
        prompt: of "passkey", a name in `PROMPTS`; None for the text alone.
        rows: what is done.
    """

    loaded: LoadedModel
    task: str
    schemes: Any
    lengths: Sequence[int] | None
    samples: int
    seed: int
    tail: int | None = None
    input: str | None = None
    prompt: str | None = None
    rows: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything, so that no length is reached in vain.

        Raises:
            ProbeError: an unknown task, no samples, no tokenizer, a scheme that does not fit the model, or a length
                that the task does not fit.
        """
        check_task(self.task, self.samples, **self._chosen())
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
            TASKS[self.task].draw(self.loaded, self._asked(length))

    def _chosen(self) -> dict[str, Any]:
        return {"input": self.input, "prompt": self.prompt, "tail": self.tail}

    def _asked(self, length: int) -> Asked:
        chosen = {name: value for name, value in self._chosen().items() if value is not None}
        return Asked(length, self.samples, self.seed, **chosen)

    @property
    def total(self) -> int:
        """Rows that there will be."""
        return len(self.lengths or ()) * len(self.schemes)

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each one was."""
        task = TASKS[self.task]
        for length in self.lengths or ():
            asked = self._asked(length)
            drawn = task.draw(self.loaded, asked)
            for scheme in self.schemes:
                self.rows.append(task.score(self.loaded, scheme, drawn, asked))
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
            **{name: value for name, value in asdict(self._asked(0)).items() if name in TASKS[self.task].takes},
        }
        return Result("eval", settings, Provenance.now(), Records(self.rows), complete)


def check_task(
    task: str, samples: int, *, tail: int | None = None, input: str | None = None, prompt: str | None = None
) -> None:
    """Refuse what needs no model to be seen.

    Raises:
        ProbeError: an unknown task, no samples, an unknown kind of prompt, or what the task does not go by.
    """
    row = TASKS[task]
    if samples < 1:
        raise FieldError("samples", "at least 1", samples)
    for name, value in (("tail", tail), ("input", input), ("prompt", prompt)):
        if value is not None and name not in row.takes:
            whose = " or ".join(one for one, other in TASKS.items() if name in other.takes)
            raise FieldError(name, hint=f"is for {{task}} {whose}, got {{task}} {task}; leave it out")
    if prompt is not None:
        PROMPTS[prompt]
