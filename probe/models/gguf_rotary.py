"""The rotary of a GGUF file, as transformers' config states it. transformers' own reader leaves its scaling out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from probe.errors import ProbeError
from probe.models.gguf_header import GgufHeader

LONG, SHORT, FACTORS = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
ROTARY_TENSORS = (LONG, SHORT)
Refuse = Callable[[str], ProbeError]
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every Llama 3 was scaled with beside its factor; llama.cpp keeps the outcome only."""


def rotary(header: GgufHeader, theta: float, refuse: Refuse) -> dict[str, Any]:
    """The config's `rope_parameters`, and the widths of heads that follow from it.

    Args:
        header: of the file.
        theta: the RoPE base.
        refuse: makes the error of a reason.

    Raises:
        ProbeError: a scaling that no config states, or heads that are rotated in part.
    """
    if header.architecture == "bloom":
        return {}
    _check_width(header, refuse)
    kind, factor = header.own("rope.scaling.type", "none"), header.own("rope.scaling.factor")
    factor = header.own("rope.scale_linear") if factor is None else factor
    base = {"rope_theta": theta}
    if FACTORS in header.tensors:
        return {"rope_parameters": base | _llama3(header, theta, refuse)}
    if LONG in header.tensors:
        return {"rope_parameters": base | _longrope(header, refuse)}
    if kind == "none" or factor in (None, 0.0, 1.0):
        return {"rope_parameters": base | {"rope_type": "default"}}
    if kind == "linear":
        return {"rope_parameters": base | {"rope_type": "linear", "factor": float(factor)}}
    if kind == "yarn":
        return {"rope_parameters": base | _yarn(header, float(factor), refuse)}
    raise refuse(f"its rotary is scaled by {kind!r}, which no config of transformers states")


def _check_width(header: GgufHeader, refuse: Refuse) -> None:
    """Heads are rotated whole."""
    heads, width = header.own("attention.head_count"), header.own("embedding_length")
    rotated = header.own("rope.dimension_count")
    if not (isinstance(heads, int) and isinstance(width, int) and heads > 0):
        raise refuse(f"expected a number of heads and a width, got {heads} and {width}")
    head = header.own("attention.key_length", width // heads)
    if rotated is not None and rotated != head:
        raise refuse(f"its rotary turns {rotated} of {head} dimensions of a head, which is not read from GGUF")


def _original(header: GgufHeader, refuse: Refuse) -> int:
    original = header.own("rope.scaling.original_context_length")
    if not isinstance(original, int) or original < 2:
        raise refuse(f"rope.scaling.original_context_length: expected a number of tokens, got {original}")
    return original


def _yarn(header: GgufHeader, factor: float, refuse: Refuse) -> dict[str, Any]:
    stated = {key: header.own(f"rope.scaling.{key}") for key in ("attn_factor", "yarn_log_multiplier")}
    said = ", ".join(f"{key} {value}" for key, value in stated.items() if value not in (None, 0.0, 1.0))
    if said:
        raise refuse(f"its YaRN has {said}, which is not read from GGUF")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": _original(header, refuse),
    }


def _floats(header: GgufHeader, name: str, refuse: Refuse) -> NDArray[np.float32]:
    row = header.tensors[name]
    if row.kind != 0:
        raise refuse(f"tensor {name} is not float32")
    return header.raw(name).view(np.float32)


def _llama3(header: GgufHeader, theta: float, refuse: Refuse) -> dict[str, Any]:
    """Llama 3's scaling, found again from the factor that each frequency was divided by.

    Raises:
        ProbeError: factors that are not those of Llama 3.
    """
    factors = _floats(header, FACTORS, refuse)
    parameters = {"rope_type": "llama3", "rope_theta": theta, "factor": float(factors.max()), **_LLAMA3}
    config = LlamaConfig(hidden_size=2 * len(factors), num_attention_heads=1, rope_parameters=parameters)
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].double().numpy()
    plain = theta ** -(np.arange(len(factors), dtype=np.float64) / len(factors))
    if not np.allclose(plain / scaled, factors, rtol=1e-4):
        raise refuse(f"its rotary's factors ({FACTORS}) are not those of Llama 3, and no config states others")
    return parameters


def _longrope(header: GgufHeader, refuse: Refuse) -> dict[str, Any]:
    """Phi's LongRoPE; its attention factor follows from the lengths, or is stated."""
    if SHORT not in header.tensors:
        raise refuse(f"it has {LONG} without {SHORT}; it is damaged")
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": _floats(header, LONG, refuse).tolist(),
        "short_factor": _floats(header, SHORT, refuse).tolist(),
        "original_max_position_embeddings": _original(header, refuse),
    }
    stated = header.own("rope.scaling.attn_factor")
    return found if stated is None else found | {"attention_factor": float(stated)}
