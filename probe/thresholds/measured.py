"""Measured failure: where the negative log-likelihood leaves the band that it has inside the trained window."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter

from probe.thresholds.detectors import Detection, Series, Settings, Threshold, in_window, robust_sd

NLL_FLOOR = 0.2
"""Nats: a rise smaller than this (a perplexity up by 22%) is no failure, however quiet the window was."""


def smooth_nll(nll: Series, run: int) -> Series:
    """Centred running median of width 2*(run//2)+1; it smooths, and leaves a step where it is.

    The first entry of `nll` (nothing predicts token 0) is NaN and takes its neighbour's value.
    """
    filled = nll.copy()
    filled[0] = nll[1]
    return median_filter(filled, size=2 * (run // 2) + 1, mode="nearest")


def nll_threshold(reference: Series, window: int, settings: Settings, floor: float = NLL_FLOOR) -> Threshold:
    """The upper end of the reference's in-window NLL, widened by the margin or `floor` nats, whichever is more."""
    run = settings.run_at(window)
    values = in_window(smooth_nll(reference, run), window, settings)
    scale = max(robust_sd(values), floor / max(settings.margin, 1e-9))
    return Threshold(float(values.max()) + settings.margin * scale, "above", scale, settings.burn_in_at(window), run)


def measured_failure(
    reference: Series, series: Series, window: int, settings: Settings, floor: float = NLL_FLOOR
) -> Detection:
    """Where a scheme's NLL lastingly leaves the band of the model as trained.

    Args:
        reference: NLL per position of `origin`, nats; entry 0 is NaN.
        series: NLL per position of the scheme, likewise.
        window: trained window M.
        settings: burn-in, run length (also the smoothing width) and margin.
        floor: least rise that counts, nats.
    """
    threshold = nll_threshold(reference, window, settings, floor)
    return threshold.judge(smooth_nll(np.asarray(series, dtype=np.float64), settings.run_at(window)))
