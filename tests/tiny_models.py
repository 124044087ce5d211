"""A tiny random model of every family and every way in which positions enter it: window 64, vocabulary 97."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from transformers import PreTrainedModel

WINDOW = 64
_COMMON = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
_SIZES = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": WINDOW,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2}
_MIXED = ["sliding_attention", "full_attention"]


def _maker(config: str, sizes: dict = _SIZES, **fixed: object) -> Callable[..., PreTrainedModel]:
    def make(seed: int = 0, **overrides: object) -> PreTrainedModel:
        torch.manual_seed(seed)
        built = getattr(transformers, config)(**(_COMMON | sizes | fixed | overrides))
        # The fused products of experts know no float64.
        how = {"experts_implementation": "eager"} if "experts" in str(fixed) else {}
        # Older releases give Gemma 2 torch's kernel, which leaves its soft-capping out.
        how |= {"attn_implementation": "eager"} if "softcapping" in str(fixed) else {}
        return transformers.AutoModelForCausalLM.from_config(built, **how).eval()

    return make


def _smollm3(*rotating: int) -> Callable[..., PreTrainedModel]:
    return _maker("SmolLM3Config", **_GROUPED, no_rope_layers=list(rotating))


def _falcon(**fixed: object) -> Callable[..., PreTrainedModel]:
    return _maker("FalconConfig", **fixed)


def _rope(kind: str, **parameters: object) -> dict:
    return {"rope_type": kind, "rope_theta": 10000.0, **parameters}


TINY: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": _maker("LlamaConfig", **_GROUPED),
    "llama-dynamic": _maker("LlamaConfig", **_GROUPED, rope_parameters=_rope("dynamic", factor=2.0)),
    "phi3-longrope": _maker(
        "Phi3Config",
        **_GROUPED,
        max_position_embeddings=4 * WINDOW,
        original_max_position_embeddings=WINDOW,
        rope_parameters=_rope(
            "longrope",
            factor=4.0,
            original_max_position_embeddings=WINDOW,
            short_factor=[1.0] * 6,
            long_factor=[1.5, 2, 3, 4, 4, 4],
        ),
    ),
    "mistral": _maker("MistralConfig", **_GROUPED, sliding_window=None),
    "qwen2": _maker("Qwen2Config", **_GROUPED),
    "qwen3": _maker("Qwen3Config", **_GROUPED, head_dim=12),
    "phi3": _maker("Phi3Config", **_GROUPED),
    "olmo": _maker("OlmoConfig", **_GROUPED),
    "olmo2": _maker("Olmo2Config", **_GROUPED),
    "phi": _maker("PhiConfig", hidden_size=64),
    "gpt_neox": _maker("GPTNeoXConfig", hidden_size=64),
    "mixtral": _maker("MixtralConfig", **_GROUPED, num_local_experts=4, sliding_window=None),
    "olmoe": _maker("OlmoeConfig", **_GROUPED, num_experts=4, num_experts_per_tok=2),
    "qwen3_moe": _maker(
        "Qwen3MoeConfig", **_GROUPED, head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48
    ),
    "granite": _maker("GraniteConfig", **_GROUPED, attention_multiplier=0.2, residual_multiplier=0.7),
    "cohere": _maker("CohereConfig", **_GROUPED, use_qk_norm=True),
    "glm4": _maker("Glm4Config", **_GROUPED, head_dim=12, partial_rotary_factor=0.5),
    "gemma2": _maker(
        "Gemma2Config", **_GROUPED, head_dim=12, query_pre_attn_scalar=12, attn_logit_softcapping=2.0, sliding_window=40
    ),
    "gemma3_text": _maker(
        "Gemma3TextConfig",
        **_GROUPED,
        head_dim=12,
        query_pre_attn_scalar=12,
        sliding_window=40,
        layer_types=_MIXED,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "gpt_oss": _maker(
        "GptOssConfig",
        **_GROUPED,
        head_dim=12,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=40,
        layer_types=_MIXED,
        rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    "cohere2": _maker("Cohere2Config", **_GROUPED, sliding_window=40, layer_types=_MIXED),
    "qwen2-sliding": _maker("Qwen2Config", **_GROUPED, use_sliding_window=True, sliding_window=40, max_window_layers=1),
    "mistral-window": _maker("MistralConfig", **_GROUPED, sliding_window=40),
    "gemma": _maker("GemmaConfig", num_key_value_heads=1, head_dim=12),
    "falcon-rope": _falcon(alibi=False),
    "smollm3-mixed": _smollm3(1, 0),
    "smollm3-nope": _smollm3(0, 0),
    "gpt_neox-nope": _maker("GPTNeoXConfig", rotary_pct=0.0),
    "mpt": _maker("MptConfig", {"d_model": 40, "n_layers": 2, "n_heads": 5, "max_seq_len": WINDOW}),
    "mpt-clip": _maker(
        "MptConfig",
        {"d_model": 40, "n_layers": 2, "n_heads": 5, "max_seq_len": WINDOW},
        attn_config={"clip_qkv": 0.7, "softmax_scale": 0.2},
        no_bias=False,
    ),
    "bloom": _maker("BloomConfig", {"hidden_size": 60, "n_layer": 2, "n_head": 6}),
    "bloom-post": _maker(
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        apply_residual_connection_post_layernorm=True,
    ),
    "falcon": _falcon(alibi=True),
    "falcon-heads": _falcon(alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "falcon-groups": _falcon(alibi=True, new_decoder_architecture=True, num_kv_heads=2),
}
"""Makers by name, the model type first; `make(seed=0, **config)`."""

ALIBI = [name for name in TINY if name.startswith(("mpt", "bloom", "falcon")) and name != "falcon-rope"]
NOWHERE = ["smollm3-nope", "gpt_neox-nope", "cohere2"]
"""Without positions in every layer on which a scheme acts: Cohere 2 rotates in its local layers alone."""
ROPE = [name for name in TINY if name not in (*ALIBI, *NOWHERE)]
LOCAL = ["mistral-window"]
"""Local by design in every layer, so that no scheme acts."""
MIXED = ["gemma2", "gemma3_text", "gpt_oss", "cohere2", "qwen2-sliding"]
"""Local by design in some layers."""


def token_ids(batch: int = 2, length: int = 150) -> torch.Tensor:
    """Random token ids, none of them special."""
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of b."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())
