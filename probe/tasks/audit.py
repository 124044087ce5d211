"""Do middle tokens attend only to their neighbours and the start, as the chunked prefill assumes?

The model runs as it was trained, inside its window. Of the attention of every query, we measure what falls on the keys
that Mesa would have kept: chunk 0 and the query's own chunk. What is left is lost in a chunked prefill. A uniform
attention loses its share too: that is the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.attention.dense import ScoreBlock
from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import ORIGIN, make_scheme
from probe.schemes.visibility import Blocks
from probe.seam.apply import apply_scheme
from probe.seam.observers import observed
from probe.tasks.inputs import make_input


@dataclass(frozen=True)
class AuditShare:
    """What one head's attention loses to a chunk width, over all queries that lose a key.

    Attributes:
        layer: 1 is the first.
        head: 1 is the first.
        chunk: width of the middle chunks, tokens.
        lost: share of the attention on keys that the chunks hide, 0 to 1.
        lost_early: the same over the first quarter of a chunk.
        uniform: what a uniform attention would lose.
    """

    layer: int
    head: int
    chunk: int
    lost: float
    lost_early: float
    uniform: float


@dataclass
class _Mass:
    """Attention mass on one split's kept keys, summed over samples: by layer, [heads, queries]."""

    kept: Blocks
    layers: dict[int, Float[Tensor, "heads queries"]] = field(default_factory=dict)

    def add(self, block: ScoreBlock) -> None:
        """Take the scores of some queries of a layer, whose keys are the whole input."""
        length = block.scores.shape[-1]
        t = torch.arange(block.first, block.last)[:, None]
        sees: Bool[Tensor, "block keys"] = self.kept.sees(t, torch.arange(length)[None])
        mass = (block.weights * sees.to(block.weights.device)).sum(-1).sum(0).double().cpu()
        mine = self.layers.setdefault(block.layer, torch.zeros(mass.shape[0], length, dtype=torch.float64))
        mine[:, block.first : block.last] += mass

    def share(self, layer: int, head: int, length: int, samples: int) -> AuditShare:
        """Shares of one head (from 0; from 1 in the row) over the queries that lose a key at all: those of the second
        middle chunk and later.
        """
        start, block = self.kept.anchor + self.kept.block, self.kept.block
        t = torch.arange(start, length)
        share = self.layers[layer][head, start:] / samples
        within = (t - self.kept.anchor) % block
        seen = self.kept.anchor + within + 1
        early = within < max(1, block // 4)
        return AuditShare(
            layer=layer,
            head=head + 1,
            chunk=block,
            lost=float(1 - share.mean()),
            lost_early=float(1 - share[early].mean()),
            uniform=float(1 - (seen.double() / (t + 1)).mean()),
        )


def audit(
    loaded: LoadedModel,
    *,
    chunks: Sequence[int] | None = None,
    first: int | None = None,
    length: int | None = None,
    input: str = "heldout",
    samples: int | None = None,
    seed: int = 0,
) -> Result[AuditShare]:
    """Share of the trained model's attention that a chunked prefill would not see, per chunk width, layer and head.

    Args:
        loaded: the model.
        chunks: widths C of the middle chunks, tokens; default M/8, M/4 and M/2.
        first: tokens F of chunk 0; default Mesa's.
        length: tokens of the input, at most the window; default: the window.
        input: as `make_input` takes it.
        samples: sequences; default 16 of the held-out text, 1 of anything else.
        seed: of their places.

    Raises:
        ProbeError: a length past the window, or chunks that do not fit at least twice into it.
    """
    window = loaded.window
    length = window if length is None else length
    first = int(make_scheme("mesa", window).parameters["F"]) if first is None else first
    chunks = (window // 8, window // 4, window // 2) if chunks is None else tuple(chunks)
    _check(window, length, first, chunks)
    if samples is None:
        samples = 16 if input == "heldout" else 1
    ids = make_input(loaded, input, length, samples, seed)
    masses = [_Mass(Blocks(first, chunk)) for chunk in chunks]
    _observe(loaded, ids, masses)
    shares = Records(
        mass.share(layer, head, length, len(ids))
        for mass in masses
        for layer in sorted(mass.layers)
        for head in range(len(mass.layers[layer]))
    )
    settings = {
        "model": loaded.name,
        "window": window,
        "length": length,
        "first": first,
        "chunks": list(chunks),
        "input": input,
        "samples": len(ids),
        "seed": seed,
    }
    return Result("audit", settings, Provenance.now(), shares)


def _check(window: int, length: int, first: int, chunks: Sequence[int]) -> None:
    """Refuse what leaves nothing to lose.

    Raises:
        FieldError: a length past the window, or chunks that do not fit at least twice into it.
    """
    if not 2 <= length <= window:
        raise FieldError("length", f"2 to {window}, inside the window", length)
    if not 1 <= first < length - 1:
        raise FieldError("first", f"1 to {length - 2}, so that chunks follow within {length} tokens", first)
    for chunk in chunks:
        if not 1 <= chunk < length - first:
            most = f"{length - first - 1}, what {length} tokens leave a second chunk behind the first {first}"
            raise FieldError("chunks", f"1 to {most}", chunk)


@torch.no_grad()
def _observe(loaded: LoadedModel, ids: Tensor, masses: list[_Mass]) -> None:
    """Run the model as trained, and hand every layer's attention to the masses, a block of queries at a time."""

    def see(block: ScoreBlock) -> None:
        for mass in masses:
            mass.add(block)

    with observed(loaded.model, see), apply_scheme(loaded.model, make_scheme(ORIGIN, loaded.window)):
        for row in ids.split(1):
            loaded.model.base_model(input_ids=row.to(loaded.device), use_cache=False)
