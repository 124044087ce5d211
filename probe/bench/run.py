"""`probe bench`: rows of time or memory per scheme and length, each with its ratio to the stock model of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from probe.attention.dense import MAX_LENGTH
from probe.bench.memory import REPEATS, STOCK, cuda_peak, fresh_process, generation
from probe.bench.rss import load_average
from probe.bench.timing import Timing, interleaved, machine
from probe.bench.work import WORKS
from probe.errors import ProbeError, out_of_memory, unknown
from probe.models.load import LoadedModel
from probe.models.random import DEFAULT, bench_model, sharing_weights
from probe.schemes import parse_schemes
from probe.seam.apply import BACKENDS, apply_scheme

WHAT = (*WORKS, "memory")
"""The benchmarks."""
COLUMNS = (
    "what", "scheme", "length", "seconds", "fastest", "slowest", "repeats", "peak_bytes", "least_bytes", "most_bytes", "ratio",
)  # fmt: skip
"""What every row has. `ratio` is to the stock row of the same length: of seconds, or of peak bytes where no time was taken. `seconds` and
`peak_bytes` are medians over repeats."""


@dataclass(frozen=True)
class BenchSettings:
    """What is timed, and how. Lengths in tokens.

    `memory` fills `peak_bytes` of timed rows too, which on CPU costs one more process per row.
    """

    what: str
    schemes: str = "origin"
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


def check(settings: BenchSettings) -> None:
    """Refuse bad settings before anything is loaded.

    Raises:
        ProbeError: something is out of its domain.
    """
    if settings.what not in WHAT:
        raise unknown("benchmark", settings.what, WHAT)
    if settings.backend not in BACKENDS:
        raise unknown("backend", settings.backend, BACKENDS)
    for name in ("repeats", "threads"):
        if getattr(settings, name) < 1:
            raise ProbeError(f"--{name}: expected at least 1, got {getattr(settings, name)}")
    if not settings.lengths or min(settings.lengths) < 2:
        raise ProbeError(f"--lengths: expected numbers of at least 2 tokens, got {min(settings.lengths, default=None)}")
    if settings.backend == "dense" and max(settings.lengths) > MAX_LENGTH:
        raise ProbeError(
            f"--lengths: the backend dense takes at most {MAX_LENGTH} tokens, got {max(settings.lengths)}; use --backend pieces"
        )


def row(
    what: str, scheme: str, length: int, timing: Timing | None, peaks: Sequence[int], stock: dict[str, Any] | None
) -> dict[str, Any]:
    """One row; `stock` is the stock model's row at this length, None while making that one."""
    made: dict[str, Any] = {"what": what, "scheme": scheme, "length": length}
    made |= asdict(timing) if timing else {"seconds": None, "fastest": None, "slowest": None, "repeats": len(peaks)}
    made |= {"peak_bytes": int(median(peaks)), "least_bytes": min(peaks), "most_bytes": max(peaks)} if peaks else {}
    measured = "seconds" if timing else "peak_bytes"
    below = (stock or made).get(measured)
    made["ratio"] = made[measured] / below if below else None
    return {name: made.get(name) for name in COLUMNS}


def warnings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows whose repeats differ too much to be trusted, one line each."""
    return [
        f"{row['what']} of {row['scheme']} at {row['length']} tokens: the slowest of {row['repeats']} repeats took "
        f"{row['slowest'] / row['fastest']:.1f} times the fastest; is the machine busy?"
        for row in rows
        if row["seconds"] and Timing(row["seconds"], row["fastest"], row["slowest"], row["repeats"]).unsteady
    ]


@dataclass
class Bench:
    """A benchmark under way. `rows` grows length by length, so that a run that is cut short keeps what it finished."""

    settings: BenchSettings
    loaded: LoadedModel
    schemes: list[str]
    rows: list[dict[str, Any]]
    machine: dict[str, Any]

    @classmethod
    def load(cls, settings: BenchSettings) -> Bench:
        """Check everything and load the model.

        Raises:
            ProbeError: bad settings, or a model that does not load.
        """
        check(settings)
        loaded = bench_model(
            settings.model, device=settings.device, dtype=settings.dtype, window=settings.window, seed=settings.seed
        )
        torch.set_num_threads(settings.threads)
        schemes = [scheme.spec for scheme in parse_schemes(settings.schemes, loaded.window)]
        return cls(settings, loaded, [STOCK, *schemes], [], machine(loaded.device))

    def run(self) -> Iterator[str]:
        """Measure length by length; yields what comes next, for a progress line.

        Raises:
            ProbeError: a length does not fit the memory.
        """
        with ExitStack() as stack:
            models = {name: stack.enter_context(self._applied(name)) for name in self.schemes}
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
        stock: dict[str, Any] | None = None
        made = []
        for name, model in models.items():
            made.append(row(what, name, length, timings.get(name), self._peaks(name, model, length), stock))
            stock = stock or made[0]
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
        settings = asdict(self.settings) | {"scheme": name, "length": length}
        count = min(self.settings.repeats, REPEATS) if what == "memory" else 1
        results = [fresh_process(settings) for _ in range(count)]
        self.machine["peak_method"] = results[0]["method"]
        return [int(result["peak_bytes"]) for result in results]

    @contextmanager
    def _applied(self, name: str) -> Iterator[PreTrainedModel]:
        """A model object of its own on the shared weights, with the scheme on it."""
        model = sharing_weights(self.loaded.model)
        if name == STOCK:
            yield model
            return
        scheme = parse_schemes(name, self.loaded.window)[0]
        with apply_scheme(model, scheme, backend=self.settings.backend):
            yield model

    def result(self, complete: bool) -> dict[str, Any]:
        """Everything as one JSON object."""
        from probe.provenance import environment

        return {
            "bench": self.settings.what,
            "model": self.loaded.name,
            "window": self.loaded.window,
            "complete": complete,
            "settings": asdict(self.settings),
            "seed": self.settings.seed,
            "machine": self.machine,
            "environment": environment(),
            "rows": self.rows,
        }


@contextmanager
def _memory_errors(length: int) -> Iterator[None]:
    """Out of memory, on any device, as a line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProbeError(f"--lengths: {length} tokens do not fit the memory ({first})") from None
