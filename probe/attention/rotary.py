"""Rotation of queries and keys by given positions, as the model's own rotary does it: RoPE, and with no frequencies NoPE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.attention.encoding import Encoding


@dataclass(frozen=True)
class Rotary(Encoding):
    """A model's rotary: frequencies (with the scheme's factors in), the amplitude of cos and sin, the precision of angles.

    `angle_dtype` float32 is what transformers uses, so plain RoPE is bitwise the stock model; float64 is exact to
    the last bit of a float32 model at any position.
    """

    inv_freq: Float[Tensor, " half"]
    amplitude: float = 1.0
    angle_dtype: torch.dtype = torch.float32

    def tables(
        self, positions: Float[Tensor, " n"], like: Tensor
    ) -> tuple[Float[Tensor, "n half"], Float[Tensor, "n half"]]:
        """cos and sin of every position, in `like`'s dtype and device."""
        frequencies = self.inv_freq.to(like.device, self.angle_dtype)
        angles = positions.to(like.device, self.angle_dtype)[:, None] * frequencies
        return (angles.cos() * self.amplitude).to(like.dtype), (angles.sin() * self.amplitude).to(like.dtype)

    def turned(
        self, x: Float[Tensor, "batch heads n dim"], positions: Float[Tensor, " n"]
    ) -> Float[Tensor, "batch heads n dim"]:
        """As `Encoding.turned`: rotate the first 2*half dimensions of every head; pairs are (j, j + half), the rest passes through."""
        cos, sin = self.tables(positions, x)
        half = self.inv_freq.shape[0]
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)

    def scores(
        self,
        query: Float[Tensor, "batch heads queries dim"],
        key: Float[Tensor, "batch heads keys dim"],
        relative: Float[Tensor, "queries keys"],
        scaling: float,
    ) -> Float[Tensor, "batch heads queries keys"]:
        """As `Encoding.scores`: q^T R(relative * theta) k, one frequency at a time.

        A pair (a, b) turned by an angle x scores (qa ka + qb kb) cos x + (qa kb - qb ka) sin x.
        """
        half = self.inv_freq.shape[0]
        scores = query[..., 2 * half :] @ key[..., 2 * half :].transpose(-1, -2)
        for j, frequency in enumerate(self.inv_freq.to(query.device)):
            angle = relative.to(query.device, self.angle_dtype) * frequency.to(self.angle_dtype)
            qa, qb = query[..., j, None], query[..., half + j, None]
            ka, kb = key[..., None, :, j], key[..., None, :, half + j]
            turned = (qa * ka + qb * kb) * angle.cos().to(query.dtype) + (qa * kb - qb * ka) * angle.sin().to(
                query.dtype
            )
            scores = scores + turned * self.amplitude**2
        return scores * scaling
