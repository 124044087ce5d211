"""Do middle tokens attend only to their neighbours and the start, as the chunked prefill assumes?

The model runs as it was trained, inside its window. Of the attention of every query, we measure what falls on the keys that Mesa would have kept: chunk 0 and
the query's own chunk. What is left is lost in a chunked prefill. A uniform attention loses its share too: that is the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from constructions.weave import Linear
from probe.attention.dense import attention_weights
from probe.attention.encoding import Encoding
from probe.errors import ProbeError
from probe.models.load import LoadedModel
from probe.schemes import make_scheme
from probe.schemes.visibility import Blocks, Visibility
from probe.seam.apply import apply_scheme
from probe.tasks.inputs import make_input

QUERY_BLOCK = 128


@dataclass
class _Mass:
    """Attention mass on one split's kept keys, summed over samples: by layer, [heads, queries]."""

    kept: Blocks
    layers: dict[int, Float[Tensor, "heads queries"]] = field(default_factory=dict)

    def add(self, layer: int, first: int, length: int, weights: Float[Tensor, "batch heads block keys"]) -> None:
        """Take a block of queries, first.. , of a layer."""
        t = torch.arange(first, first + weights.shape[2])[:, None]
        sees: Bool[Tensor, "block keys"] = self.kept.sees(t, torch.arange(length)[None])
        mass = (weights * sees.to(weights.device)).sum(-1).sum(0).double().cpu()
        mine = self.layers.setdefault(layer, torch.zeros(mass.shape[0], length, dtype=torch.float64))
        mine[:, first : first + weights.shape[2]] += mass

    def row(self, layer: int, head: int, length: int, samples: int) -> dict[str, Any]:
        """Shares of one head (from 0; from 1 in the row) over the queries that lose a key at all: those of the second middle chunk and later."""
        start, block = self.kept.anchor + self.kept.block, self.kept.block
        t = torch.arange(start, length)
        share = self.layers[layer][head, start:] / samples
        within = (t - self.kept.anchor) % block
        seen = self.kept.anchor + within + 1
        early = within < max(1, block // 4)
        return {
            "layer": layer, "head": head + 1, "chunk": block,
            "lost": float(1 - share.mean()), "lost_early": float(1 - share[early].mean()),
            "uniform": float(1 - (seen.double() / (t + 1)).mean()),
        }  # fmt: skip


def audit(
    loaded: LoadedModel,
    *,
    chunks: Sequence[int],
    first: int,
    length: int | None = None,
    input: str = "heldout",
    samples: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of the trained model's attention that a chunked prefill would not see, per chunk width, layer and head.

    Args:
        loaded: the model.
        chunks: widths C of the middle chunks, tokens.
        first: tokens F of chunk 0.
        length: tokens of the input, at most the window; default: the window.
        input: as `probe run --input`.
        samples: sequences, for the held-out text.
        seed: of their places.

    Returns:
        `rows` with layer and head (from 1), chunk, and shares 0 to 1 over all queries that lose a key: `lost` (mean),
        `lost_early` (over the first quarter of a chunk) and `uniform`, what a uniform attention would lose.

    Raises:
        ProbeError: a length past the window, or chunks that do not fit at least twice into it.
    """
    length = loaded.window if length is None else length
    if not 2 <= length <= loaded.window:
        raise ProbeError(f"--length: expected 2 to {loaded.window}, inside the window, got {length}")
    if not 1 <= first < length - 1:
        raise ProbeError(
            f"--first: expected 1 to {length - 2}, so that chunks follow within {length} tokens, got {first}"
        )
    for chunk in chunks:
        if not 1 <= chunk < length - first:
            most = f"{length - first - 1}, what {length} tokens leave a second chunk behind the first {first}"
            raise ProbeError(f"--chunk: expected 1 to {most}, got {chunk}")
    ids = make_input(loaded, input, length, samples, seed)
    masses = [_Mass(Blocks(first, chunk)) for chunk in chunks]
    _observe(loaded, ids, masses)
    rows = [
        mass.row(layer, head, length, len(ids))
        for mass in masses
        for layer in sorted(mass.layers)
        for head in range(len(mass.layers[layer]))
    ]
    return {
        "model": loaded.name, "window": loaded.window, "length": length, "first": first, "input": input,
        "samples": len(ids), "seed": seed, "rows": rows,
    }  # fmt: skip


@torch.no_grad()
def _observe(loaded: LoadedModel, ids: Tensor, masses: list[_Mass]) -> None:
    """Run the model as trained, and hand every layer's attention weights to the masses, a block of queries at a time."""

    def see(layer: int, query: Tensor, key: Tensor, encoding: Encoding, scaling: float) -> None:
        length = key.shape[2]
        for start in range(0, length, QUERY_BLOCK):
            part = query[:, :, start : start + QUERY_BLOCK]
            weights = attention_weights(part, key, start, Linear(), Visibility(), encoding, scaling)
            for mass in masses:
                mass.add(layer, start, length, weights)

    with apply_scheme(loaded.model, make_scheme("origin", loaded.window), observe=see):
        for row in ids.split(1):
            loaded.model.base_model(input_ids=row.to(loaded.device), use_cache=False)
