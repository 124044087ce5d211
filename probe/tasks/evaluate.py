"""Score a model on a task at several lengths, under several schemes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from probe.errors import ProbeError, unknown
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import Scheme
from probe.seam.apply import apply_scheme, check_scheme
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
        raise ProbeError(f"--lengths: a pass key needs at least {least} tokens of this tokenizer, got {length}")
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


def _passkey_scores(
    loaded: LoadedModel, scheme: Scheme, drawn: Sequence[PasskeySample], _tail: int | None
) -> dict[str, float]:
    hits = passkey_hits(loaded, scheme, drawn).double()
    deciles = [float(part.mean()) for part in hits.tensor_split(10) if len(part)]
    return {"accuracy": float(hits.mean()), "worst_decile": min(deciles)}


def _draw_windows(loaded: LoadedModel, length: int, samples: int, seed: int) -> Tensor:
    if length < 2:
        raise ProbeError(f"--lengths: expected at least 2 tokens, got {length}")
    return heldout_batch(loaded, length, samples, seed)


def _nll_scores(loaded: LoadedModel, scheme: Scheme, ids: Tensor, tail: int | None) -> dict[str, float]:
    nll = heldout_nll(loaded, scheme, ids)
    per_sample = nll[:, -(tail or max(1, ids.shape[1] // 4)) :].double().mean(-1)
    if not bool(per_sample.isfinite().all()):
        raise not_finite(scheme.spec)
    error = float(per_sample.std() / len(ids) ** 0.5) if len(ids) > 1 else 0.0
    return {"nll": float(per_sample.mean()), "standard_error": error}


TASKS: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, float]]]] = {
    "passkey": (draw_passkeys, _passkey_scores),
    "nll": (_draw_windows, _nll_scores),
}
"""By name: what draws the samples of a length, the same for every scheme, and what scores a scheme on them."""


@dataclass(frozen=True)
class Score:
    """What every task says of a scheme at a length in tokens; `weave` as it came out for that length."""

    scheme: str
    length: int


@dataclass(frozen=True)
class PasskeyScore(Score):
    """Share of exact answers, over all and in the worst depth decile."""

    accuracy: float
    worst_decile: float
    weave: dict[str, Any]


@dataclass(frozen=True)
class LikelihoodScore(Score):
    """Mean NLL in nats and its standard error over samples."""

    nll: float
    standard_error: float
    weave: dict[str, Any]


@dataclass
class Evaluation:
    """A task at several lengths under several schemes, under way: `rows` has one per (length, scheme) as they are done.

    `passkey` rows hold the share of exact answers (`accuracy`) and the lowest one over depth deciles (`worst_decile`);
    `nll` rows the mean NLL in nats over the last `tail` positions (default: the last quarter) and its standard error over
    samples. Every row has the weave as it came out for its length.
    """

    loaded: LoadedModel
    task: str
    schemes: list[Scheme]
    lengths: Sequence[int]
    samples: int
    seed: int
    tail: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything, so that no length is reached in vain.

        Raises:
            ProbeError: an unknown task, no samples, no tokenizer, a scheme that does not fit the model, or a length that
                the task does not fit.
        """
        check_task(self.task, self.samples, self.tail)
        if self.tail is not None and not 1 <= self.tail < min(self.lengths):
            raise ProbeError(
                f"--tail: expected 1 to {min(self.lengths) - 1}, less than the shortest length, got {self.tail}"
            )
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
            for length in self.lengths:
                scheme.weave_at(length)
                scheme.visibility_at(length)
        for length in {min(self.lengths), max(self.lengths)}:
            TASKS[self.task][0](self.loaded, length, 1, self.seed)

    @property
    def total(self) -> int:
        """Rows that there will be."""
        return len(self.lengths) * len(self.schemes)

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each one was."""
        draw, score = TASKS[self.task]
        for length in self.lengths:
            drawn = draw(self.loaded, length, self.samples, self.seed)
            for scheme in self.schemes:
                scored = score(self.loaded, scheme, drawn, self.tail)
                weave = {"weave": scheme.weave_at(length).parameters()}
                self.rows.append({"scheme": scheme.spec, "length": length} | scored | weave)
                yield f"{scheme.spec} {length}"

    def result(self, complete: bool) -> Result[Score]:
        """The rows so far, with what they were made with."""
        settings = {
            "model": self.loaded.name, "window": self.loaded.window, "task": self.task, "samples": self.samples,
            "seed": self.seed, "tail": self.tail,
        }  # fmt: skip
        made = PasskeyScore if self.task == "passkey" else LikelihoodScore
        return Result("eval", settings, Provenance.now(), Records(made(**row) for row in self.rows), complete)


def check_task(task: str, samples: int, tail: int | None = None) -> None:
    """Refuse what needs no model to be seen.

    Raises:
        ProbeError: an unknown task, no samples, or a tail for a task that has none.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if samples < 1:
        raise ProbeError(f"--samples: expected at least 1, got {samples}")
    if tail is not None and task != "nll":
        raise ProbeError(f"--tail is for --task nll, got --task {task}; leave it out")
