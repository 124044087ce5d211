"""The table of model families: where each one's hook points are and how positions enter.

Paths are dotted names below the causal LM. A family is one row, in an open table; a model whose type is not here is
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from probe.errors import ProbeError
from probe.seam.construction import ProbedModel, ToyModel
from probe.seam.own_attention import BLOOM, FALCON, MPT, OwnAttention
from probe.seam.positions import (
    Bias,
    Nowhere,
    PositionEncoding,
    Rope,
    falcon_slopes,
    follows,
    geometric_slopes,
    mpt_slopes,
)
from probe.seam.refused import REFUSED
from probe.tables import Table


def _no_slopes(config: Any) -> Tensor | None:
    return None


def _fits(config: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        name: transformers' `model_type`.
        positions: how positions enter, in words.
        layers: the list of decoder layers.
        rotary: the module that turns positions into cos and sin; empty where there is none.
        attn: a layer's attention module.
        mlp: the module in a layer whose output is what the MLP adds to the residual stream.
        attn_site: the module in a layer whose output is what attention adds to the residual stream, where that is not
            `attn`.
        head: whether there is a vocabulary head, and so a likelihood.
        slopes: ALiBi's slopes of a config, float [heads] in scaled scores; None for a config without ALiBi.
        rotates: whether an attention module of a family with a rotary uses it.
        own: the attention that the module writes out itself, where it does.
        interleaved: whether its rotary pairs dimensions (2j, 2j + 1), and not (j, j + half).
        halved: whether its rotary gives cos and sin of half a head's width.
        by_layer_type: whether it has a rotary for every kind of layer in the config's `layer_types`.
        misfit: why a config of this family cannot be run, or None.
    """

    name: str
    positions: str = "RoPE"
    layers: str = "model.layers"
    rotary: str = "model.rotary_emb"
    attn: str = "self_attn"
    mlp: str = "mlp"
    attn_site: str = ""
    head: bool = True
    slopes: Callable[[Any], Tensor | None] = _no_slopes
    rotates: Callable[[Any], bool] = lambda attention: True
    own: OwnAttention | None = None
    interleaved: bool = False
    halved: bool = False
    by_layer_type: bool = False
    misfit: Callable[[Any], str | None] = _fits

    def layer_list(self, model: ProbedModel) -> nn.ModuleList:
        """The decoder layers in order."""
        layers = model.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def attentions(self, model: ProbedModel) -> list[nn.Module]:
        """The attention module of every layer."""
        return [layer.get_submodule(self.attn) for layer in self.layer_list(model)]

    def layer_positions(self, model: ProbedModel, angle_dtype: torch.dtype = torch.float32) -> list[PositionEncoding]:
        """How positions enter each layer of a model that is not a construction."""
        attentions, slopes = self.attentions(model), self.slopes(model.config)
        if slopes is not None:
            return [Bias(slopes)] * len(attentions)
        nowhere = Nowhere()
        ropes = {kind: self._rope(model, angle_dtype, kind) or nowhere for kind in set(self._kinds(model))}
        found = zip(attentions, self._kinds(model), strict=True)
        return [ropes[kind] if self.rotates(attention) else nowhere for attention, kind in found]

    def layer_windows(self, model: ProbedModel) -> list[int | None]:
        """How many of the last keys, their own among them, each layer's queries see; None: all. As transformers has
        it.
        """
        config, count = model.config, len(self.layer_list(model))
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            return [window] * count
        return [window if kind == "sliding_attention" else None for kind in kinds]

    def _kinds(self, model: ProbedModel) -> list[str]:
        """The kind of every layer, where each kind has a rotary of its own; else the empty one."""
        return list(model.config.layer_types) if self.by_layer_type else [""] * len(self.layer_list(model))

    def _rope(self, model: ProbedModel, angle_dtype: torch.dtype, kind: str) -> Rope | None:
        """The model's rotary for a kind of layer, or None where it turns no dimension."""
        rotary, before = model.get_submodule(self.rotary), f"{kind}_" if kind else ""
        inv_freq = getattr(rotary, f"{before}inv_freq")
        assert isinstance(inv_freq, Tensor)
        if len(inv_freq) == 0:
            return None
        assert not isinstance(model, ToyModel)
        amplitude = float(getattr(rotary, f"{before}attention_scaling", 1.0))
        at = None if kind else follows(model.config, inv_freq.device)
        return Rope(inv_freq.cpu(), amplitude, rope_base(model, kind), angle_dtype, at, self.interleaved)

    def rotary_width(self, model: ProbedModel) -> int:
        """Width of the cos and sin that the attention modules expect."""
        kinds = self._kinds(model)
        inv_freq = getattr(model.get_submodule(self.rotary), f"{kinds[0]}_inv_freq" if kinds[0] else "inv_freq")
        assert isinstance(inv_freq, Tensor)
        return len(inv_freq) * (1 if self.halved else 2)


