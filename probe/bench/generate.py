"""Greedy continuations of one prompt under several schemes: what each writes, how long it takes, what it holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from probe.bench.memory import WARM_UP, cuda_peak
from probe.bench.rss import PeakMemory
from probe.bench.timing import synchronize
from probe.bench.work import decode, prefill
from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import Scheme, resolve_schemes
from probe.seam.apply import apply_scheme
from probe.seam.parallel import Ranks
from probe.tasks.inputs import make_input

MOST_NEW = 1024
"""Tokens written at most: each is a step of Python here; `generate()` of transformers is for more."""


@dataclass(frozen=True)
class Continuation:
    """What one scheme wrote.

    Attributes:
        scheme: the scheme's text.
        prompt: tokens read.
        text: what was written, decoded; None without a tokenizer.
        tokens: what was written, ids.
        prefill_seconds: of the prompt, to the first token.
        step_seconds: median of the steps after it; None where there is only one token.
        peak_bytes: held at most above the loaded model.
        peak_method: how that was read: "VmHWM", "ru_maxrss" (which understates after a larger scheme), "cuda".
        borders: first positions of the prompt's chunks; empty where nothing is in chunks.
    """

    scheme: str
    prompt: int
    text: str | None
    tokens: tuple[int, ...]
    prefill_seconds: float
    step_seconds: float | None
    peak_bytes: int
    peak_method: str
    borders: tuple[int, ...]


def _ends(loaded: LoadedModel) -> set[int]:
    """Ids that end a text."""
    chosen = getattr(loaded.model, "generation_config", None)
    ends = getattr(chosen, "eos_token_id", None)
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


class Generation:
    """Continuations that are yet to be written, scheme by scheme.

    Args:
        loaded: the model.
        schemes: text, objects or both.
        input: the prompt, as `probe run` takes it: "text:FILE", "document:NAME", ...
        length: its tokens; None: a file whole.
        new: tokens to write, less where the model ends its text.
        seed: of what is drawn of the input.
        ranks: processes that share the chunks of the prompt; None: this one alone.

    Raises:
        ProbeError: an unknown scheme, an unreadable input, a model without a vocabulary head, or `new` out of range.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        schemes: str | Scheme | Sequence[str | Scheme],
        input: str,
        length: int | None = None,
        new: int = 20,
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        if not 1 <= new <= MOST_NEW:
            raise FieldError("new", f"1 to {MOST_NEW} tokens", new)
        if not loaded.family.head:
            raise FieldError("model", hint=f"{loaded.family.name} has no vocabulary head, and writes nothing")
        self.loaded, self.new, self.seed, self.input = loaded, new, seed, input
        self.ranks = ranks
        self.schemes = resolve_schemes(schemes, loaded.window)
        self.ids = make_input(loaded, input, length, 1, seed)
        self.rows: list[Continuation] = []

    @property
    def total(self) -> int:
        """Rows that there will be."""
        return len(self.schemes)

    def run(self) -> Iterator[str]:
        """Write under one scheme after the other."""
        prefill(self.loaded.model, self.ids[:, :WARM_UP].to(self.loaded.device))
        for scheme in self.schemes:
            self.rows.append(self._under(scheme))
            yield scheme.spec

    def _under(self, scheme: Scheme) -> Continuation:
        ids = self.ids.to(self.loaded.device)
        with apply_scheme(self.loaded.model, scheme, ranks=self.ranks):
            memory = PeakMemory()
            took: list[float] = []
            written: list[int] = []

            def work() -> None:
                written[:], took[:] = self._write(ids)

            if ids.device.type == "cuda":
                peak, method = cuda_peak(work, ids.device), "cuda"
            else:
                work()
                peak, method = memory.read(), memory.method
        steps = sorted(took[1:])
        tokenizer = self.loaded.tokenizer
        return Continuation(
            scheme.spec, ids.shape[1], None if tokenizer is None else str(tokenizer.decode(written)), tuple(written),
            took[0], steps[len(steps) // 2] if steps else None, peak, method, tuple(scheme.borders_at(ids.shape[1])),
        )  # fmt: skip

    def _write(self, ids: Tensor) -> tuple[list[int], list[float]]:
        """New tokens, and the seconds of each: the first one's are the prefill's."""
        began = time.perf_counter()
        after = prefill(self.loaded.model, ids)
        synchronize(ids.device)
        took, written = [time.perf_counter() - began], [int(after.logits[0, -1].argmax())]
        ends = _ends(self.loaded)
        while len(written) < self.new and written[-1] not in ends:
            after, seconds = decode(self.loaded.model, after, 1)
            took += seconds
            written.append(int(after.logits[0, -1].argmax()))
        return written, took

    def result(self, complete: bool) -> Result[Continuation]:
        """The rows so far, with what they were made with."""
        settings = {
            "model": self.loaded.name, "window": self.loaded.window, "input": self.input,
            "schemes": [scheme.spec for scheme in self.schemes], "length": self.ids.shape[1], "new": self.new,
            "seed": self.seed, "processes": 1 if self.ranks is None else self.ranks.count,
        }  # fmt: skip
        return Result("generate", settings, Provenance.now(), Records(self.rows), complete)
