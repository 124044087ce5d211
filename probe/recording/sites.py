"""The table of recordable sites: what is recorded of every layer. A new site is a row.

There are two kinds: a module's output, whose dimensions are hidden ones, and what a head's attention scores come to,
whose dimensions are heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from probe.attention.dense import ScoreBlock
from probe.seam.construction import ProbedModel
from probe.seam.families import Family
from probe.seam.observers import observed
from probe.tables import Table

Take = Callable[[int, Tensor], None]
"""Told of a layer (1 is the first) and its values [batch, positions, dims], in the order of positions."""


@dataclass(frozen=True)
class Site(ABC):
    """One row: something of every decoder layer, [batch, positions, dims], that can be recorded.

    Attributes:
        name: by which users ask for it.
        help: what it is, in a few words.
    """

    name: str
    help: str
    counts: ClassVar[str]
    """What its dimensions are."""

    @abstractmethod
    def width(self, config: Any) -> int:
        """How many dimensions it has, from the model's config."""

    @abstractmethod
    def recorded(self, model: ProbedModel, family: Family, layers: Sequence[int], take: Take) -> Any:
        """A context in which `take` is told of these layers."""


@dataclass(frozen=True)
class ModuleSite(Site):
    """A module's output.

    Attributes:
        module: from the family and one of its decoder layers, the module whose output is recorded (a tensor, or a
            tuple that begins with it).
    """

    module: Callable[[Family, nn.Module], nn.Module]
    counts: ClassVar[str] = "hidden dimensions"

    @override
    def width(self, config: Any) -> int:
        return int(config.hidden_size)

    @contextmanager
    @override
    def recorded(self, model: ProbedModel, family: Family, layers: Sequence[int], take: Take) -> Iterator[None]:
        def hook(layer: int) -> Callable[..., None]:
            def keep(_module: nn.Module, _inputs: object, output: object) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                assert isinstance(hidden, Tensor)
                take(layer, hidden)

            return keep

        with ExitStack() as undo:
            for layer in layers:
                module = self.module(family, family.layer_list(model)[layer - 1])
                undo.callback(module.register_forward_hook(hook(layer)).remove)
            yield


@dataclass(frozen=True)
class AttentionSite(Site):
    """A number per head of what each query attends to, under the scheme that is applied.

    Attributes:
        reduce: from a block of scores, [batch, heads, queries].
    """

    reduce: Callable[[ScoreBlock], Float[Tensor, "batch heads queries"]]
    counts: ClassVar[str] = "heads"

    @override
    def width(self, config: Any) -> int:
        return int(config.num_attention_heads)

    @contextmanager
    @override
    def recorded(self, model: ProbedModel, family: Family, layers: Sequence[int], take: Take) -> Iterator[None]:
        def see(block: ScoreBlock) -> None:
            if block.layer in layers:
                take(block.layer, self.reduce(block).transpose(1, 2))

        with observed(model, see):
            yield


def relative_entropy(block: ScoreBlock) -> Float[Tensor, "batch heads queries"]:
    """Entropy of the weights over the logarithm of the number of keys seen: 1 is uniform, 0 a single key of several. 1
    for a query that sees one key only.
    """
    seen = block.seen.to(block.entropy.dtype)
    return torch.where(seen > 1, block.entropy / seen.clamp(min=2).log(), 1.0)


def far_mass(block: ScoreBlock) -> Float[Tensor, "batch heads queries"]:
    """Attention on keys that are the window or more before the query, by their order in the text."""
    most = max(0, block.last - block.window)
    t = torch.arange(block.first, block.last)[:, None]
    far = t - torch.arange(most)[None] >= block.window
    return (block.weights[..., :most] * far.to(block.weights.device)).sum(-1)


SITES: Table[Site] = Table(
    "site",
    Site,
    (
        ModuleSite("resid", "a layer's output, the residual stream", lambda family, layer: layer),
        ModuleSite(
            "attn",
            "its attention's output, after the output projection",
            lambda family, layer: layer.get_submodule(family.attn_site or family.attn),
        ),
        ModuleSite(
            "mlp", "its MLP's output, without the residual", lambda family, layer: layer.get_submodule(family.mlp)
        ),
        AttentionSite("score_max", "per head, a query's largest attention score", lambda block: block.scores.amax(-1)),
        AttentionSite("score_lse", "per head, the log-sum-exp of a query's scores", lambda block: block.lse),
        AttentionSite(
            "entropy", "per head, the attention's entropy, relative to that of a uniform one", relative_entropy
        ),
        AttentionSite("first_mass", "per head, attention on the first token", lambda block: block.weights[..., 0]),
        AttentionSite("far_mass", "per head, attention on tokens at distances of M and more", far_mass),
    ),
)
