"""What a model's hidden vectors are like inside its window: a mean and a covariance per layer, with shrinkage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.errors import FieldError, ProbeError
from probe.models.load import LoadedModel
from probe.recording.sites import SITES
from probe.schemes import ORIGIN, make_scheme
from probe.seam.apply import apply_scheme

MOST_ROWS = 4096
"""Hidden vectors of a layer that a covariance is estimated from, spread evenly over texts and positions."""


@dataclass(frozen=True)
class LayerReference:
    """Where a layer's hidden vectors lie inside the window.

    Attributes:
        mean: [width].
        whitening: [width, width]: times the difference from the mean, it makes a vector of unit covariance.
    """

    mean: Float[Tensor, " width"]
    whitening: Float[Tensor, "width width"]

    def distance(self, hidden: Float[Tensor, "batch positions width"]) -> Float[Tensor, "batch positions 1"]:
        """Mahalanobis distance per root of a dimension: about 1 for a vector like those inside the window."""
        white = (hidden.float() - self.mean.to(hidden.device)) @ self.whitening.to(hidden.device)
        return white.square().mean(-1, keepdim=True).sqrt()


def fit_layer(rows: Float[Tensor, "rows width"]) -> LayerReference:
    """Mean and covariance of hidden vectors, the covariance shrunk as Ledoit and Wolf do (scikit-learn's).

    Raises:
        ProbeError: scikit-learn is not installed.
    """
    try:
        from sklearn.covariance import LedoitWolf  # takes a second to import
    except ModuleNotFoundError:
        raise ProbeError("signal distance needs scikit-learn: install it, or leave the signal out") from None

    fitted = LedoitWolf().fit(rows.double().numpy())
    whitening = torch.linalg.cholesky(torch.from_numpy(fitted.get_precision()))
    return LayerReference(torch.from_numpy(fitted.location_).float(), whitening.float())


@torch.no_grad()
def fit_reference(loaded: LoadedModel, ids: Int[Tensor, "samples length"], burn_in: int) -> Sequence[LayerReference]:
    """Every layer's reference, from the model as trained on texts of at most its window.

    Args:
        loaded: the model.
        ids: texts.
        burn_in: first position that counts.

    Raises:
        FieldError: texts longer than the window, or nothing left of them.
    """
    samples, length = ids.shape
    if not burn_in + 2 <= length <= loaded.window:
        raise FieldError("length", f"{burn_in + 2} to the window of {loaded.window}", length)
    layers = range(1, len(loaded.family.layer_list(loaded.model)) + 1)
    step = max(1, -(-samples * (length - burn_in) // MOST_ROWS))
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def take(layer: int, hidden: Tensor) -> None:
        rows[layer].append(hidden[0, burn_in::step].float().cpu().clone())

    scheme = make_scheme(ORIGIN, loaded.window)
    with SITES["resid"].recorded(loaded.model, loaded.family, layers, take), apply_scheme(loaded.model, scheme):
        for row in ids.split(1):
            loaded.model.base_model(input_ids=row.to(loaded.device), use_cache=False)
    return [fit_layer(torch.cat(rows[layer])) for layer in layers]
