"""Rows of time or memory per scheme and length, each with its ratio to the stock model of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from probe.attention.dense import MAX_LENGTH
from probe.bench.memory import REPEATS, STOCK, MemoryRequest, cuda_peak, fresh_process, generation
from probe.bench.rows import BenchRow, bench_row
from probe.bench.rss import load_average
from probe.bench.timing import Timing, interleaved, machine
from probe.bench.work import WORKS
from probe.errors import FieldError, ProbeError, literal, out_of_memory, unknown
from probe.models.load import LoadedModel
from probe.models.random import DEFAULT, bench_model, sharing_weights
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, check_texts, parse_scheme, resolve_schemes
from probe.seam.apply import BACKENDS, apply_scheme

WHAT = (*WORKS, "memory")
"""The benchmarks."""


def check_counts(settings: object, *names: str) -> None:
    """Refuse settings of which there must be one at least.

    Raises:
        FieldError: there is less.
    """
    for name in names:
        if getattr(settings, name) < 1:
            raise FieldError(name, "at least 1", getattr(settings, name))


@dataclass(frozen=True)
class BenchSettings:
    """What is timed, and how.

    Attributes:
        what: of `WHAT`.
        schemes: text such as "origin,rerope(N=64)", scheme objects, or both in a list.
        lengths: tokens.
        model: anything that `load_model` loads, or "random:layers=4,width=512,heads=8".
        window: trained window M that the schemes are made for; None is the model's.
        repeats: timed, after a warm-up.
        threads: of the CPU.
        dtype: as `load_model` takes it.
        device: as `load_model` takes it.
        backend: of the attention, "pieces" or "dense".
        seed: of random weights and of the token ids.
        memory: fill `peak_bytes` of timed rows too, which on CPU costs one more process per row.
        trust_remote_code: as `load_model` takes it.
        allow_pickle: as `load_model` takes it.

    Raises:
        ProbeError: whatever needs no model to be seen to be wrong.
    """

    what: str
    schemes: str | Scheme | Sequence[str | Scheme] = ORIGIN
    lengths: tuple[int, ...] = (2048, 4096, 8192)
    model: str = DEFAULT
    window: int | None = None
    repeats: int = 5
    threads: int = 2
    dtype: str = "float32"
    device: str = "auto"
    backend: str = "pieces"
    seed: int = 0
    memory: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if self.what not in WHAT:
            raise unknown("benchmark", self.what, WHAT)
        if self.backend not in BACKENDS:
            raise unknown("backend", self.backend, BACKENDS)
        check_counts(self, "repeats", "threads")
        if not self.lengths or min(self.lengths) < 2:
            raise FieldError("lengths", "numbers of at least 2 tokens", min(self.lengths, default="none"))
        if self.backend == "dense" and max(self.lengths) > MAX_LENGTH:
            raise FieldError(
                "lengths", hint=f"the backend dense takes at most {MAX_LENGTH} tokens, got {max(self.lengths)}; "
                "use {backend} pieces",
            )  # fmt: skip
        if isinstance(self.schemes, str):
            check_texts(self.schemes)

    def load(self) -> LoadedModel:
        """The model.

        Raises:
            ProbeError: it does not load, or is no language model with a cache.
        """
        return bench_model(
            self.model, device=self.device, dtype=self.dtype, window=self.window, seed=self.seed,
            trust_remote_code=self.trust_remote_code, allow_pickle=self.allow_pickle,
        )  # fmt: skip


@dataclass
class Bench:
    """A benchmark under way. `rows` grows length by length, so that a run that is cut short keeps what it finished.

    Attributes:
        settings: what was chosen.
        loaded: the model.
        schemes: what is compared, by spec; None is the stock model.
        rows: what is done.
        machine: what it runs on, and how busy that was.
    """

    settings: BenchSettings
    loaded: LoadedModel
    schemes: dict[str, Scheme | None]
    rows: list[BenchRow] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, settings: BenchSettings) -> Bench:
        """Load the model and build the schemes.

        Raises:
            ProbeError: a model that does not load, or a scheme that does not fit its window.
        """
        loaded = settings.load()
        schemes = resolve_schemes(settings.schemes, loaded.window)
        torch.set_num_threads(settings.threads)
        named: dict[str, Scheme | None] = {STOCK: None, **{scheme.spec: scheme for scheme in schemes}}
        return cls(settings, loaded, named, machine=machine(loaded.device))

    def run(self) -> Iterator[str]:
        """Measure length by length; yields what comes next, for a progress line.

        Raises:
            ProbeError: a length does not fit the memory.
        """
        with ExitStack() as stack:
            models = {name: stack.enter_context(self._applied(scheme)) for name, scheme in self.schemes.items()}
            for length in self.settings.lengths:
                yield f"{self.settings.what} at {length} tokens"
                with _memory_errors(length):
                    self._one_length(models, length)
        self.machine["load_after"] = load_average()

    def _one_length(self, models: dict[str, PreTrainedModel], length: int) -> None:
        what, seed = self.settings.what, self.settings.seed
        timings: dict[str, Timing] = {}
        if what in WORKS:
            works = {
                name: WORKS[what](self.loaded, model, name == STOCK, length, seed) for name, model in models.items()
            }
            timings = interleaved(works, self.settings.repeats, self.loaded.device)
            del works
        made: list[BenchRow] = []
        for name, model in models.items():
            peaks = self._peaks(name, model, length)
            made.append(bench_row(what, name, length, timings.get(name), peaks, made[0] if made else None))
        self.rows += made

    def _peaks(self, name: str, model: PreTrainedModel, length: int) -> list[int]:
        """Peak bytes of one row; none where they were not asked for and cost another process."""
        what, seed = self.settings.what, self.settings.seed
        if self.loaded.device.type == "cuda":
            here = replace(self.loaded, model=model)
            if what == "memory":
                return [cuda_peak(lambda: generation(here, length, seed), self.loaded.device)]
            return [cuda_peak(lambda: WORKS[what](here, model, name == STOCK, length, seed)(), self.loaded.device)]
        if what != "memory" and not self.settings.memory:
            return []
        count = min(self.settings.repeats, REPEATS) if what == "memory" else 1
        peaks = [fresh_process(self._request(name, length)) for _ in range(count)]
        self.machine["peak_method"] = peaks[0].method
        return [peak.peak_bytes for peak in peaks]

    def _request(self, name: str, length: int) -> MemoryRequest:
        """One row for a process of its own, which makes the scheme again from its text.

        Raises:
            FieldError: a scheme object that its text does not give.
        """
        scheme = self.schemes[name]
        if scheme is not None and not gives(name, scheme, self.loaded.window, length):
            raise FieldError(
                "schemes", hint=f"{literal(name)} has no text that gives it, and on CPU memory is measured in a "
                "process of its own, which has only the text; time it, or measure on a GPU",
            )  # fmt: skip
        chosen = self.settings
        return MemoryRequest(
            chosen.what, name, length, chosen.model, chosen.window, chosen.threads, chosen.dtype, chosen.backend,
            chosen.seed, chosen.trust_remote_code, chosen.allow_pickle,
        )  # fmt: skip

    @contextmanager
    def _applied(self, scheme: Scheme | None) -> Iterator[PreTrainedModel]:
        """A model object of its own on the shared weights, with the scheme on it."""
        model = sharing_weights(self.loaded.model)
        if scheme is None:
            yield model
            return
        with apply_scheme(model, scheme, backend=self.settings.backend):
            yield model

    def result(self, complete: bool) -> Result[BenchRow]:
        """The rows so far, with what they were made with."""
        chosen = {one.name: getattr(self.settings, one.name) for one in fields(self.settings)} | {
            "schemes": ",".join(name for name in self.schemes if name != STOCK),
            "lengths": list(self.settings.lengths), "window": self.loaded.window,
        }  # fmt: skip
        return Result("bench", chosen, Provenance.now(**self.machine), Records(self.rows), complete)


def gives(text: str, scheme: Scheme, window: int, length: int) -> bool:
    """Whether a text names a scheme that does the same at this length, for a prompt and for the step after it."""
    try:
        other = parse_scheme(text, window)
    except ProbeError:
        return False
    return _what_it_does(other, length) == _what_it_does(scheme, length)


def _what_it_does(scheme: Scheme, length: int) -> tuple[object, ...]:
    return (
        scheme.frequencies, scheme.scale,
        *((scheme.weave_at(T, length), scheme.visibility_at(T, length)) for T in (length, length + 1)),
    )  # fmt: skip


@contextmanager
def _memory_errors(length: int) -> Iterator[None]:
    """Out of memory, on any device, as a line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FieldError("lengths", hint=f"{length} tokens do not fit the memory ({literal(first)})") from None
