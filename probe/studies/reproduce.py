"""A run made once more, and what came out differently."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probe.errors import ProbeError
from probe.models.load import LoadedModel, load_model
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.studies.run import Progress, RunSettings, run_probe
from probe.thresholds.detectors import DetectorSettings
from probe.thresholds.verdicts import read_verdicts


@dataclass(frozen=True)
class Difference:
    """One scheme of two runs.

    Attributes:
        scheme: its text.
        values: largest difference of recorded values, over the largest magnitude of their place.
        nll: largest difference of the likelihood at a position, nats; NaN for models without one.
        verdicts: how many verdicts are alike in what is predicted and measured.
        of: how many there are.
    """

    scheme: str
    values: float
    nll: float
    verdicts: int
    of: int

    @property
    def alike(self) -> bool:
        """Whether all verdicts are."""
        return self.verdicts == self.of


def settings_from(info: RunInfo) -> RunSettings:
    """The settings that a run was made with."""
    used = info.detection
    return RunSettings(
        layers=info.layers, dims=info.dims, sites=info.sites, schemes=",".join(info.shown), input=info.input.spec,
        length=info.input.length, samples=info.input.samples, detector=info.detector,
        detection=DetectorSettings(used.burn_in, used.run_length, used.margin), backend=info.backend,
        chunk_batch=info.chunk_batch, seed=info.seed,
    )  # fmt: skip


def changes_of(before: RunInfo, after: RunInfo) -> list[str]:
    """What the second run was made with that the first was not, a line each."""
    old, new = before.provenance, after.provenance
    found = [
        f"{name} {old.versions.get(name)} then, {new.versions.get(name)} now"
        for name in ("weavescope", "torch", "transformers", "numpy")
        if old.versions.get(name) != new.versions.get(name)
    ]
    for name, one, other in (
        ("commit", old.git_commit, new.git_commit), ("platform", old.platform, new.platform),
        ("threads", old.threads, new.threads), ("device", before.device, after.device),
        ("dtype", before.dtype, after.dtype), ("parameters", before.parameters, after.parameters),
        ("input", before.input.sha256[:12], after.input.sha256[:12]),
    ):  # fmt: skip
        if one != other and one not in (None, ""):
            found.append(f"{name} {one} then, {other} now")
    return found


def differences(before: Run, after: Run) -> list[Difference]:
    """What differs between two runs of the same settings, a row per scheme that was asked for.

    Raises:
        ProbeError: they did not record the same.
    """
    if before.info.places() != after.info.places() or before.info.shown != after.info.shown:
        raise ProbeError("the two runs did not record the same places under the same schemes")
    told = [{(one.scheme, one.site, one.layer, one.dim): one for one in read_verdicts(run)} for run in (before, after)]
    rows = []
    for spec in before.info.shown:
        keys = [key for key in before.trace if key.rpartition("/")[0] == spec]
        mine = [key for key in told[0] if key[0] == spec]
        alike = sum(_verdict(told[0][key]) == _verdict(told[1].get(key)) for key in mine)
        rows.append(
            Difference(
                spec, max((_values(before.trace[key], after.trace[key]) for key in keys), default=0.0),
                _nats(before.nll[spec], after.nll[spec]), alike, len(mine),
            )
        )  # fmt: skip
    return rows


def _verdict(one: Any) -> tuple[Any, ...]:
    return () if one is None else (one.predicted, one.measured, one.unpredicted, one.unmeasured)


def _values(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    size = float(np.abs(one).max()) or 1.0
    return float(np.abs(one.astype(np.float64) - other).max()) / size


def _nats(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    gap = np.abs(one[1:] - other[1:])
    return float("nan") if np.isnan(gap).all() else float(np.nanmax(gap))


def reproduce(
    path: Path,
    out: Path | None = None,
    *,
    load: Callable[[RunInfo], LoadedModel] | None = None,
    progress: Progress = lambda share, line: None,
) -> tuple[list[str], list[Difference]]:
    """Make a run once more, and compare.

    Args:
        path: its folder.
        out: where the new run is kept; None keeps it nowhere.
        load: loads the model of a run; None as it was named, with its window, dtype and device.
        progress: told how far it is.

    Returns:
        (what it was made with that has changed since, a row per scheme).

    Raises:
        ProbeError: the run cannot be read, or its model, input or device is not here.
    """
    before = Run(path)
    loaded = (load or _load)(before.info)
    with tempfile.TemporaryDirectory(prefix="weavescope-") as folder:
        target = Path(folder) / "run" if out is None else out
        after = run_probe(loaded, settings_from(before.info), target, progress=progress)
        return changes_of(before.info, after.info), differences(before, after)


def _load(info: RunInfo) -> LoadedModel:
    return load_model(info.model, device=info.device, dtype=info.dtype, window=info.window, length=info.input.length)