def rope_base(model: PreTrainedModel, kind: str = "") -> float:
    """The RoPE base that the model was trained with, for a kind of layer where each has its own."""
    parameters = getattr(model.config, "rope_parameters", None) or {}
    parameters = parameters.get(kind, parameters)
    return float(parameters.get("rope_theta", 10000.0))


def _mpt_misfit(config: Any) -> str | None:
    """What MPT was trained with and transformers' MPT does not compute, whatever the config says."""
    attention = config.attn_config
    if not attention.alibi:
        return "attn_config.alibi is false, so its positions are learned embeddings, which transformers does not load"
    for option in ("qk_ln", "prefix_lm"):
        if getattr(attention, option, False):
            return f"attn_config.{option} is true, which transformers' MPT does not compute"
    if attention.attn_type != "multihead_attention":
        return (
            f"attn_config.attn_type is {attention.attn_type!r}, and transformers' MPT computes multihead_attention only"
        )
    return None


def _bloom_misfit(config: Any) -> str | None:
    if config.slow_but_exact and config.pretraining_tp > 1:
        return (
            "slow_but_exact with pretraining_tp > 1 leaves out the output projection's bias; "
            "set slow_but_exact to false"
        )
    return None


def _gemma_misfit(config: Any) -> str | None:
    return "use_bidirectional_attention is true" if getattr(config, "use_bidirectional_attention", None) else None


