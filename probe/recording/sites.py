"""The table of recordable sites: which module's output is recorded. A new site is a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from probe.seam.families import Family
from probe.tables import Table


def _width(config: Any) -> int:
    return int(config.hidden_size)


@dataclass(frozen=True)
class Site:
    """One row: a place in every decoder layer whose values [batch, positions, dims] can be recorded.

    Attributes:
        name: by which users ask for it.
        help: what it is, in a few words.
        module: from the family and one of its decoder layers, the module whose output is recorded (a tensor, or a
            tuple that begins with it).
        width: dimensions that it has, from the model's config.
    """

    name: str
    help: str
    module: Callable[[Family, nn.Module], nn.Module]
    width: Callable[[Any], int] = _width


SITES: Table[Site] = Table(
    "site",
    Site,
    (
        Site("resid", "a layer's output, the residual stream", lambda family, layer: layer),
        Site(
            "attn",
            "its attention's output, after the output projection",
            lambda family, layer: layer.get_submodule(family.attn_site or family.attn),
        ),
        Site("mlp", "its MLP's output, without the residual", lambda family, layer: layer.get_submodule(family.mlp)),
    ),
)
