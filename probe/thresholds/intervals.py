"""How sure a measured failure is: the same judgement on texts drawn again from those that were read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probe.errors import unknown
from probe.recording.folder import Run
from probe.schemes import ORIGIN
from probe.thresholds.detectors import DetectorSettings, Untold
from probe.thresholds.measured import measured_failure
from probe.thresholds.verdicts import settings_of

RESAMPLES = 200


@dataclass(frozen=True)
class FailureInterval:
    """Where the likelihood fails under a scheme, with a 95% percentile bootstrap over the run's samples.

    Attributes:
        scheme: its text.
        position: of the mean over all samples; None for no failure, or where `untold` says why not.
        low: position; None where less than 2.5% of the resamples fail, or there is no interval.
        high: position; None where more than 2.5% of the resamples do not fail ("or not at all"), or there is no
            interval.
        failing: share of resamples that fail, 0 to 1; None where there is no interval.
        untold: why there is no interval; None where there is one.
    """

    scheme: str
    position: int | None
    low: int | None
    high: int | None
    failing: float | None
    untold: str | None = None

    @property
    def said(self) -> str | None:
        """The interval in words: "995 to 1240", "995 on, or not at all (12% do not fail)"; None where there is none, or
        nothing fails.
        """
        if self.failing is None or self.low is None:
            return None
        if self.high is None:
            return f"{self.low:,} on, or not at all ({1 - self.failing:.0%} do not fail)"
        return f"{self.low:,} to {self.high:,}"


def failure_interval(
    run: Run, scheme: str, settings: DetectorSettings | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> FailureInterval:
    """The measured failure of a scheme with its interval. Samples are drawn again with replacement, the same ones for
    the trained model, whose band is found anew each time, and for the scheme.

    Args:
        run: over several samples.
        scheme: one that ran.
        settings: default those of the run.
        resamples: how many.
        seed: of the drawing.

    Raises:
        ProbeError: a scheme that did not run, or a burn-in that leaves no window.
    """
    if scheme not in run.nll:
        raise unknown("scheme", scheme, run.nll)
    settings = settings_of(run.info) if settings is None else settings
    info = run.info

    def judged(reference: np.ndarray, series: np.ndarray) -> int | Untold | None:
        found = measured_failure(
            reference, series, info.window, settings, vocabulary=info.vocabulary, unigram=info.input.unigram
        )
        return found if isinstance(found, Untold) else found.position

    whole = judged(run.nll[ORIGIN], run.nll[scheme])
    if isinstance(whole, Untold):
        return FailureInterval(scheme, None, None, None, None, whole.reason)
    if not run.nll_samples:
        why = "the run is of one sequence" if info.input.samples == 1 else "the run did not keep its samples"
        return FailureInterval(scheme, whole, None, None, None, why)
    reference, series = run.nll_samples[ORIGIN], run.nll_samples[scheme]
    drawn = np.random.default_rng(seed).integers(len(reference), size=(resamples, len(reference)))
    found = [judged(reference[rows].mean(0), series[rows].mean(0)) for rows in drawn]
    # No failure lies behind every position.
    at = sorted(float("inf") if one is None or isinstance(one, Untold) else float(one) for one in found)
    low, high = (at[min(len(at) - 1, int(share * len(at)))] for share in (0.025, 0.975))
    failing = float(np.mean(np.isfinite(at)))
    return FailureInterval(
        scheme, whole, int(low) if np.isfinite(low) else None, int(high) if np.isfinite(high) else None, failing
    )
