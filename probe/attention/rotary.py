"""Rotation of queries and keys by given positions, as the model's own rotary does it: RoPE, and with no frequencies
NoPE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from probe.attention.encoding import Encoding
from probe.attention.placing import placed
from probe.errors import ProbeError

_CHUNK = {"cpu": 512, "cuda": 1 << 15}
"""Positions rotated at a time by kind of device: on CPU, so that the temporary stays in the processor's cache;
elsewhere, so that it is
small beside the keys."""

_TABLES = {"cpu": 16, "cuda": 128}
"""How many tables of cosines and sines are kept by kind of device: a scheme has a few position vectors per pass, and
every layer uses
them. The stair has a few dozen; on a GPU to make these anew takes longer than to use them."""

_Tables = tuple[Float[Tensor, "rows half"], Float[Tensor, "rows half"]]


@dataclass(frozen=True)
class Rotary(Encoding):
    """A model's rotary: frequencies (with the scheme's factors in, on the CPU), the amplitude of cos and sin, the
    precision of angles.

    `angle_dtype` float32 is what transformers uses, so plain RoPE is bitwise the stock model; float64 is exact to
    the last bit of a float32 model at any position. `interleaved` pairs are (2j, 2j + 1), as Cohere's and GLM's are;
    else (j, j + half). `apart` gives from positions [n] those of every frequency, [n, half], where they differ.
    """

    inv_freq: Float[Tensor, " half"]
    amplitude: float = 1.0
    angle_dtype: torch.dtype = torch.float32
    interleaved: bool = False
    apart: Callable[[Tensor], Tensor] | None = None
    _kept: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, repr=False, compare=False)

    def tables(self, positions: Float[Tensor, " n"], like: Tensor) -> _Tables:
        """cos and sin of every position, in `like`'s dtype and device; one row where all positions are the same."""
        for kept, cos, sin in self._kept:
            if kept is positions and cos.dtype == like.dtype and cos.device == like.device:
                return cos, sin
        if len(self._kept) >= _TABLES.get(like.device.type, 16):
            self._kept.pop(0)
        cos, sin = self._new_tables(positions, like)
        self._kept.append((positions, cos, sin))
        return cos, sin

    def _new_tables(self, positions: Tensor, like: Tensor) -> _Tables:
        if bool((positions == positions[0]).all()):
            positions = positions[:1]
        at = positions[:, None] if self.apart is None else self.apart(positions)
        angles = placed(at, like, self.angle_dtype) * placed(self.inv_freq, like, self.angle_dtype)
        return (angles.cos() * self.amplitude).to(like.dtype), (angles.sin() * self.amplitude).to(like.dtype)

    @override
    def turns(self, positions: Float[Tensor, " n"]) -> bool:
        """Positions other than 0, frequencies other than 0, or an amplitude."""
        return self.amplitude != 1.0 or (bool(self.inv_freq.any()) and bool(positions.any()))

    @override
    def turned(
        self,
        x: Float[Tensor, "batch heads n dim"],
        positions: Float[Tensor, " n"],
        out: Float[Tensor, "batch heads n dim"] | None = None,
    ) -> Float[Tensor, "batch heads n dim"]:
        """Rotate the first 2*half dimensions of every head; the rest passes through."""
        if len(positions) == 0 or not self.turns(positions):
            return x if out is None else out.copy_(x)
        cos, sin = self.tables(positions, x)
        out = torch.empty_like(x) if out is None else out
        half = self.inv_freq.shape[0]
        if 2 * half < x.shape[3]:
            out[..., 2 * half :] = x[..., 2 * half :]
        chunk = _CHUNK.get(x.device.type, 512)
        for at in range(0, x.shape[2], chunk):
            mine = slice(at, at + chunk)
            tables = (cos, sin) if len(cos) == 1 else (cos[mine], sin[mine])
            _rotate(x[:, :, mine, : 2 * half], *tables, out[:, :, mine, : 2 * half], self.interleaved)
        return out

    @override
    def scores(
        self,
        query: Float[Tensor, "batch heads queries dim"],
        key: Float[Tensor, "batch heads keys dim"],
        relative: Float[Tensor, "queries keys"],
        scaling: float,
    ) -> Float[Tensor, "batch heads queries keys"]:
        """q^T R(relative * theta) k, one frequency at a time.

        Raises:
            ProbeError: frequencies that put a token in different places: a relative position alone does not say where.

        A pair (a, b) turned by an angle x scores (qa ka + qb kb) cos x + (qa kb - qb ka) sin x.
        """
        if self.apart is not None:
            raise ProbeError(
                "backend dense: frequencies that lie apart need positions, not their differences; use pieces"
            )
        half = self.inv_freq.shape[0]
        scores = query[..., 2 * half :] @ key[..., 2 * half :].transpose(-1, -2)
        relative = placed(relative, query, self.angle_dtype)
        for j, frequency in enumerate(self.inv_freq.tolist()):
            angle = relative * frequency
            a, b = (2 * j, 2 * j + 1) if self.interleaved else (j, half + j)
            qa, qb = query[..., a, None], query[..., b, None]
            ka, kb = key[..., None, :, a], key[..., None, :, b]
            turned = (qa * ka + qb * kb) * angle.cos().to(query.dtype) + (qa * kb - qb * ka) * angle.sin().to(
                query.dtype
            )
            scores = scores + turned * self.amplitude**2
        return scores * scaling


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, interleaved: bool) -> None:
    """Pairs of x turned into `out`, with every product rounded by itself, as transformers rounds."""
    half = cos.shape[-1]
    one, other = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
    crossed = torch.empty_like(x)
    torch.mul(x[..., other], -sin, out=crossed[..., one])
    torch.mul(x[..., one], sin, out=crossed[..., other])
    torch.mul(x[..., one], cos, out=out[..., one])
    torch.mul(x[..., other], cos, out=out[..., other])
    out += crossed
