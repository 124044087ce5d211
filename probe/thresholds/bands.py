"""The likelihood in bands of position: how a scheme does inside the window, just past it, and further on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from probe.errors import FieldError, unknown
from probe.recording.folder import Run
from probe.results import Records


@dataclass(frozen=True)
class BandScore:
    """Mean likelihood of a scheme in a band of positions.

    Attributes:
        scheme: its text.
        start: first position.
        stop: position after the last.
        nll: nats per token, the mean over the band.
        standard_error: of that mean, from the means of eighths of the band: tokens that stand together are alike.
    """

    scheme: str
    start: int
    stop: int
    nll: float
    standard_error: float


def likelihood_bands(run: Run, edges: Sequence[float], schemes: Sequence[str] | None = None) -> Records[BandScore]:
    """Mean NLL of each band between successive edges.

    Args:
        run: a run of a model with a vocabulary head.
        edges: in windows M, ascending: [0.75, 1, 1.25] is two bands.
        schemes: which; default those that the run shows.

    Raises:
        ProbeError: edges that do not ascend, lie outside the input or leave a band of fewer than 8 positions; a scheme
            that did not run; a run without likelihoods.
    """
    window, length = run.info.window, run.info.input.length
    at = [round(edge * window) for edge in edges]
    if len(at) < 2 or at[0] < 0 or at[-1] > length or any(b - max(a, 1) < 8 for a, b in pairwise(at)):
        raise FieldError("edges", f"ascending, from 0 to {length / window:g} windows, 8 positions apart", list(edges))
    rows = []
    for scheme in run.info.shown if schemes is None else schemes:
        if scheme not in run.nll:
            raise unknown("scheme", scheme, run.nll)
        for start, stop in pairwise(at):
            values = run.nll[scheme][max(start, 1) : stop]
            if np.isnan(values).any():
                raise FieldError("path", "a run with likelihoods", "one of a model without a vocabulary head")
            parts = np.array([part.mean() for part in np.array_split(values, 8)])
            error = float(parts.std(ddof=1) / 8**0.5)
            rows.append(BandScore(scheme, start, stop, float(values.mean()), error))
    return Records(rows)
