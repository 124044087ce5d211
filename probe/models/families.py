"""The table of model families: where each one's hook points are and how positions enter.

Paths are dotted names below the causal LM. A family is one row; a model whose type is not here is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from torch import nn
from transformers import PretrainedConfig

from probe.errors import ProbeError
from probe.models.construction import ProbedModel

SITES = ("resid", "attn", "mlp")
"""Recordable sites of a layer: its output (the residual stream), its attention's output, its MLP's output."""


@dataclass(frozen=True)
class Family:
    """One row. `attn` and `mlp` are names inside a layer; `rotary` is the module that turns positions into cos and sin.

    `head` says whether there is a vocabulary head, and so a likelihood.
    """

    model_type: str
    layers: str = "model.layers"
    rotary: str = "model.rotary_emb"
    attn: str = "self_attn"
    mlp: str = "mlp"
    head: bool = True

    def layer_list(self, model: ProbedModel) -> nn.ModuleList:
        """The decoder layers in order."""
        layers = model.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def site_module(self, model: ProbedModel, layer: int, site: str) -> nn.Module:
        """The module whose output is `site` of the 1-based `layer`."""
        module = self.layer_list(model)[layer - 1]
        return module if site == "resid" else module.get_submodule({"attn": self.attn, "mlp": self.mlp}[site])


FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
        Family("phi3"),
        Family("olmo"),
        Family("olmo2"),
        Family("phi"),
        # The theorems' toy transformers: positions enter as an additive term, see construction.py.
        Family("construction", layers="toy.layers", rotary="", attn="attn", head=False),
        Family("gpt_neox", layers="gpt_neox.layers", rotary="gpt_neox.rotary_emb", attn="attention"),
    )
}


def family_of(config: PretrainedConfig | SimpleNamespace) -> Family:
    """The row of a model's family.

    Raises:
        ProbeError: the family is not in the table; the message lists those that are.
    """
    row = FAMILIES.get(config.model_type)
    if row is None:
        raise ProbeError(
            f"model family {config.model_type!r} does not fit the position seam; supported: {', '.join(FAMILIES)}"
        )
    return row
