"""What watching costs: a pass that is recorded, beside the same pass that nobody looks at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.bench.memory import STOCK
from probe.bench.rows import BenchRow, bench_row
from probe.bench.rss import load_average
from probe.bench.run import check_counts
from probe.bench.timing import Work, interleaved, machine
from probe.errors import FieldError, unknown
from probe.models.load import LoadedModel
from probe.models.random import bench_model, random_ids, sharing_weights
from probe.provenance import Provenance
from probe.recording.hooks import record
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, check_texts, resolve_schemes
from probe.seam.apply import apply_scheme
from probe.signals.collect import collect
from probe.signals.reference import LayerReference, fit_reference
from probe.signals.table import SIGNALS, AttentionSignal, PositionalSignal
from probe.studies.scan import MOST_QUERIES
from probe.tasks.nll import nll_per_position

WATCHED = {
    "nothing": "the pass under the scheme, with its likelihoods",
    "dims": "20 dimensions of the output of every layer",
    "all dims": "every dimension of the output of every layer, in memory",
    "all dims, on disk": "the same, written to files as they come",
    "scan, no attention": "the signals of 'probe scan' but those of attention",
    "scan": "every signal of 'probe scan', those of attention over the last quarter",
}
"""What is watched, and what that is."""
DIMS = 20
BLOCKS = 32
"""Blocks of the window, as a scan has them."""


@dataclass(frozen=True)
class RecordSettings:
    """What is timed, and how.

    Attributes:
        scheme: text or object, one.
        lengths: tokens.
        watched: of `WATCHED`; the first is what the others are compared with, and always there.
        model: as `BenchSettings` has it, like the others.
        window: trained window M, where the model's own is not meant.
        repeats: timed, after a warm-up.
        threads: of the CPU.
        dtype: of the weights.
        device: where it runs.
        seed: of random weights and of the token ids.
        trust_remote_code: as `load_model` takes it.
        allow_pickle: as `load_model` takes it.

    Raises:
        ProbeError: whatever needs no model to be seen to be wrong.
    """

    scheme: str | Scheme = ORIGIN
    lengths: tuple[int, ...] = (8192,)
    watched: tuple[str, ...] = tuple(WATCHED)
    model: str = "random:layers=8,width=512,heads=8,window=8192"
    window: int | None = None
    repeats: int = 5
    threads: int = 2
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "repeats", "threads")
        for one in self.watched:
            if one not in WATCHED:
                raise unknown("what is watched", one, WATCHED)
        if not self.lengths or min(self.lengths) < 2 * BLOCKS:
            raise FieldError("lengths", f"numbers of at least {2 * BLOCKS} tokens", min(self.lengths, default="none"))
        if isinstance(self.scheme, str):
            check_texts(self.scheme)


@dataclass
class RecordBench:
    """The benchmark, under way: `rows` are those that are done.

    Attributes:
        settings: what was chosen.
        loaded: the model.
        scheme: under which it runs.
        rows: what is done; "scheme" says what was watched, and "stock" is the model as transformers runs it.
        machine: what it runs on, and how busy that was.
    """

    settings: RecordSettings
    loaded: LoadedModel
    scheme: Scheme
    rows: list[BenchRow] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, settings: RecordSettings) -> RecordBench:
        """Load the model.

        Raises:
            ProbeError: it does not load, or the scheme does not fit, or there are several.
        """
        loaded = bench_model(
            settings.model, device=settings.device, dtype=settings.dtype, window=settings.window, seed=settings.seed,
            trust_remote_code=settings.trust_remote_code, allow_pickle=settings.allow_pickle,
        )  # fmt: skip
        found = resolve_schemes(settings.scheme, loaded.window)
        if len(found) != 1:
            raise FieldError("scheme", "one", ", ".join(one.spec for one in found))
        torch.set_num_threads(settings.threads)
        return cls(settings, loaded, found[0], machine=machine(loaded.device))

    def run(self) -> Iterator[str]:
        """Measure length by length; yields what comes next."""
        watched = ["nothing", *(one for one in self.settings.watched if one != "nothing")]
        reference: Sequence[LayerReference] = ()
        if any(one.startswith("scan") for one in watched):
            yield "what vectors are like inside the window"
            reference = self._reference()
        for length in self.settings.lengths:
            yield f"recording at {length} tokens"
            ids = random_ids(self.loaded, length, self.settings.seed)
            with ExitStack() as stack:
                works = self._works(ids, watched, reference, stack)
                timings = interleaved(works, self.settings.repeats, self.loaded.device)
            bare = bench_row("record", "nothing", length, timings["nothing"], [], None)
            # Beside the pass that nobody looks at, the stock model too.
            self.rows += [bench_row("record", name, length, timings[name], [], bare) for name in (STOCK, *watched)]
        self.machine["load_after"] = load_average()

    def _reference(self) -> Sequence[LayerReference]:
        window = min(self.loaded.window, min(self.settings.lengths))
        return fit_reference(self.loaded, random_ids(self.loaded, window, self.settings.seed + 1).cpu(), window // 8)

    def _works(
        self, ids: Int[Tensor, "1 length"], watched: Sequence[str], reference: Sequence[LayerReference],
        stack: ExitStack,
    ) -> Mapping[str, Work]:  # fmt: skip
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stock = sharing_weights(self.loaded.model)

        def bare() -> None:
            nll_per_position(stock, ids)

        return {STOCK: bare, **{one: self._work(one, ids, reference, folder) for one in watched}}

    def _work(self, what: str, ids: Int[Tensor, "1 length"], reference: Sequence[LayerReference], folder: Path) -> Work:
        loaded, config = self.loaded, self.loaded.model.config
        layers = range(1, len(loaded.family.layer_list(loaded.model)) + 1)
        if what.startswith("scan"):
            return self._scanning(ids, reference, what == "scan")
        dims = range(min(DIMS, config.hidden_size)) if what == "dims" else range(config.hidden_size)
        spill = folder if what.endswith("on disk") else None

        def nothing() -> None:
            with apply_scheme(loaded.model, self.scheme):
                nll_per_position(loaded.model, ids)

        def recorded() -> None:
            with apply_scheme(loaded.model, self.scheme), record(loaded.model, ["resid"], layers, dims, spill) as found:
                nll_per_position(loaded.model, ids)
            for layer in layers:  # what a run writes down
                found.values("resid", layer)

        return nothing if what == "nothing" else recorded

    def _scanning(self, ids: Int[Tensor, "1 length"], reference: Sequence[LayerReference], attention: bool) -> Work:
        names = [
            name
            for name, row in SIGNALS.items()
            if not isinstance(row, PositionalSignal) and (attention or not isinstance(row, AttentionSignal))
        ]
        length, host = ids.shape[1], ids.cpu()
        block = max(4, self.loaded.window // BLOCKS)
        last = length - min(self.loaded.window, length) // 4

        def work() -> None:
            collect(self.loaded, self.scheme, host, names, block, reference, last, MOST_QUERIES)

        return work

    def result(self, complete: bool) -> Result[BenchRow]:
        """The rows so far, with what they were made with."""
        chosen = asdict(self.settings) | {
            "scheme": self.scheme.spec, "lengths": list(self.settings.lengths),
            "watched": list(self.settings.watched), "window": self.loaded.window,
        }  # fmt: skip
        return Result("bench", chosen, Provenance.now(**self.machine), Records(self.rows), complete)
