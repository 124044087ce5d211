"""Thresholds: from a hidden dimension's course over positions to the position at which the model should fail.

Positions are 0-based; a model of window M was trained on positions 0..M-1. Every detector is calibrated on the model as
trained (scheme `origin`), inside its window (the paper's: at its end), and then judges the series of any scheme.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter1d

from probe.errors import FieldError
from probe.tables import Table

Direction = Literal["above", "below"]
"""The side of the threshold on which the model fails."""

Series = Float[np.ndarray, " positions"]
Vectors = Float[np.ndarray, "positions units"]
Course = Float[np.ndarray, "positions *units"]


@dataclass(frozen=True)
class DetectorSettings:
    """How a detector judges, in positions and in robust standard deviations. `None` follows the window M.

    Attributes:
        burn_in: first position of the in-window reference; default M // 8. Before it a model is still finding its
            context.
        run_length: a crossing lasts when it holds for this many positions; default max(8, M // 16).
        margin: robust standard deviations that the in-window range, and the likelihood's band, are widened by.

    Raises:
        FieldError: a value below its least.
    """

    burn_in: int | None = None
    run_length: int | None = None
    margin: float = 3.0

    def __post_init__(self) -> None:
        for name, least in (("burn_in", 0), ("run_length", 1), ("margin", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise FieldError(name, f"at least {least}", value)

    def burn_in_at(self, window: int) -> int:
        """Burn-in for a window."""
        return window // 8 if self.burn_in is None else self.burn_in

    def run_at(self, window: int) -> int:
        """Run length for a window."""
        return max(8, window // 16) if self.run_length is None else self.run_length

    def at(self, window: int) -> DetectorSettings:
        """The settings with everything that follows the window filled in."""
        return DetectorSettings(self.burn_in_at(window), self.run_at(window), self.margin)


@dataclass(frozen=True)
class Detection:
    """A verdict on one series.

    `margin` is how far its worst lasting stretch stays inside the threshold, in robust standard deviations of the
    in-window reference; it is negative exactly if there is a failure.
    """

    threshold: float
    direction: Direction
    position: int | None
    margin: float


@dataclass(frozen=True)
class Untold:
    """There is no verdict, and this is why: a sentence without a capital and a full stop."""

    reason: str


@dataclass(frozen=True)
class Threshold:
    """One bound: a series fails where it lastingly exceeds `value` in `direction`, from position `start` on."""

    value: float
    direction: Direction
    scale: float
    start: int
    run_length: int

    def judge(self, series: Series) -> Detection:
        """First lasting crossing of a series, and its margin."""
        sign = 1.0 if self.direction == "above" else -1.0
        worst = lasting(sign * (series - self.value), self.run_length)[self.start :]
        crossed = np.flatnonzero(worst > 0)
        position = int(crossed[0]) + self.start if len(crossed) else None
        margin = -float(worst.max()) / self.scale if len(worst) else float("inf")
        return Detection(self.value, self.direction, position, margin)


def lasting(excess: Series, run: int) -> Float[np.ndarray, " judged"]:
    """At each position the least excess of the `run` positions that begin there.

    Positive means that a crossing begins or goes on there and lasts. The last run-1 positions cannot be judged
    and are left out: the result has len(excess) - run + 1 entries (none if that is negative).
    """
    if len(excess) < run:
        return excess[:0]
    # The filter is centred; shifting its origin makes the window begin at each position.
    return minimum_filter1d(excess, run, origin=-(run // 2))[: len(excess) - run + 1]


def robust_sd(values: NDArray[np.floating]) -> float:
    """1.4826 times the median absolute deviation: for normal values the standard deviation, unmoved by outliers."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _scale(values: NDArray[np.floating]) -> float:
    """Robust standard deviation, kept above rounding noise for a series that hardly moves."""
    return max(robust_sd(values), 1e-6 * float(np.abs(values).max()), 1e-12)


def check_burn_in(window: int, settings: DetectorSettings) -> None:
    """Refuse a burn-in that leaves nothing of the window.

    Raises:
        ProbeError: it does.
    """
    burn_in = settings.burn_in_at(window)
    if burn_in > window - 2:
        raise FieldError("burn_in", f"at most {window - 2} for window {window}", burn_in)


def can_calibrate(reference: Course, window: int, settings: DetectorSettings) -> bool:
    """Whether the input is long enough to calibrate on.

    Raises:
        ProbeError: it could never be: the burn-in leaves nothing of the window.
    """
    check_burn_in(window, settings)
    return len(reference) >= settings.burn_in_at(window) + 2


def in_window(reference: Course, window: int, settings: DetectorSettings) -> Float[np.ndarray, kept * units]:
    """The reference's positions from the burn-in to the window's end, on which a detector is calibrated."""
    return reference[settings.burn_in_at(window) : window]


def paper_threshold(reference: Series, window: int, settings: DetectorSettings) -> Threshold | None:
    """The paper's threshold (Sec. 3.4): H is the reference's value at position M; the failing side is the one that the
    reference drifts to past M (median of the next M/4 positions). None where the input does not reach past M.
    """
    past = reference[window + 1 : window + 1 + max(settings.run_at(window), window // 4)]
    if not len(past):
        return None
    value = float(reference[window])
    direction: Direction = "above" if float(np.median(past)) >= value else "below"
    scale = _scale(in_window(reference, window, settings))
    return Threshold(value, direction, scale, window, settings.run_at(window))


def range_thresholds(reference: Series, window: int, settings: DetectorSettings) -> tuple[Threshold, Threshold]:
    """Both ends of the reference's in-window range after the burn-in, widened by the margin."""
    values = in_window(reference, window, settings)
    scale, run, start = _scale(values), settings.run_at(window), settings.burn_in_at(window)
    slack = settings.margin * scale
    return (
        Threshold(float(values.max()) + slack, "above", scale, start, run),
        Threshold(float(values.min()) - slack, "below", scale, start, run),
    )


Judge = Callable[[NDArray[np.float64], NDArray[np.float64], int, DetectorSettings], Detection | Untold]
"""Judges a series, given the reference (the model as trained on the same input), the window and the settings."""


@dataclass(frozen=True)
class Detector:
    """One row: how a threshold is found, and a series judged by it.

    Attributes:
        name: by which users ask for it.
        help: what it takes as the threshold, in a few words.
        judge: called with the reference, the series, the window M and the settings, once the reference is known to be
            long enough to calibrate on.
        joint: whether a series is [positions, units], all units judged as one; else [positions].
        kept: whether every run keeps its verdicts; those of others are made when they are asked for.
    """

    name: str
    help: str
    judge: Judge
    joint: bool = False
    kept: bool = True


def _judge_range(reference: Series, series: Series, window: int, settings: DetectorSettings) -> Detection:
    return min((side.judge(series) for side in range_thresholds(reference, window, settings)), key=_urgency)


def _judge_paper(reference: Series, series: Series, window: int, settings: DetectorSettings) -> Detection | Untold:
    threshold = paper_threshold(reference, window, settings)
    if threshold is None:
        return Untold(f"the input does not reach past M = {window}, so there is no value there to be the threshold")
    return threshold.judge(series)


def _judge_change(reference: Series, series: Series, window: int, settings: DetectorSettings) -> Detection:
    from probe.thresholds.changes import first_change

    start, run = settings.burn_in_at(window), settings.run_at(window)
    inside = in_window(reference, window, settings)
    found = first_change(inside, series[start:], run, settings.margin)
    position = None if found.position is None else found.position + start
    return Detection(found.bound, "above" if found.above else "below", position, -found.excess / _scale(inside))


def _judge_joint(reference: Vectors, series: Vectors, window: int, settings: DetectorSettings) -> Detection:
    from probe.thresholds.joint import distances

    start, run = settings.burn_in_at(window), settings.run_at(window)
    own, found = distances(in_window(reference, window, settings), series, run)
    scale = _scale(own)
    return Threshold(float(own.max()) + settings.margin * scale, "above", scale, start, run).judge(found)


DETECTORS: Table[Detector] = Table(
    "detector",
    Detector,
    (
        Detector("range", "the range seen inside the window, widened by the margin", _judge_range),
        Detector("paper", "the value at M, on the side that the model drifts to past M", _judge_paper),
        Detector("change", "a jump of its mean to a level never had inside the window (change points)", _judge_change,
                 kept=False),
        Detector(
            "multivariate", "all units as one: their distance from those inside the window, widened by the margin",
            _judge_joint, joint=True, kept=False,
        ),
    ),
)  # fmt: skip


def single_detectors() -> list[str]:
    """Those that judge a dimension by itself."""
    return [name for name, row in DETECTORS.items() if not row.joint]


def as_single(name: str) -> str:
    """The detector itself where it judges a dimension by itself, else the first that does: to draw dimensions with."""
    known = single_detectors()
    return name if name in known else known[0]


def kept_detectors(asked: str) -> list[str]:
    """Those whose verdicts a run keeps: the quick ones, and the one that it was asked to be judged with."""
    return [name for name, row in DETECTORS.items() if row.kept or name == asked]


def detect(
    name: str,
    reference: NDArray[np.float64],
    series: NDArray[np.float64],
    window: int,
    settings: DetectorSettings,
) -> Detection | Untold:
    """Judge a series with a detector calibrated on the reference.

    Args:
        name: of `DETECTORS`.
        reference: the model as trained, one value per position; for a joint detector [positions, units], or one unit.
        series: the scheme to judge, on the same input.
        window: trained window M.
        settings: burn-in, run length, margin.

    Returns:
        The verdict; or why there is none, where the input is too short for one.

    Raises:
        ProbeError: an unknown detector, several units for one that judges a single one, or a burn-in that leaves no
            window to calibrate on.
    """
    detector = DETECTORS[name]
    if detector.joint:
        reference, series = (one[:, None] if one.ndim == 1 else one for one in (reference, series))
    elif reference.ndim != 1 or series.ndim != 1:
        raise FieldError("series", f"one value per position for detector {name}", f"an array of {series.shape}")
    if not can_calibrate(reference, window, settings):
        return too_short(len(reference), window, settings)
    return detector.judge(reference, series, window, settings)


def too_short(length: int, window: int, settings: DetectorSettings) -> Untold:
    """Why an input of `length` tokens has nothing to calibrate on."""
    least = settings.burn_in_at(window) + 2
    return Untold(f"{length} tokens are too few to calibrate on: expected at least {least}, the burn-in and two more")


def _urgency(detection: Detection) -> tuple[float, float]:
    """Earlier failure first, then the smaller margin."""
    return (float("inf") if detection.position is None else detection.position, detection.margin)
