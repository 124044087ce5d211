"""Our schemes beside the official implementation of Mesa-Extrapolation, on the same weights and tokens, in turn.

The official code (https://github.com/soacker/Mesa-Extrapolation) has no licence, so nothing of it is here: it stays in
the user's own checkout, and runs in an environment of the user's with transformers 4.31, which it needs, in a process
of its own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch

from probe.bench.memory import REPEATS, RETURNED, STOCK
from probe.bench.rows import OfficialRow, bench_row
from probe.bench.rss import load_average
from probe.bench.run import check_counts
from probe.bench.timing import Timing, machine
from probe.errors import FieldError, ProbeError
from probe.foreign import Process, Release, check_checkout, save_model, started, transformers_of
from probe.models.random import Shape, parse_shape
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import parse_schemes

DRIVER = Path(__file__).with_name("official_driver.py")
METHOD = Path("methods") / "mesa_extrapolation.py"
"""The official file that is imported, below the checkout."""
REPOSITORY = "github.com/soacker/Mesa-Extrapolation"
RELEASE = "4.31"
"""Of transformers, that it was written for."""
OFFICIAL = "official"
SHAPE = "random:layers=8,width=512,heads=8,window=2048,vocab=1024"
WHAT = ("prefill", "decode", "memory")
SHORT = 16
"""Tokens of the pass in which both sides must agree."""
SAME = 1e-4
"""Of the largest logit: float32 rounding, in another order."""
LEAST = 32
"""Tokens of the shortest measurement."""

Answer = dict[str, Any]
"""The driver's to one request: {"seconds"}, {"peak_bytes"}, {"logits"} or {"error"}."""


@dataclass(frozen=True)
class OfficialSettings:
    """What is compared, and how.

    Attributes:
        checkout: the user's, of the official repository.
        python: the interpreter that the official code runs in.
        scheme: ours, as text.
        lengths: tokens.
        model: random weights of a shape.
        repeats: timed, after a warm-up.
        steps: decoding steps in a repeat.
        threads: of the CPU.
        seed: of weights and token ids.

    Raises:
        ProbeError: no checkout of the official repository, or a value outside its domain.
    """

    checkout: Path
    python: str
    scheme: str = "mesa"
    lengths: tuple[int, ...] = (4096, 8192, 16384)
    model: str = SHAPE
    repeats: int = 3
    steps: int = 16
    threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_checkout(self.checkout, METHOD, REPOSITORY)
        if not self.lengths or min(self.lengths) < LEAST:
            raise FieldError("lengths", f"numbers of at least {LEAST} tokens", min(self.lengths, default="none"))
        check_counts(self, "repeats", "steps", "threads")
        if len(parse_schemes(self.scheme, self.shape.window)) > 1:
            raise FieldError("scheme", "one scheme", repr(self.scheme))

    @property
    def shape(self) -> Shape:
        """The model's."""
        return parse_shape(self.model)

    def side(self, folder: Path, official: bool) -> dict[str, Any]:
        """What one side's driver is told."""
        return {
            "checkout": str(self.checkout.resolve()) if official else "", "folder": str(folder),
            "window": self.shape.window, "scheme": self.scheme, "steps": self.steps, "threads": self.threads,
        }  # fmt: skip


def official_rows(
    what: str, length: int, contestants: Sequence[str], answers: dict[str, list[Answer]]
) -> list[OfficialRow]:
    """Rows of one measurement; one that failed says why instead."""
    made: list[OfficialRow] = []
    for name in contestants:
        failed = next((answer["error"] for answer in answers[name] if "error" in answer), None)
        measured = "peak_bytes" if what == "memory" else "seconds"
        values = [float(answer[measured]) for answer in answers[name] if failed is None]
        timing = Timing(median(values), min(values), max(values), len(values)) if values and what != "memory" else None
        peaks = [int(value) for value in values] if what == "memory" else []
        row = bench_row(what, name, length, timing, peaks, made[0] if made and values else None)
        made.append(OfficialRow(**asdict(row), skipped=failed))
    return made