def _falcon_slopes(config: Any) -> Tensor | None:
    heads = config.num_attention_heads
    return falcon_slopes(heads, config.hidden_size // heads) if config.alibi else None


def _rotates_where_local(attention: Any) -> bool:
    """In sliding layers, and in all where none slides."""
    return attention.sliding_window is None or bool(attention.is_sliding)


FAMILIES: Table[Family] = Table(
    "model family",
    Family,
    (
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
        Family("phi3"),
        Family("olmo"),
        # What attention and MLP put out is normalised before it is added: these are the sites.
        Family("olmo2", attn_site="post_attention_layernorm", mlp="post_feedforward_layernorm"),
        Family("phi"),
        Family("gemma", misfit=_gemma_misfit),
        # Sliding and full layers alternate; scores are soft-capped.
        Family(
            "gemma2", attn_site="post_attention_layernorm", mlp="post_feedforward_layernorm", misfit=_gemma_misfit,
        ),
        # Five sliding layers to a full one, each kind with a rotary of its own.
        Family(
            "gemma3_text", attn_site="post_attention_layernorm", mlp="post_feedforward_layernorm", by_layer_type=True,
            misfit=_gemma_misfit,
        ),
        Family("granite"),
        # Attention is Llama's; the MLP is a mixture of experts.
        Family("mixtral"),
        Family("olmoe"),
        Family("qwen3_moe"),
        # A sink in every row's denominator; sliding and full layers alternate.
        Family("gpt_oss", halved=True),
        Family("cohere", interleaved=True),
        # Sliding layers rotate, full ones have no positions.
        Family(
            "cohere2", "RoPE or none, per layer", interleaved=True,
            rotates=lambda attention: attention.sliding_window is not None,
        ),
        Family("glm4", attn_site="post_self_attn_layernorm", mlp="post_mlp_layernorm", interleaved=True),
        # no_rope_layers: a 0 is a layer without rotation; all 0 is a NoPE model.
        Family("smollm3", "RoPE or none, per layer", rotates=lambda attention: bool(attention.use_rope)),
        # Llama's attention in all but details; tests/alike_models.py has each.
        *(
            Family(name)
            for name in (
                "apertus", "arcee", "aria_text", "bitnet", "cwm", "diffllama", "dots1", "glm4_moe",
                "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "internlm3", "iquestcoder", "jais2", "minimax_m2",
                "ministral", "ministral3", "nemotron", "persimmon", "phimoe", "qwen2_moe", "seed_oss", "solar_open",
                "starcoder2", "stablelm",
            )
        ),
        *(Family(name, interleaved=True) for name in ("ernie4_5", "ernie4_5_moe", "glm", "helium")),
        Family("granitemoe", mlp="block_sparse_moe"),
        Family("hyperclovax", attn_site="post_norm1", mlp="post_norm2"),
        Family("flex_olmo", attn_site="post_attention_layernorm", mlp="post_feedforward_layernorm"),
        Family(
            "olmo3", attn_site="post_attention_layernorm", mlp="post_feedforward_layernorm", by_layer_type=True,
        ),
        Family("mellum", by_layer_type=True),
        Family("vaultgemma", misfit=_gemma_misfit),
        # Sliding layers rotate; full ones do where there are no sliding ones.
        Family("exaone_moe", "RoPE or none, per layer", rotates=_rotates_where_local),
        Family(
            "exaone4", "RoPE or none, per layer", rotates=_rotates_where_local,
            attn_site="post_attention_layernorm", mlp="post_feedforward_layernorm",
        ),
        Family(
            "kolibri1", "RoPE or none, per layer", rotates=_rotates_where_local,
            attn_site="post_self_attn_layernorm", mlp="post_mlp_layernorm",
        ),
        Family(
            "cohere2_moe", "RoPE or none, per layer", interleaved=True,
            rotates=lambda attention: attention.sliding_window is not None or attention.force_rope,
        ),
        # The theorems' toy transformers: positions enter as an additive term, see construction.py.
        Family("construction", "an additive term", layers="toy.layers", rotary="", attn="attn", head=False),
        # partial_rotary_factor 0 rotates nothing.
        Family("gpt_neox", layers="gpt_neox.layers", rotary="gpt_neox.rotary_emb", attn="attention"),
        # alibi_bias_max is what the model was trained with; transformers ignores it and takes 8.
        Family(
            "mpt", "ALiBi", layers="transformer.blocks", rotary="", attn="attn", mlp="ffn.down_proj", own=MPT,
            misfit=_mpt_misfit,
            slopes=lambda config: mpt_slopes(config.n_heads, config.attn_config.alibi_bias_max),
        ),
        # Its attention and MLP add the residual themselves: their last projections are the sites.
        Family(
            "bloom", "ALiBi", layers="transformer.h", rotary="", attn="self_attention",
            attn_site="self_attention.dense",
            mlp="mlp.dense_4h_to_h", own=BLOOM, misfit=_bloom_misfit,
            slopes=lambda config: geometric_slopes(config.n_head),
        ),
        Family(
            "falcon", "ALiBi or RoPE", layers="transformer.h", rotary="transformer.rotary_emb", attn="self_attention",
            own=FALCON, slopes=_falcon_slopes,
        ),
    ),
)  # fmt: skip


def family_of(config: PretrainedConfig | SimpleNamespace) -> Family:
    """The row of a model's family.

    Raises:
        ProbeError: the family is not in the table (the message lists those that are), or this config of it does not
            fit.
    """
    if config.model_type not in FAMILIES:
        reason = f": {REFUSED[config.model_type]}" if config.model_type in REFUSED else ""
        raise ProbeError(
            f"model family {config.model_type!r} does not fit the position seam{reason}; "
            f"supported: {', '.join(FAMILIES)}"
        )
    row = FAMILIES[config.model_type]
    misfit = row.misfit(config)
    if misfit is not None:
        raise ProbeError(f"this {row.name} model does not fit the position seam: {misfit}")
    return row


def unwrapped(model: Any) -> Any:
    """The model itself: of a PEFT model its base, in which the adapters' layers are; of anything else the thing given.

    PEFT's wrapper is known by its method `get_base_model`, so that peft need not be there.
    """
    base = getattr(model, "get_base_model", None)
    return model if base is None else base()
