"""Thresholds: from a hidden dimension's course over positions to the position at which the model should fail.

Positions are 0-based; a model of window M was trained on positions 0..M-1. Both detectors are calibrated on the model
as trained (scheme `origin`) and then judge the series of any scheme.
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


def can_calibrate(reference: Series, window: int, settings: DetectorSettings) -> bool:
    """Whether the input is long enough to calibrate on.

    Raises:
        ProbeError: it could never be: the burn-in leaves nothing of the window.
    """
    check_burn_in(window, settings)
    return len(reference) >= settings.burn_in_at(window) + 2


def in_window(reference: Series, window: int, settings: DetectorSettings) -> Float[np.ndarray, " kept"]:
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


Judge = Callable[[Series, Series, int, DetectorSettings], Detection | Untold]
"""Judges a series, given the reference (the model as trained on the same input), the window and the settings."""


@dataclass(frozen=True)
class Detector:
    """One row: how a threshold is found, and a series judged by it.

    Attributes:
        name: by which users ask for it.
        help: what it takes as the threshold, in a few words.
        judge: called with the reference, the series, the window M and the settings, once the reference is known to be
            long enough to calibrate on.
    """

    name: str
    help: str
    judge: Judge


def _judge_range(reference: Series, series: Series, window: int, settings: DetectorSettings) -> Detection:
    return min((side.judge(series) for side in range_thresholds(reference, window, settings)), key=_urgency)


def _judge_paper(reference: Series, series: Series, window: int, settings: DetectorSettings) -> Detection | Untold:
    threshold = paper_threshold(reference, window, settings)
    if threshold is None:
        return Untold(f"the input does not reach past M = {window}, so there is no value there to be the threshold")
    return threshold.judge(series)


DETECTORS: Table[Detector] = Table(
    "detector",
    Detector,
    (
        Detector("range", "the range seen inside the window, widened by the margin", _judge_range),
        Detector("paper", "the value at M, on the side that the model drifts to past M", _judge_paper),
    ),
)


def detect(name: str, reference: Series, series: Series, window: int, settings: DetectorSettings) -> Detection | Untold:
    """Judge a series with a detector calibrated on the reference.

    Args:
        name: of `DETECTORS`.
        reference: the model as trained, one value per position.
        series: the scheme to judge, on the same input.
        window: trained window M.
        settings: burn-in, run length, margin.

    Returns:
        The verdict; or why there is none, where the input is too short for one.

    Raises:
        ProbeError: an unknown detector, or a burn-in that leaves no window to calibrate on.
    """
    detector = DETECTORS[name]
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