def _ask(process: Process, do: str, model: str, length: int) -> Answer:
    return process.ask({"do": do, "model": model, "length": length})


def check_same_model(ours: Process, theirs: Process) -> None:
    """Both sides must be the same model where no scheme has anything to do: a few tokens, far inside the window.

    Raises:
        ProbeError: the official code does not run, or its logits differ from the stock model's.
    """
    mine, other = (_ask(process, "logits", name, SHORT) for process, name in ((ours, STOCK), (theirs, OFFICIAL)))
    for answer in (mine, other):
        if "error" in answer:
            raise ProbeError(f"a pass of {SHORT} tokens failed: {answer['error']}")
    largest = max(abs(a - b) for a, b in zip(mine["logits"], other["logits"], strict=True))
    if not largest < SAME * max(map(abs, mine["logits"])):
        raise ProbeError(f"the official code's logits of {SHORT} tokens differ from the stock model's by {largest:.2g}")


@dataclass
class OfficialBench:
    """The comparison under way: times in turn in two processes that stay, memory in a fresh process each."""

    settings: OfficialSettings
    release: Release
    machine: dict[str, Any]
    rows: list[OfficialRow] = field(default_factory=list)

    @classmethod
    def load(cls, settings: OfficialSettings) -> OfficialBench:
        """Look at the official side.

        Raises:
            ProbeError: an interpreter that cannot run it.
        """
        release = transformers_of(settings.python, (RELEASE,))
        about = machine(torch.device("cpu")) | {"threads": settings.threads}
        return cls(settings, Release.of(settings.checkout, METHOD, REPOSITORY, "none", release), about)

    def run(self) -> Iterator[str]:
        """Measure length by length; yields what comes next.

        Raises:
            ProbeError: the two sides are not the same model.
        """
        chosen = self.settings
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            save_model(chosen.shape, folder, max(chosen.lengths), chosen.seed)
            starts = {
                contestant: (python, chosen.side(folder, contestant == OFFICIAL))
                for contestant, python in (
                    (STOCK, sys.executable),
                    (chosen.scheme, sys.executable),
                    (OFFICIAL, chosen.python),
                )
            }
            ours, theirs = (
                stack.enter_context(started(starts[side][0], DRIVER, starts[side][1])) for side in (STOCK, OFFICIAL)
            )
            asked = {STOCK: ours, chosen.scheme: ours, OFFICIAL: theirs}
            check_same_model(ours, theirs)
            for length in chosen.lengths:
                for what in WHAT:
                    yield f"{what} at {length} tokens"
                    if what == "memory":
                        count = min(chosen.repeats, REPEATS)
                        answers = {name: [_peak(starts[name], name, length) for _ in range(count)] for name in asked}
                    else:
                        answers = _in_turn(asked, what, length, chosen.repeats)
                    self.rows += official_rows(what, length, list(asked), answers)
        self.machine["load_after"] = load_average()

    def result(self, complete: bool) -> Result[OfficialRow]:
        """The rows so far, with what they were made with."""
        chosen = {one.name: getattr(self.settings, one.name) for one in fields(self.settings)}
        del chosen["checkout"], chosen["python"]  # places on this machine; what is there is the provenance
        settings = {"what": "official", **chosen, "window": self.settings.shape.window, "dtype": "float32"}
        made_with = Provenance.now(**self.machine, theirs=asdict(self.release))
        return Result("bench", settings, made_with, Records(self.rows), complete)


def _in_turn(asked: dict[str, Process], what: str, length: int, repeats: int) -> dict[str, list[Answer]]:
    """A B C A B C ..., after a warm-up that is not kept."""
    answers: dict[str, list[Answer]] = {name: [] for name in asked}
    for repeat in range(repeats + 1):
        for name, process in asked.items():
            answer = _ask(process, what, name, length)
            if repeat:
                answers[name].append(answer)
    return answers


def _peak(start: tuple[str, dict[str, Any]], name: str, length: int) -> Answer:
    with started(start[0], DRIVER, start[1], RETURNED) as process:
        return _ask(process, "memory", name, length)
