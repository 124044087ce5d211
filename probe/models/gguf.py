"""Models in GGUF files: dequantised as the `gguf` package does it, in an ordinary model of transformers.

transformers knows which of llama.cpp's names and layouts are which of its own, for the architectures of
`GGUF_CONFIG_MAPPING`; those tables are used here, on a header that was checked. What they leave out silently would be
another model, so it is put in here (scaled rotary positions, sliding windows, head widths), or the file is refused by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from probe.errors import ProbeError
from probe.models.gguf_header import GgufHeader, GgufTensor, read_header
from probe.models.gguf_rotary import ROTARY_TENSORS, rotary
from probe.models.memory import check_memory

MOST = 2**31 - 1
"""The largest number that a config may state."""
ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "falcon", "bloom")
"""llama.cpp's names of the architectures that transformers reads and schemes fit. Mistral's is "llama"."""
_FIELDS = {
    "attention.key_length": "head_dim", "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "attention.clamp_kqv": "clip_qkv", "logit_scale": "logit_scale", "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier", "attention.scale": "attention_multiplier",
    "attention.max_alibi_bias": "alibi_bias_max",
}  # fmt: skip
"""Keys that change what a model computes, and transformers' field for them; a config without the field is refused."""
_NEUTRAL: dict[str, Callable[[Any, PretrainedConfig], bool]] = {
    "attention.key_length": lambda value, config: value * config.num_attention_heads == config.hidden_size,
    "attention.sliding_window": lambda value, config: value == 0 or value >= config.max_position_embeddings,
    "attention.max_alibi_bias": lambda value, config: value in (0.0, 8.0),
}
"""When a key says nothing that a config without its field would not say."""
_UNUSED = ("rope_freqs.weight", *ROTARY_TENSORS)
_UNUSED_ENDS = (".attn_rot_embd.weight", ".rope_freqs.weight")
"""Tensors that are no parameters: rotary factors, which the config takes, and tables that llama.cpp once wrote."""


@dataclass(frozen=True)
class GgufModel:
    """A model from a file, with its loading info as `from_pretrained` gives it, and the window that the file states."""

    model: PreTrainedModel
    info: dict[str, Any]
    window: int | None


def _refuse(header: GgufHeader, reason: str) -> ProbeError:
    return ProbeError(f"GGUF file {header.path}: {reason}")


def gguf_config(header: GgufHeader) -> PretrainedConfig:
    """The config that a file's metadata describes.

    Raises:
        ProbeError: an architecture that is not read, absurd sizes, or something that transformers' model of it does not
            compute.
    """
    stated = _stated(header)
    try:
        config: PretrainedConfig = AutoConfig.for_model(**stated)
    except Exception as error:
        raise _refuse(
            header, f"its metadata makes no config of {stated['model_type']} ({_first_line(error)})"
        ) from None
    if getattr(config, "head_dim", None) is not None:  # transformers' default may be another one
        config.head_dim = config.hidden_size // config.num_attention_heads
    for key, field in _FIELDS.items():
        _put(header, config, key, field)
    return config


