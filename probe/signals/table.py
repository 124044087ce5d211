"""The table of signals. A new one is a row.

Each is a function of a pass: of a layer's hidden vectors, of its attention scores, of the model's output, or of what
the hidden vectors of many texts have in common. What it gives is a number per position and *unit*: a hidden dimension,
a head, a layer or the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from probe.attention.dense import ScoreBlock
from probe.errors import ProbeError
from probe.recording.sites import SITES, AttentionSite
from probe.signals.reference import LayerReference
from probe.tables import Table


@dataclass(frozen=True)
class Signal:
    """One row.

    Attributes:
        name: by which users ask for it.
        help: what it is, in a few words.
    """

    name: str
    help: str
    counts: ClassVar[str]
    """What its units are."""


@dataclass(frozen=True)
class HiddenSignal(Signal):
    """Of a layer's output.

    Attributes:
        of: (hidden vectors [batch, positions, width], what they are like inside the window, or None where nobody
            fitted that) -> [batch, positions, units].
        units: what its units are, where they are not the layer itself.
        averaged: whether only its mean over texts is kept, since there are many units.
    """

    of: Callable[[Tensor, LayerReference | None], Tensor]
    averaged: bool = False
    counts: ClassVar[str] = "layers"


@dataclass(frozen=True)
class AttentionSignal(Signal):
    """Of a layer's attention, per head.

    Attributes:
        of: (a block of scores, the text's ids [batch, keys]) -> [batch, heads, queries]; NaN where a query has none.
    """

    of: Callable[[ScoreBlock, Tensor], Tensor]
    counts: ClassVar[str] = "heads"


@dataclass(frozen=True)
class OutputSignal(Signal):
    """Of the model's guess of the next token.

    Attributes:
        of: (logits [positions, vocabulary], the tokens that came [positions]) -> [positions].
    """

    of: Callable[[Tensor, Tensor], Tensor]
    counts: ClassVar[str] = "the output"


@dataclass(frozen=True)
class PositionalSignal(Signal):
    """Of the positional part of a layer's hidden vectors: what they have in common over texts, by position (Dong et
    al. 2024, https://arxiv.org/abs/2405.18009, equation 3), less their mean inside the window.

    Attributes:
        of: (positional parts [blocks, width], those inside the window [blocks, width]) -> [blocks].
    """

    of: Callable[[Tensor, Tensor], Tensor]
    counts: ClassVar[str] = "layers"


DISTANCE = "distance"
"""The signal that goes by a `LayerReference`."""


def distance(
    hidden: Float[Tensor, "batch positions width"], reference: LayerReference | None
) -> Float[Tensor, "batch positions 1"]:
    """Of hidden vectors from those inside the window.

    Raises:
        ProbeError: nobody fitted those.
    """
    if reference is None:
        raise ProbeError("signal distance: expected a reference, from probe.signals.reference.fit_reference")
    return reference.distance(hidden)


def induction(block: ScoreBlock, ids: Int[Tensor, "batch keys"]) -> Float[Tensor, "batch heads queries"]:
    """Attention on what came after earlier occurrences of the query's own token (Olsson et al. 2022,
    https://arxiv.org/abs/2209.11895); NaN for a query whose token is new.
    """
    keys = block.scores.shape[-1]
    before = torch.cat((torch.full_like(ids[:, :1], -1), ids[:, : keys - 1]), 1)
    own = ids[:, block.first : block.last]
    earlier = torch.arange(keys)[None] <= torch.arange(block.first, block.last)[:, None]
    after = (own[:, :, None] == before[:, None, :]) & earlier
    mass = (block.weights * after[:, None].to(block.weights.device)).sum(-1)
    return mass.masked_fill(~after.any(-1)[:, None].to(mass.device), float("nan"))


def score_range(block: ScoreBlock) -> Float[Tensor, "batch heads queries"]:
    """Largest score of a query less its smallest among the keys that it sees."""
    least = block.scores.masked_fill(block.scores.isneginf(), float("inf")).amin(-1)
    return block.scores.amax(-1) - least


def entropy(logits: Float[Tensor, "positions vocabulary"], _targets: Tensor) -> Float[Tensor, " positions"]:
    """Entropy of the guess, nats."""
    log = logits.log_softmax(-1)
    return -(log.exp() * log).sum(-1)


def margin(logits: Float[Tensor, "positions vocabulary"], _targets: Tensor) -> Float[Tensor, " positions"]:
    """How much likelier the first guess is than the second, nats."""
    first, second = logits.topk(2, -1).values.unbind(-1)
    return first - second


def _rms(parts: Float[Tensor, "blocks width"]) -> Float[Tensor, " blocks"]:
    return parts.square().mean(-1).sqrt()


def positional_norm(
    parts: Float[Tensor, "blocks width"], inside: Float[Tensor, "known width"]
) -> Float[Tensor, " blocks"]:
    """How large the positional part is, in units of what it is inside the window."""
    return _rms(parts) / _rms(inside).square().mean().sqrt().clamp(min=1e-12)


def positional_direction(
    parts: Float[Tensor, "blocks width"], inside: Float[Tensor, "known width"]
) -> Float[Tensor, " blocks"]:
    """Cosine with the positional part at the window's end."""
    return cosine_similarity(parts, inside[-1:], dim=-1)


def positional_similarity(
    parts: Float[Tensor, "blocks width"], inside: Float[Tensor, "known width"]
) -> Float[Tensor, " blocks"]:
    """Largest cosine with any positional part inside the window, of one that lies there with any other."""
    same = (parts[:, None] == inside[None]).all(-1)
    return cosine_similarity(parts[:, None], inside[None], dim=-1).masked_fill(same, -1.0).amax(-1)


def _site(name: str) -> AttentionSignal:
    """A site of attention as a signal: what is recorded of it is the same."""
    site = SITES[name]
    assert isinstance(site, AttentionSite)
    return AttentionSignal(site.name, site.help, lambda block, _ids: site.reduce(block))


SIGNALS: Table[Signal] = Table(
    "signal",
    Signal,
    (
        HiddenSignal("hidden", "every hidden dimension by itself", lambda hidden, _: hidden, averaged=True),
        HiddenSignal(
            "norm", "root mean square of a hidden vector",
            lambda hidden, _: hidden.float().square().mean(-1, keepdim=True).sqrt(),
        ),
        HiddenSignal(
            DISTANCE, "of a hidden vector from those inside the window, by their covariance with shrinkage",
            distance,
        ),
        PositionalSignal("positional_norm", "size of the positional part, in units of that inside", positional_norm),
        PositionalSignal(
            "positional_direction", "cosine of the positional part with that at the window's end", positional_direction
        ),
        PositionalSignal(
            "positional_similarity", "largest cosine of the positional part with one inside", positional_similarity
        ),
        _site("score_max"),
        AttentionSignal("score_range", "per head, a query's largest score less its smallest",
                        lambda block, _: score_range(block)),
        _site("score_lse"),
        _site("entropy"),
        _site("first_mass"),
        _site("far_mass"),
        AttentionSignal("induction", "per head, attention on what followed the same token earlier", induction),
        OutputSignal("output_entropy", "entropy of the guess of the next token, nats", entropy),
        OutputSignal("output_margin", "first guess over the second, nats", margin),
        OutputSignal(
            "nll", "of the token that came, nats: the truth itself, where the text is known",
            lambda logits, targets: cross_entropy(logits, targets, reduction="none"),
        ),
    ),
)  # fmt: skip
