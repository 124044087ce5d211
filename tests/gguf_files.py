"""Writes GGUF files as llama.cpp lays them out, from models of transformers, with the `gguf` package's writer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Arrays = dict[str, np.ndarray]

_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def named(model: PreTrainedModel) -> Arrays:
    """The weights by llama.cpp's names; query and key rows of a Llama in pairs, as its rotary has them."""
    arrays = {}
    for key, value in model.state_dict().items():
        stem, _, kind = key.rpartition(".")
        x = value.float().numpy()
        if stem in _TOP:
            arrays[f"{_TOP[stem]}.{kind}"] = x
            continue
        number, part = stem.removeprefix("model.layers.").split(".", 1)
        heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(part)
        if heads and model.config.model_type == "llama":
            n = getattr(model.config, heads)
            x = x.reshape(n, 2, x.shape[0] // n // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        arrays[f"blk.{number}.{_LAYER[part]}.{kind}"] = x
    return arrays


def write(
    path: Path,
    model: PreTrainedModel,
    kind: str = "F32",
    *,
    architecture: str = "",
    keys: dict[str, Any] | None = None,
    change: Callable[[Arrays], object] = len,
    tokenizer: PreTrainedTokenizerBase | None = None,
    pre: str = "smollm",
) -> Path:
    """Write a model.

    Args:
        kind: ggml's type of the matrices; vectors stay float32.
        architecture: llama.cpp's name, where it is not the config's.
        keys: metadata beside the usual, or in its place; None leaves a key out.
        change: of the arrays by name.
        tokenizer: a byte-level BPE one.
    """
    config = model.config
    name = architecture or config.model_type
    writer = GGUFWriter(path, name)
    metadata = {
        "context_length": config.max_position_embeddings, "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "vocab_size": config.vocab_size,
        "rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    } | (keys or {})  # fmt: skip
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}.get(type(value))
        if add is not None:
            add(f"{name}.{key}", value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, pre)
    arrays = named(model)
    change(arrays)
    for key, x in arrays.items():
        of = GGMLQuantizationType[kind if x.ndim == 2 else "F32"]
        writer.add_tensor(key, quants.quantize(x, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """The model with its matrices quantised and dequantised by the `gguf` package."""
    of = GGMLQuantizationType[kind]
    back = {}
    for key, value in model.state_dict().items():
        # Rows are quantised one by one, so the order of rows does not change what they become.
        x = value.float().numpy()
        back[key] = torch.from_numpy(quants.dequantize(quants.quantize(x, of), of) if x.ndim == 2 else x)
    model.load_state_dict(back)
    return model


def _add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, pre: str) -> None:
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {row["id"] for row in whole["added_tokens"]}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if number in special else 1 for _, number in vocabulary])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id), (writer.add_eos_token_id, tokenizer.eos_token_id),
    ):  # fmt: skip
        if number is not None:
            add(number)
