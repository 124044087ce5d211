"""An evaluation of several models, one after another, with every sample kept: models x tasks x schemes x lengths."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.recording.folder import write_table
from probe.results import Records, Result
from probe.studies.evaluate import Evaluation
from probe.studies.journal import Journal
from probe.studies.passes import made_here

TABLE = "samples.parquet"


@dataclass
class Sweep:
    """Evaluations of several models under way.

    Attributes:
        load: loads a model by its name.
        models: their names.
        make: an evaluation of a loaded model, given the journal.
        keep: a folder for every sample, from which a sweep that was stopped goes on; None keeps none.
        tell: told a line within a row, when `share` has changed.

    Raises:
        ProbeError: what does not load, or does not fit one of the models; nothing has run then.
    """

    load: Callable[[str], LoadedModel]
    models: Sequence[str]
    make: Callable[[LoadedModel, Journal], Evaluation]
    keep: Path | None = None
    tell: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        self.journal = Journal(self.keep)
        self._settings: list[dict[str, Any]] = []
        self._costs: list[float] = []
        self.total = 0
        self._before: list[Any] = []
        self._now: Evaluation | None = None
        self._at = 0
        for name in self.models:  # each is loaded once to be checked; only one is held at a time
            self._now = None
            self._now = self.make(self.load(name), self.journal)
            self._settings.append(self._now.settings())
            self._costs.append(self._now.cost)
            self.total += self._now.total

    @property
    def rows(self) -> list[Any]:
        """Those of all models that are done."""
        return self._before + (self._now.rows if self._now is not None else [])

    @property
    def share(self) -> float:
        """Of the tokens that all of it will read, those that are read, 0 to 1."""
        now = self._costs[self._at] * self._now.share if self._now is not None else 0.0
        return min(1.0, (sum(self._costs[: self._at]) + now) / sum(self._costs))

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each cell was."""
        with self.journal.opened(made_here()):
            try:
                for at, name in enumerate(self.models):
                    self._at = at
                    yield from self._lines(name)
            finally:
                self._write_table()

    def _lines(self, name: str) -> Iterator[str]:
        """What the cells of one model are; its evaluation takes the place of the one before."""
        if len(self.models) > 1 or self._now is None:
            self._before, self._now = self.rows, None
            self._now = self.make(self.load(name), self.journal)
        self._now.tell = self.tell
        for line in self._now.run():
            yield line if len(self.models) == 1 else f"{name}: {line}"

    def _write_table(self) -> None:
        """One tidy table: a row per sample, with all that it was made with."""
        if self.keep is None:
            return
        lines = [{**json.loads(key), "number": number, **row} for (key, number), row in self.journal.kept.items()]
        samples = [line for line in lines if line["number"] >= 0]
        if samples:
            names = list(dict.fromkeys(name for line in samples for name in line))
            columns = {name: [line.get(name) for line in samples] for name in names}
            write_table(self.keep / TABLE, columns)

    def result(self, complete: bool) -> Result[Any]:
        """The rows so far, with what they were made with."""
        settings = dict(self._settings[0])
        if len(self.models) > 1:
            windows = {one["model"]: one["window"] for one in self._settings}
            lengths = {one["model"]: one["lengths"] for one in self._settings}
            settings |= {"model": ",".join(windows), "window": None, "windows": windows, "lengths": lengths}
        return Result("eval", settings, Provenance.now(), Records(self.rows), complete)
