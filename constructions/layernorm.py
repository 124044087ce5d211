"""LayerNorm, which the layer formula has (Eq. 4) and the constructions leave out: what survives it, and a repair.

Eq. 4 normalizes what the MLP reads. Theorem 3.1 does not use its MLP, so it survives as it is, to the last digit.
Theorems 3.2 and 3.3 do not: LayerNorm divides f(t) by the spread of the free dimensions, which is another for every
token.

The repair works for any residual transformer, and for LayerNorms before the attention as well. Widen the stream from
x to (x, -x, C, -C): whatever writes y writes -y to the mirror. The mean is then 0 whatever x is, the variance is
(|x|^2 + C^2)/(d + 1) with d the old width, and a gain of C/sqrt(d + 1) makes LayerNorm return x / sqrt(1 +
|x|^2/C^2): the identity up to |x|^2/(2 C^2). The statements are strict inequalities with a margin of 1/(M + 2), so
for any length a finite C is enough.

No precision is lost: the mean of numbers and their negatives comes out as 0 in floating point too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from constructions.errors import require
from constructions.multiprecision import mp
from constructions.transformer import NORMS
from constructions.weights import Construction, Head, LayerWeights, Mlp, Weights, matrix


def as_written(built: Construction, at: str) -> Construction:
    """The same weights with LayerNorms switched on: before the MLP ('mlp', Eq. 4) or before attention too ('pre').

    Raises:
        ConstructionError: `at` is neither.
    """
    require(at in NORMS[1:], "LayerNorm", " or ".join(map(str, NORMS[1:])), at)
    return replace(built, norm_at=at, norm_gain=mp.mpf(1))


def _reads(w: Any) -> Any:
    """Input weights [d, n] on the widened stream: the mirror and the carrier are not read."""
    return np.concatenate([w, matrix((w.shape[0] + 2, w.shape[1]))], axis=0)


def _writes(w: Any) -> Any:
    """Output weights [n, d] (or a bias [d]) on the widened stream: a dimension's mirror gets the negated value."""
    return np.concatenate([w, -w, matrix((*w.shape[:-1], 2))], axis=-1)


def _widened(layer: LayerWeights) -> LayerWeights:
    heads = tuple(Head(_reads(h.q), _reads(h.k), _reads(h.v), _writes(h.o), h.slope) for h in layer.heads)
    mlp = layer.mlp
    return LayerWeights(heads, Mlp(_reads(mlp.w_in), mlp.b_in, _writes(mlp.w_out), _writes(mlp.b_out)))


def repaired(built: Construction, at: str, carrier: float) -> Construction:
    """The construction on the widened stream (x, -x, C, -C), C = `carrier`, with LayerNorms at `at`.

    Raises:
        ConstructionError: `at` is neither 'mlp' nor 'pre', or the carrier is not positive.
    """
    require(at in NORMS[1:], "LayerNorm", " or ".join(map(str, NORMS[1:])), at)
    require(carrier > 0, "carrier", "a number > 0", carrier)
    C, old = mp.mpf(carrier), built.weights.embedding
    columns = np.array([[C, -C]] * len(old), dtype=object)
    embedding = np.concatenate([old, -old, columns], axis=1)
    weights = Weights(embedding, tuple(_widened(layer) for layer in built.weights.layers))
    return replace(built, weights=weights, norm_at=at, norm_gain=C / mp.sqrt(mp.mpf(built.d + 1)))
