"""An evaluation of several models, one after another, with every sample kept: models x tasks x schemes x lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.recording.folder import write_table
from probe.results import Records, Result
from probe.studies.evaluate import Evaluation
from probe.studies.journal import Journal

TABLE = "samples.parquet"


@dataclass
class Sweep:
    """Evaluations of several models under way; `rows` are those of all.

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
    rows: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.journal = Journal(self.keep)
        self._settings: list[dict[str, Any]] = []
        self._costs: list[float] = []
        self.total = 0
        for name in self.models:  # each is loaded once to be checked, and held only if it is alone
            self._now = self.make(self.load(name), self.journal)
            self._settings.append(self._now.settings())
            self._costs.append(self._now.cost)
            self.total += self._now.total
        self._at = 0

    @property
    def share(self) -> float:
        """Of the tokens that all of it will read, those that are read, 0 to 1."""
        done = sum(self._costs[: self._at]) + self._costs[min(self._at, len(self._costs) - 1)] * self._now.share
        return min(1.0, done / sum(self._costs))

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each cell was."""
        with self.journal.opened(_made_with()):
            try:
                for at, name in enumerate(self.models):
                    if len(self.models) > 1:
                        self._now = self.make(self.load(name), self.journal)
                    self._now.tell, self._at = self.tell, at
                    rows = len(self.rows)
                    for line in self._now.run():
                        self.rows[rows:] = self._now.rows
                        yield line if len(self.models) == 1 else f"{name}: {line}"
            finally:
                self.rows[rows:] = self._now.rows
                self._write_table()

    def _write_table(self) -> None:
        """One tidy table: a row per sample, with all that it was made with."""
        if self.keep is None:
            return
        lines = [{**_parsed(key), "number": number, **row} for (key, number), row in self.journal.kept.items()]
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


def _parsed(key: str) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(key)
    return found


def _made_with() -> dict[str, Any]:
    """What samples of any model depend on beside their own settings."""
    source = Provenance.now()
    return {
        "versions": {name: source.versions.get(name) for name in ("weavescope", "torch", "transformers")},
        "git_commit": source.git_commit,
    }
