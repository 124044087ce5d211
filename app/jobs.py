"""Probe runs in a thread of their own, so that moving a slider meanwhile neither blocks nor loses anything.

One at a time in the whole process: a second one would fight for the same cores.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from app import words
from probe.defaults import usual_length
from probe.errors import FieldError, ProbeError
from probe.models.load import LoadedModel, load_model
from probe.recording.folder import Run
from probe.schemes import ORIGIN, resolve_schemes
from probe.studies.run import RunSettings, run_probe
from probe.text import parse_numbers

MAX_LENGTH = 16_384
"""Tokens of a run started from the page; the command line takes more."""

MAX_SAMPLES = 64
MAX_VALUES = 50_000_000
"""Recorded numbers (schemes x sites x layers x dims x positions) of a run started from the page: 200 MB in float32."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What the form asks: layers and dims as text ("1,2", "0-19", "all"), length in tokens, None for the usual."""

    model: str
    layers: str = "all"
    dims: str = "0-19"
    sites: tuple[str, ...] = ("resid",)
    schemes: str = "origin,dynamic-ntk,rerope"
    input: str = "word:hello"
    length: int | None = None
    samples: int = 1

    def settings(self, loaded: LoadedModel) -> RunSettings:
        """Settings of the run, within the page's limits.

        Raises:
            ProbeError: numbers that do not parse, or more than a page should start.
        """
        length = usual_length(loaded.window) if self.length is None else self.length
        if not 2 <= length <= MAX_LENGTH:
            raise FieldError("length", f"2 to {MAX_LENGTH} tokens", length, hint="longer ones run with 'probe run'")
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise FieldError("samples", f"1 to {MAX_SAMPLES}", self.samples)
        layers = parse_numbers(self.layers, "layers", range(1, loaded.layers + 1))
        dims = parse_numbers(self.dims, "dims", range(loaded.model.config.hidden_size))
        schemes = len({ORIGIN, *(scheme.spec for scheme in resolve_schemes(self.schemes, loaded.window))})
        values = schemes * len(self.sites) * len(layers) * len(dims) * length
        if values > MAX_VALUES:
            raise ProbeError(f"expected at most {MAX_VALUES:,} recorded numbers, got {values:,}; take fewer dims")
        return RunSettings(
            layers=layers, dims=dims, sites=self.sites, schemes=self.schemes,
            input=self.input, length=length, samples=self.samples, detector=loaded.detector,
        )  # fmt: skip


@dataclass
class Job:
    """A run in progress or done: `share` is 0 to 1, `line` says what goes on; it ends with a `run` or an `error`."""

    request: Request
    out: Path
    share: float = 0.0
    line: str = "loading the model"
    run: Run | None = None
    error: str | None = None
    stopping: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Ask it to end at the next layer; nothing is left on disk then."""
        self.stopping = True

    def _progress(self, share: float, line: str) -> None:
        # When the server ends, so does its main thread, and Python waits for this one to clean up after itself.
        if self.stopping or not threading.main_thread().is_alive():
            raise ProbeError("the run was stopped")
        self.share, self.line = share, line

    def work(self) -> None:
        """Load, run and write; every failure becomes a line in `error`."""
        try:
            loaded = load_model(self.request.model)
            self.run = run_probe(loaded, self.request.settings(loaded), self.out, progress=self._progress)
        except ProbeError as error:
            self.error = words.plain(error)
        except Exception as error:
            _log.exception("the run failed")
            self.error = (
                f"the run failed: {type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
            )
        finally:
            self.ended.set()


_slot = threading.Lock()
_current: Job | None = None


def running() -> Job | None:
    """The run in progress, whoever started it."""
    return _current if _current is not None and not _current.ended.is_set() else None


def start(request: Request, root: Path) -> Job:
    """Start a run whose folder will lie in the runs root, named by the time and the model.

    Raises:
        ProbeError: another one is in progress.
    """
    global _current
    with _slot:
        if running() is not None:
            raise ProbeError("a run is in progress; wait for it, or stop it")
        _current = Job(request, _free(root, request.model))
        threading.Thread(target=_current.work, name="probe-run").start()
        return _current


def _free(root: Path, model: str) -> Path:
    """A folder name that is not taken."""
    model = re.sub(r"[^\w.-]+", "-", Path(model).name) or "model"
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{model}"
    taken = 1
    out = root / name
    while out.exists():
        taken += 1
        out = root / f"{name}-{taken}"
    return out
