"""Tiny random models of families whose attention is Llama's in all but details: a config class and what it needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from tiny_models import WINDOW
from transformers import PreTrainedModel

_COMMON = {
    "vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 12,
    "num_key_value_heads": 2, "max_position_embeddings": WINDOW,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_intermediate_size": 48, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "shared_expert_intermediate_size": 48, "n_shared_experts": 1,
    "num_shared_experts": 1, "moe_num_shared_experts": 1,
}  # fmt: skip
_SLIDING = {"sliding_window": 40}
_MIXED = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"]}

_ALIKE: dict[str, dict[str, object]] = {
    "apertus": {}, "arcee": {}, "aria_text": {}, "bitnet": {}, "cwm": _MIXED, "diffllama": {},
    "dots1": {}, "ernie4_5": {}, "ernie4_5_moe": {}, "flex_olmo": {}, "glm": {}, "glm4_moe": {}, "granitemoe": {},
    "helium": {}, "hunyuan_v1_dense": {}, "hunyuan_v1_moe": {}, "hy_v3": {},
    "hyperclovax": {}, "internlm3": {}, "iquestcoder": {}, "jais2": {}, "minimax_m2": {}, "ministral": _MIXED,
    "ministral3": {}, "nemotron": {}, "persimmon": {}, "phimoe": {}, "qwen2_moe": {}, "seed_oss": {},
    "solar_open": {}, "starcoder2": _SLIDING, "stablelm": {"hidden_size": 64}, "olmo3": _MIXED, "mellum": {},
    "vaultgemma": _MIXED, "exaone4": _MIXED, "exaone_moe": _MIXED, "kolibri1": _MIXED, "cohere2_moe": _MIXED,
}  # fmt: skip


def known(model_type: str) -> bool:
    """Whether the transformers that is installed has it: most of these came with its latest releases."""
    try:
        transformers.AutoConfig.for_model(model_type)
    except ValueError:
        return False
    return True


def make(model_type: str) -> PreTrainedModel:
    """A random model of two layers, window 64, vocabulary 97."""
    torch.manual_seed(0)
    fields = transformers.AutoConfig.for_model(model_type).to_dict()
    experts = {name: value for name, value in _EXPERTS.items() if name in fields}
    per_layer = {name: fields[name][-2:] for name in ("no_rope_layers", "mlp_layer_types") if fields.get(name)}
    config = transformers.AutoConfig.for_model(model_type, **(_COMMON | experts | per_layer | _ALIKE[model_type]))
    # The fused products of experts know no float64; VaultGemma's soft-capping has no kernel.
    how = {"experts_implementation": "eager"} if any("expert" in name for name in fields) else {}
    how |= {"attn_implementation": "eager"} if model_type == "vaultgemma" else {}
    return transformers.AutoModelForCausalLM.from_config(config, **how).eval()


ALIKE: dict[str, Callable[[], PreTrainedModel]] = {
    name: (lambda name=name: make(name)) for name in _ALIKE if known(name)
}
"""Makers by model type, of those that the installed transformers has."""
EVERY = tuple(_ALIKE)
