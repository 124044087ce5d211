"""A finished run: its verdicts, its figure, its place on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from probe.errors import ProbeError
from probe.recording import folder
from probe.recording.folder import new_run_folder
from probe.recording.place import Place
from probe.results import Records, Result
from probe.thresholds.bands import BandScore, likelihood_bands
from probe.thresholds.detectors import DetectorSettings
from probe.thresholds.intervals import FailureInterval, failure_interval
from probe.thresholds.verdicts import Verdict, judge_run, read_verdicts, settings_of


class Run(folder.Run):
    """A run folder: what was recorded under every scheme on one input, and what was made of it.

    Attributes:
        path: the folder.
        info: every setting, the input, the provenance (`RunInfo`).
        trace: recorded values, float32 [positions, dims] by `Place.key`.
        nll: negative log-likelihood in nats by scheme, [positions]; entry 0 is NaN.
    """

    @cached_property
    def thresholds(self) -> Records[Verdict]:
        """The verdicts of the detector that the run was made with: a row per scheme, site, layer and dimension.

        Raises:
            ProbeError: the folder's table is missing or damaged.
        """
        return read_verdicts(self)

    def judge(
        self,
        detector: str | None = None,
        *,
        burn_in: int | None = None,
        run_length: int | None = None,
        margin: float | None = None,
        schemes: Sequence[str] | None = None,
        places: Sequence[Place] | None = None,
    ) -> Records[Verdict]:
        """Judge anew, with any detector and settings; the model is not needed.

        Args:
            detector: of the table of detectors; default the run's.
            burn_in: first position of the in-window reference; default as the run was made.
            run_length: positions that a crossing must last; likewise.
            margin: robust standard deviations of slack; likewise.
            schemes: of those that ran; default those that were asked for.
            places: of those that were recorded; default all.

        Raises:
            ProbeError: an unknown detector, scheme or place, or settings that leave nothing to judge with.
        """
        used = settings_of(self.info)
        settings = DetectorSettings(
            used.burn_in if burn_in is None else burn_in,
            used.run_length if run_length is None else run_length,
            used.margin if margin is None else margin,
        )
        return judge_run(self, detector or self.info.detector, settings, schemes=schemes, places=places)

    def measured_intervals(self, schemes: Sequence[str] | None = None, *, seed: int = 0) -> Records[FailureInterval]:
        """How sure the measured failures are: 95% bootstrap intervals over the run's samples.

        Args:
            schemes: of those that ran; default those that were asked for.
            seed: of the drawing.

        Returns:
            A row per scheme; a run of one sequence has no interval, and says so.

        Raises:
            ProbeError: a scheme that did not run.
        """
        return Records(failure_interval(self, one, seed=seed) for one in schemes or self.info.shown)

    def result(self) -> Result[Verdict]:
        """Settings, provenance and verdicts in the envelope that every kind of result has."""
        return Result("run", self.info.settings(), self.info.provenance, self.thresholds)

    def likelihood(
        self, edges: Sequence[float] = (0.75, 1, 1.25, 1.5, 1.75, 2), schemes: Sequence[str] | None = None
    ) -> Records[BandScore]:
        """Mean NLL in bands of position: inside the window, just past it, and further on.

        Args:
            edges: of the bands, in windows M, ascending.
            schemes: which; default those that the run shows.

        Raises:
            ProbeError: edges outside the input, a scheme that did not run, or a run without likelihoods.
        """
        return likelihood_bands(self, edges, schemes)

    def figure(self, verdicts: Sequence[Verdict] | None = None) -> Any:
        """A plotly figure: recorded dimensions over position, and the likelihood (the paper's Figure 2).

        Args:
            verdicts: what to draw; default the run's own.
        """
        from probe.figures.thresholds import threshold_figure

        return threshold_figure(self, verdicts)

    def save(self, path: str | Path, *, force: bool = False) -> Run:
        """Copy the run to a folder of its own, whole or not at all.

        Args:
            path: the run folder to make.
            force: replace a run that is there.

        Returns:
            The run there.

        Raises:
            ProbeError: the place is taken, or cannot be written.
        """
        target = Path(path)
        with new_run_folder(target, force=force) as part:
            shutil.copytree(self.path, part, dirs_exist_ok=True)
        return Run(target.expanduser().absolute())

    def _repr_html_(self) -> str:
        info = self.info
        said = f"{info.model}, window M = {info.window}, {info.input.length} tokens of {info.input.spec}"
        return f"<p><b>run</b> {escape(str(self.path))}: {escape(said)}</p>{self.thresholds._repr_html_()}"


def temporary_run_folder() -> Path:
    """A folder for a run that nobody has named yet."""
    return Path(tempfile.mkdtemp(prefix="weavescope-")) / "run"


def removed_with(run: Run, folder: Path) -> Run:
    """The run, whose folder goes when nobody holds it any more."""
    weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
    return run


def open_run(path: str | Path) -> Run:
    """The run in a folder.

    Args:
        path: a run folder, as `Run.save`, `probe run` and the dashboard leave it.

    Raises:
        ProbeError: there is no readable run there.
    """
    run = Run(Path(path).expanduser().absolute())
    _ = run.info  # read now, so that a folder that is no run is refused here
    return run


def list_runs(root: str | Path = "runs") -> list[Run]:
    """Finished runs directly under a folder, newest first.

    Raises:
        ProbeError: the folder cannot be read.
    """
    try:
        return [Run(found.path) for found in folder.list_runs(Path(root))]
    except OSError as error:
        raise ProbeError(f"{root}: cannot be read ({error.strerror})") from None
