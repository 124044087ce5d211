"""Many units as one: how far a position's vector of units lies from those inside the window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from probe.errors import ProbeError

MOST_COMPONENTS = 64
"""Principal components of the vectors inside the window that a distance is over at most; more could not be told from
noise."""
Distance = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _fitted(rows: Float[np.ndarray, "rows units"], components: int) -> Distance:
    """Mahalanobis distance per root of a component, under a covariance with shrinkage (Ledoit and Wolf's, of
    scikit-learn), over the largest principal components.
    """
    try:
        from sklearn.covariance import LedoitWolf  # takes a second to import
    except ModuleNotFoundError:
        raise ProbeError("detector multivariate needs scikit-learn: install it, or take another detector") from None

    mean, scale = rows.mean(0), rows.std(0)
    scale = np.maximum(scale, np.maximum(1e-6 * np.abs(rows).max(0), 1e-12))
    _, _, axes = np.linalg.svd((rows - mean) / scale, full_matrices=False)
    axes = axes[:components].T
    model = LedoitWolf(assume_centered=True).fit((rows - mean) / scale @ axes)
    precision = model.get_precision()

    def distance(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        projected = (vectors - mean) / scale @ axes
        squared = np.einsum("pc,cd,pd->p", projected, precision, projected)
        found: NDArray[np.float64] = np.sqrt(np.maximum(squared, 0.0) / axes.shape[1])
        return found

    return distance


def distances(
    inside: Float[np.ndarray, "rows units"], series: Float[np.ndarray, "positions units"], run: int
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " positions"]]:
    """(of the vectors inside, of the series) from the vectors inside.

    A vector that was fitted on lies too near: inside, stretches of a run are judged in turn by what was fitted on the
    others, every second one together.

    Args:
        inside: the trained model's vectors inside its window, past the burn-in.
        series: what is judged.
        run: positions of a stretch.
    """
    components = max(1, min(MOST_COMPONENTS, inside.shape[1], len(inside) // 4))
    first = (np.arange(len(inside)) // max(1, run)) % 2 == 0
    if min(first.sum(), (~first).sum()) < 2:  # shorter than two runs
        first = np.arange(len(inside)) % 2 == 0
    own = np.empty(len(inside))
    for mine in (first, ~first):
        own[mine] = _fitted(inside[~mine], components)(inside[mine])
    return own, _fitted(inside, components)(series)
