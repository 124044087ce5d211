"""Measured failure: where the negative log-likelihood leaves the band that it has inside the trained window."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import median_filter

from probe.thresholds.detectors import (
    Detection,
    DetectorSettings,
    Series,
    Threshold,
    Untold,
    can_calibrate,
    in_window,
    robust_sd,
    too_short,
)

NLL_FLOOR = 0.2
"""Nats: a rise smaller than this (a perplexity up by 22%) is no failure, however quiet the window was."""

_ADVICE = "take an input that the model can predict: held-out text, or a task"


def smooth_nll(nll: Series, run: int) -> Series:
    """Centred running median of width 2*(run//2)+1; it smooths, and leaves a step where it is.

    The first entry of `nll` (nothing predicts token 0) is NaN and takes its neighbour's value.
    """
    filled = nll.copy()
    filled[0] = nll[1]
    return median_filter(filled, size=2 * (run // 2) + 1, mode="nearest")


def nll_threshold(reference: Series, window: int, settings: DetectorSettings, floor: float = NLL_FLOOR) -> Threshold:
    """The upper end of the reference's in-window NLL, widened by the margin or `floor` nats, whichever is more."""
    run = settings.run_at(window)
    values = in_window(smooth_nll(reference, run), window, settings)
    scale = max(robust_sd(values), floor / max(settings.margin, 1e-9))
    return Threshold(float(values.max()) + settings.margin * scale, "above", scale, settings.burn_in_at(window), run)


def measured_failure(
    reference: Series,
    series: Series,
    window: int,
    settings: DetectorSettings,
    floor: float = NLL_FLOOR,
    vocabulary: int | None = None,
    unigram: float | None = None,
) -> Detection | Untold:
    """Where a scheme's NLL lastingly leaves the band of the model as trained.

    Args:
        reference: NLL per position of `origin`, nats; entry 0 is NaN. NaN everywhere for a model without a head.
        series: NLL per position of the scheme, likewise.
        window: trained window M.
        settings: burn-in, run length (also the smoothing width) and margin.
        floor: least rise that counts, nats.
        vocabulary: tokens of the model's vocabulary; a likelihood that is no better inside the window than a uniform
            guess among them, ln V nats, cannot fail. None where it is not known.
        unigram: nats of a guess by the frequencies of the input's tokens, likewise.

    Returns:
        The verdict; or why this input cannot tell.
    """
    if np.isnan(reference[1:]).all():
        return Untold("the model has no vocabulary head, so there is no likelihood")
    if not can_calibrate(reference, window, settings):
        return too_short(len(reference), window, settings)
    threshold = nll_threshold(reference, window, settings, floor)
    found = threshold.judge(smooth_nll(np.asarray(series, dtype=np.float64), settings.run_at(window)))
    return (
        _no_better_than_a_guess(reference, window, settings, threshold.value, best_guess(vocabulary, unigram)) or found
    )


def best_guess(vocabulary: int | None, unigram: float | None) -> tuple[float, str] | None:
    """The better one of two guesses that need no context, as (nats per token, in words); None where neither is known.

    Args:
        vocabulary: tokens that a uniform guess is among.
        unigram: nats of a guess by the frequencies of the input's own tokens.
    """
    known = []
    if vocabulary is not None:
        uniform = math.log(vocabulary)
        known.append((uniform, f"a uniform guess among {vocabulary} tokens, {uniform:.3g} nats"))
    if unigram is not None:
        known.append((unigram, f"a guess by how often each token comes in this input, {unigram:.3g} nats"))
    return min(known, default=None)


def _no_better_than_a_guess(
    reference: Series, window: int, settings: DetectorSettings, band: float, best: tuple[float, str] | None
) -> Untold | None:
    """Why a likelihood that never was good says nothing about failure; None where it was."""
    if best is None:
        return None
    guess, said = best
    level = float(np.median(in_window(smooth_nll(reference, settings.run_at(window)), window, settings)))
    if band >= guess > level:
        return Untold(f"the in-window band reaches {band:.3g} nats, to {said}, so a failure could not show; {_ADVICE}")
    return no_better(level, best)


def no_better(level: float, best: tuple[float, str] | None) -> Untold | None:
    """Why a likelihood says nothing about failure: it is no better in the window than a guess. None where it is.

    Args:
        level: nats per token inside the window.
        best: from `best_guess`.
    """
    if best is None or level < best[0]:
        return None
    return Untold(f"inside the window the likelihood is {level:.3g} nats, no better than {best[1]}; {_ADVICE}")
