"""Verdicts: what a detector says of every recorded place, from what was recorded, without running the model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from probe.errors import unknown
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.recording.place import Place
from probe.results import Records
from probe.schemes import ORIGIN
from probe.thresholds.detectors import DETECTORS, Detection, DetectorSettings, Direction, Untold, detect
from probe.thresholds.measured import measured_failure


@dataclass(frozen=True)
class Verdict:
    """One place under one scheme: its threshold, the failure it predicts, and the failure measured in the same pass.

    Attributes:
        scheme: the scheme's text.
        site: recorded site.
        layer: 1 is the first.
        dim: 0 is the first; None for all that were recorded, judged as one.
        detector: what judged it.
        threshold: H, in the units of the hidden state; None where there is none.
        direction: the side of H on which the model fails.
        predicted: position from which the hidden state stays beyond H; None for no failure, or where `unpredicted` says
            why that could not be told.
        margin: how far the worst lasting stretch stays inside H, in robust standard deviations; negative with a
            failure.
        measured: position from which the likelihood stays above its in-window band; None for no failure, or where
            `unmeasured` says why that could not be told.
        unpredicted: why nothing can be said of a predicted failure; None where it can.
        unmeasured: why nothing can be said of a measured failure; None where it can.
    """

    scheme: str
    site: str
    layer: int
    dim: int | None
    detector: str
    threshold: float | None
    direction: Direction | None
    predicted: int | None
    margin: float | None
    measured: int | None
    unpredicted: str | None = None
    unmeasured: str | None = None

    @property
    def place(self) -> Place:
        """Where it was judged."""
        return Place(self.scheme, self.site, self.layer, self.dim)


@dataclass(frozen=True)
class Recorded:
    """What a judgement reads: of a run that is being made, or of a finished one.

    Attributes:
        trace: recorded values, float32 [positions, dims] by `Place.key`; those of `origin` must be among them.
        nll: NLL per position by scheme, nats; entry 0 is NaN.
        dims: the dimensions that the columns of `trace` are.
        window: trained window M.
        vocabulary: tokens in the model's vocabulary; None where it is not known.
        unigram: nats of a guess by the frequencies of the input's tokens; None where there is none to compare with.
    """

    trace: Mapping[str, NDArray[np.float32]]
    nll: Mapping[str, NDArray[np.float64]]
    dims: Sequence[int]
    window: int
    vocabulary: int | None = None
    unigram: float | None = None

    @classmethod
    def of(cls, run: Run) -> Recorded:
        """What a finished run recorded."""
        return cls(run.trace, run.nll, run.info.dims, run.info.window, run.info.vocabulary, run.info.input.unigram)

    def places(self, joint: bool = False) -> list[Place]:
        """Every place that was recorded, under `origin`, in order: a dimension each, or (joint) all of them as one."""
        found = [place for place in map(Place.parse, self.trace) if place.scheme == ORIGIN]
        return found if joint else [place.at(dim) for place in found for dim in self.dims]

    def series(self, place: Place) -> NDArray[np.float64]:
        """One dimension over positions; [positions, dims] where the place is of all dimensions."""
        whole = self.trace[place.key]
        chosen = whole if place.dim is None else whole[:, list(self.dims).index(place.dim)]
        return chosen.astype(np.float64)


def _number(value: float) -> float | None:
    """A JSON-safe number."""
    return float(value) if math.isfinite(value) else None


def _ends_too_early(length: int, window: int, settings: DetectorSettings) -> str | None:
    """Why an input without a crossing is too short to say that there is none; None where it is long enough."""
    past, needed = length - window, settings.run_at(window)
    if past >= needed:
        return None
    where = f"{past} positions past M = {window}" if past > 0 else f"inside the window of M = {window}"
    return f"the input ends {where}, and a crossing must last {needed}"


def _untold(found: Detection | Untold, length: int, window: int, settings: DetectorSettings) -> str | None:
    """Why nothing can be said of a failure; None where it can."""
    if isinstance(found, Untold):
        return found.reason
    return None if found.position is not None else _ends_too_early(length, window, settings)


def _position(found: Detection | Untold) -> int | None:
    return None if isinstance(found, Untold) else found.position


def _verdict(
    place: Place, detector: str, found: Detection | Untold, measured: tuple[int | None, str | None], why: str | None
) -> Verdict:
    told = found if isinstance(found, Detection) else None
    return Verdict(
        scheme=place.scheme,
        site=place.site,
        layer=place.layer,
        dim=place.dim,
        detector=detector,
        threshold=_number(told.threshold) if told else None,
        direction=told.direction if told else None,
        predicted=told.position if told else None,
        margin=_number(told.margin) if told else None,
        measured=measured[0],
        unpredicted=why,
        unmeasured=measured[1],
    )


def _measured(recorded: Recorded, scheme: str, settings: DetectorSettings) -> tuple[int | None, str | None]:
    """The measured failure of a scheme, and why nothing can be said of it."""
    reference, window = recorded.nll[ORIGIN], recorded.window
    found = measured_failure(
        reference, recorded.nll[scheme], window, settings, vocabulary=recorded.vocabulary, unigram=recorded.unigram
    )
    return _position(found), _untold(found, len(reference), window, settings)


def judge(
    recorded: Recorded,
    shown: Sequence[str],
    detector: str,
    settings: DetectorSettings,
    places: Collection[Place] | None = None,
) -> Records[Verdict]:
    """A verdict per scheme and place: threshold, predicted and measured failure.

    Args:
        recorded: values and likelihoods.
        shown: schemes to judge.
        detector: of `DETECTORS`.
        settings: burn-in, run length, margin.
        places: what to judge, under whatever scheme; default everything that was recorded. A joint detector judges
            all dimensions of each as one.

    Returns:
        Verdicts in order of scheme, site and layer, dim.

    Raises:
        ProbeError: an unknown detector, scheme or place, or a burn-in that leaves no window to calibrate on.
    """
    joint = DETECTORS[detector].joint
    known = recorded.places(joint)
    asked = [place.under(ORIGIN) for place in places] if places is not None else known
    wanted = list(dict.fromkeys(replace(place, dim=None) for place in asked)) if joint else asked
    for place in wanted:
        if place not in known:
            raise unknown("place", place.title, [one.title for one in known])
    verdicts = []
    for scheme in shown:
        if scheme not in recorded.nll:
            raise unknown("scheme", scheme, recorded.nll)
        measured = _measured(recorded, scheme, settings)
        for place in wanted:
            reference, series = (recorded.series(place.under(name)) for name in (ORIGIN, scheme))
            found = detect(detector, reference, series, recorded.window, settings)
            why = _untold(found, len(series), recorded.window, settings)
            verdicts.append(_verdict(place.under(scheme), detector, found, measured, why))
    return Records(verdicts)


def read_verdicts(run: Run, detector: str | None = None) -> Records[Verdict]:
    """The verdicts in a run's folder.

    Args:
        run: a run folder.
        detector: whose; default the one that the run was judged with.

    Raises:
        ProbeError: the file is missing or damaged.
    """
    wanted = run.info.detector if detector is None else detector
    known = {one.name for one in fields(Verdict)}
    found = [{key: value for key, value in row.items() if key in known} for row in run.table("thresholds")]
    return Records(Verdict(**row) for row in found if row["detector"] == wanted)


def settings_of(info: RunInfo) -> DetectorSettings:
    """The settings that a run was judged with."""
    used = info.detection
    return DetectorSettings(used.burn_in, used.run_length, used.margin)


def judge_run(
    run: Run,
    detector: str,
    settings: DetectorSettings,
    *,
    schemes: Sequence[str] | None = None,
    places: Collection[Place] | None = None,
) -> Records[Verdict]:
    """Judge a finished run anew, with any detector and settings, from its trace and its NLL.

    Args:
        run: a run folder.
        detector: of `DETECTORS`.
        settings: burn-in, run length, margin.
        schemes: of those that were run; default those that the run shows.
        places: of those that were recorded; default all of them.

    Raises:
        ProbeError: as `judge`.
    """
    # In the order of the run: a file of arrays keeps none.
    chosen = run.info.places() if places is None else places
    return judge(Recorded.of(run), run.info.shown if schemes is None else schemes, detector, settings, chosen)