def _stated(header: GgufHeader) -> dict[str, Any]:
    """The fields of the config that the file states."""
    architecture = header.architecture
    if architecture not in ARCHITECTURES:
        raise _refuse(
            header,
            f"the architecture {architecture!r} is not one that transformers dequantises and schemes fit; those are "
            f"{', '.join(ARCHITECTURES)}",
        )
    if header.own("expert_count"):
        raise _refuse(header, "it is a mixture of experts, whose weights are not read from GGUF")
    mapping = GGUF_CONFIG_MAPPING[architecture]
    fields = {field: header.own(key) for key, field in mapping.items() if field and header.own(key) is not None}
    sizes = {field: _number(header, field, value) for field, value in fields.items()}
    _check_layers(header)
    vocabulary = _vocabulary(header)
    special = {
        f"{name}_token_id": header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    theta = sizes.pop("rope_theta", 10000.0)

    def refuse(reason: str) -> ProbeError:
        return _refuse(header, reason)

    return {
        **sizes, **special, **rotary(header, theta, refuse), "model_type": architecture, "vocab_size": vocabulary,
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }  # fmt: skip


def _vocabulary(header: GgufHeader) -> int:
    """Rows of the token embeddings, which decide, whatever else is stated."""
    row = header.tensors.get("token_embd.weight")
    if row is None or len(row.shape) != 2:
        raise _refuse(header, "it has no token embeddings (token_embd.weight), so it is no language model")
    return row.shape[0]


def _number(header: GgufHeader, field: str, value: Any) -> Any:
    """A value of the config, if it is one that a model can have."""
    if isinstance(value, list) and value and all(part == value[0] for part in value):
        value = value[0]  # one number per layer, all the same
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        raise _refuse(header, f"{field}: expected one number, got {_short(value)}")
    if not 0 < value <= MOST:
        raise _refuse(header, f"{field}: expected a number above 0 and up to {MOST}, got {value}")
    # A float32 as it was written: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_layers(header: GgufHeader) -> None:
    """Before anything is made for that many layers."""
    claimed = header.own("block_count")
    there = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if claimed != len(there):
        raise _refuse(header, f"it claims {claimed} layers and has tensors of {len(there)}; it is damaged")


def _put(header: GgufHeader, config: PretrainedConfig, key: str, field: str) -> None:
    """Put what a key says into its field of the config."""
    value = header.own(key)
    if value is None:
        return
    if hasattr(config, field):
        setattr(config, field, _number(header, field, value) if value else None)
    elif not (key in _NEUTRAL and _NEUTRAL[key](value, config)) and not hasattr(config, field):
        raise _refuse(
            header,
            f"it states {header.architecture}.{key} = {value}, which transformers' {config.model_type} does not "
            "compute",
        )


def gguf_model(header: GgufHeader, config: PretrainedConfig, dtype: torch.dtype) -> GgufModel:
    """The model with its weights dequantised to float32 by the `gguf` package, and then brought to `dtype`.

    Raises:
        ProbeError: tensors that are not the model's, of another shape or of a type that is not dequantised; more than
            the memory holds.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    names = get_gguf_hf_weights_map(empty, processor)
    _check_tensors(header, empty, names)
    rows = [header.tensors[name] for name in names if name in header.tensors]
    largest = max(row.elements for row in rows)
    check_memory(sum(row.elements for row in rows) * dtype.itemsize + 8 * largest, f"GGUF file {header.path}")
    state = {names[row.name]: _weights(header, row, processor, names).to(dtype) for row in rows}
    model, info = type(empty).from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    window = header.own("context_length")
    return GgufModel(model, info, window if isinstance(window, int) and 1 < window <= MOST else None)


def _weights(header: GgufHeader, row: GgufTensor, processor: Any, names: dict[str, str]) -> Tensor:
    """One tensor as transformers lays it out, float32."""
    from gguf import GGMLQuantizationType, dequantize
    from gguf.quants import quant_shape_to_byte_shape

    kind = GGMLQuantizationType(row.kind)
    data = header.raw(row.name)
    if kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        data = data.reshape(quant_shape_to_byte_shape(row.shape, kind))
    try:
        values = dequantize(data, kind).reshape(row.shape)
    except NotImplementedError:
        raise _refuse(header, f"tensor {row.name} is {kind.name}, which the gguf package does not dequantise") from None
    done = processor.process(weights=values, name=row.name, tensor_key_mapping=names, parsed_parameters={"tensors": {}})
    return torch.from_numpy(np.array(done.weights, dtype=np.float32, order="C"))


def _check_tensors(header: GgufHeader, empty: PreTrainedModel, names: dict[str, str]) -> None:
    """Refuse what is not the model's before anything is allocated; what it lacks is found at loading."""
    unused = [name for name in header.tensors if not (name in names or name in _UNUSED or name.endswith(_UNUSED_ENDS))]
    if unused:
        said = f"{len(unused)} of its tensors are not those of transformers' {empty.config.model_type} ({_few(unused)})"
        raise _refuse(header, f"{said}; it would be another model without them")
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    wrong = [
        f"{name} is {list(header.tensors[name].shape)}, not {list(shapes[own])}"
        for name, own in names.items()
        if name in header.tensors and own in shapes and not _same(header.tensors[name].shape, shapes[own])
    ]
    if wrong:
        raise _refuse(
            header, f"{len(wrong)} of its tensors are not of the shapes that its metadata describes ({_few(wrong)})"
        )


def _same(stored: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether the shapes are alike; ggml has no dimensions of size one."""
    return [size for size in stored if size != 1] == [size for size in own if size != 1]


def _few(names: Iterable[str], shown: int = 3) -> str:
    found = sorted(names)
    return ", ".join(found[:shown]) + (", ..." if len(found) > shown else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_gguf(name: str) -> GgufHeader:
    """The checked header of the file of that name.

    Raises:
        ProbeError: no such file, or none that can be read.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise ProbeError(f"model {name!r}: no such GGUF file")
    return read_header(path)


def gguf_tokenizer(header: GgufHeader) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer, or None and why there is none; token ids are input enough."""
    from probe.models.gguf_tokenizer import tokenizer_of

    if "tokenizer.ggml.tokens" not in header.metadata:
        return None, "has no tokenizer (a GGUF file without one)"
    try:
        return tokenizer_of(header), ""
    except Exception as error:
        return None, f"has a tokenizer that does not load ({_first_line(error)})"


def save_gguf(path: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a file's model and tokenizer as an ordinary Hugging Face folder.

    Raises:
        ProbeError: as `open_gguf`, `gguf_config` and `gguf_model`; or a tokenizer that does not load.
    """
    header = open_gguf(str(path))
    made = gguf_model(header, gguf_config(header), dtype)
    tokenizer, without = gguf_tokenizer(header)
    if tokenizer is None:
        raise _refuse(header, f"it {without}")
    if made.window is not None:
        tokenizer.model_max_length = made.window
    made.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
