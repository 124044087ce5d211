"""The models that are timed: any that loads, or random weights of a given shape."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from probe.errors import FieldError, unknown
from probe.models.load import DTYPES, LoadedModel, load_model, pick_device, pick_dtype
from probe.seam.families import family_of

PREFIX = "random:"
DEFAULT = "random:layers=4,width=512,heads=8"
ROPE_BASE = 10000.0


def _bad(name: str, expected: str, got: object) -> FieldError:
    return FieldError("model", expected, got, value=f"random: {name}")


@dataclass(frozen=True)
class Shape:
    """A Llama's shape. `kv_heads` 0 is as many as heads; `mlp` 0 is 8/3 of the width, rounded up to a multiple of 64.

    `rope` is the base of the rotary. `window` is the trained window M in tokens, that schemes take their defaults from.
    """

    layers: int = 4
    width: int = 512
    heads: int = 8
    kv_heads: int = 0
    window: int = 2048
    vocab: int = 1024
    mlp: int = 0
    rope: float = ROPE_BASE

    def __post_init__(self) -> None:
        for name, least in (("layers", 1), ("width", 2), ("heads", 1), ("kv_heads", 0), ("window", 2), ("vocab", 4)):
            if getattr(self, name) < least:
                raise _bad(name, f"at least {least}", getattr(self, name))
        if self.width % (2 * self.heads):
            raise _bad("width", f"a multiple of 2*heads = {2 * self.heads}", self.width)
        if self.kv_heads and self.heads % self.kv_heads:
            raise _bad("kv_heads", f"a divisor of heads = {self.heads}", self.kv_heads)

    def config(self) -> LlamaConfig:
        """The configuration as transformers 5 has it."""
        return LlamaConfig(
            vocab_size=self.vocab, hidden_size=self.width, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads or self.heads,
            intermediate_size=self.mlp or -(-self.width * 8 // 192) * 64,
            max_position_embeddings=self.window, rope_parameters={"rope_type": "default", "rope_theta": self.rope},
            tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip


def parse_shape(spec: str) -> Shape:
    """The shape of "random:layers=4,width=512,...".

    Raises:
        ProbeError: an unknown key, or a value that is not a whole number in its domain.
    """
    known = [field.name for field in fields(Shape) if field.name != "rope"]
    values: dict[str, int] = {}
    for pair in filter(None, (part.strip() for part in spec.removeprefix(PREFIX).split(","))):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in known:
            raise unknown("key of {model} random:", key, known)
        if not value.isdigit():
            raise _bad(key, "a whole number", repr(value))
        values[key] = int(value)
    return Shape(**values)


def random_llama(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A Llama with random weights, made directly on the device: nothing is copied from the host."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype, attn_implementation="sdpa")
    return cast(PreTrainedModel, model.eval())


def bench_model(
    spec: str, *, device: str, dtype: str, window: int | None, seed: int, trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LoadedModel:  # fmt: skip
    """The model that `spec` names: "random:..." or anything that `load_model` loads, and as it loads it.

    Args:
        spec: the model's name.
        device: as `load_model` takes it, like the others.
        dtype: of the weights.
        window: trained window M in tokens, where the model's own is wrong or missing.
        seed: of random weights.
        trust_remote_code: run the repository's own Python code.
        allow_pickle: accept weights that are not safetensors.

    Raises:
        ProbeError: it does not load, or is no language model with a cache.
    """
    if not spec.startswith(PREFIX):
        loaded = load_model(
            spec, device=device, dtype=dtype, window=window, trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )  # fmt: skip
        if not isinstance(loaded.model, PreTrainedModel):
            raise FieldError("model", "a language model", hint="a construction has no cache to time", value=spec)
        return loaded
    if dtype != "auto" and dtype not in DTYPES:
        raise unknown("dtype", dtype, ["auto", *DTYPES])
    shape = parse_shape(spec)
    if window is not None and window < 2:
        raise FieldError("window", "at least 2 tokens", window)
    where = pick_device(device)
    model = random_llama(shape, where, pick_dtype(dtype, where, shape.config()), seed)
    return LoadedModel(spec, spec, model, None, family_of(model.config), shape.window if window is None else window)


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A second model object on the same parameters, so that several schemes can be applied at once."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def random_ids(loaded: LoadedModel, length: int, seed: int) -> Int[Tensor, "1 length"]:
    """Token ids drawn evenly from the vocabulary, on the model's device."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    return torch.randint(vocabulary, (1, length), generator=generator).to(loaded.device)
