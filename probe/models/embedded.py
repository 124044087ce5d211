"""The table of embedded models: what each one is, how it was trained, and where its folder lies.

A row is all that a new embedded model needs. Every folder is an ordinary Hugging Face one, so that
`AutoModelForCausalLM.from_pretrained(folder)` loads it without this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # transformers takes seconds to import, and the table of models is read without it
    from transformers import PretrainedConfig

WINDOW = 512
FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class EmbeddedModel:
    """One row.

    Attributes:
        name: what `--model` takes.
        positions: how it knows them, for tables.
        summary: of its architecture.
        config: `config(vocab_size, bos, eos)` builds the architecture.
        window: tokens of the longest text that it was trained on, M.
        licence: of its weights.
        steps: optimiser steps.
        seed: of its first weights and its batches.
        keys: whether it was taught to find pass keys; else it was trained on text and repetition alone, and is
            stored in half precision.
    """

    name: str
    positions: str
    summary: str
    config: Callable[[int, int, int], PretrainedConfig]
    window: int = WINDOW
    licence: str = "Apache-2.0"
    steps: int = 6000
    seed: int = 0
    keys: bool = True

    @property
    def here(self) -> bool:
        """Whether it is trained."""
        return (self.folder / "config.json").exists()

    @property
    def folder(self) -> Path:
        """Where the trained model lies; it need not exist yet."""
        return FOLDER / self.name


def _rope(vocab_size: int, bos: int, eos: int) -> PretrainedConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=160, intermediate_size=448, num_hidden_layers=4,
        num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=True,
        bos_token_id=bos, eos_token_id=eos, pad_token_id=eos,
    )  # fmt: skip


def _alibi(vocab_size: int, bos: int, eos: int) -> PretrainedConfig:
    from transformers import MptConfig

    return MptConfig(
        vocab_size=vocab_size, d_model=160, expansion_ratio=4, n_layers=4, n_heads=5, max_seq_len=WINDOW,
        bos_token_id=bos, eos_token_id=eos, pad_token_id=eos,
    )  # fmt: skip


def _nope(vocab_size: int, bos: int, eos: int) -> PretrainedConfig:
    from transformers import SmolLM3Config

    return SmolLM3Config(
        vocab_size=vocab_size, hidden_size=160, intermediate_size=448, num_hidden_layers=4,
        num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=WINDOW,
        no_rope_layers=[0, 0, 0, 0], use_sliding_window=False, tie_word_embeddings=True,
        bos_token_id=bos, eos_token_id=eos, pad_token_id=eos,
    )  # fmt: skip


def _small(vocab_size: int, bos: int, eos: int, window: int, layers: int) -> dict[str, Any]:
    """What the study's models of Llama's kind share."""
    return {
        "vocab_size": vocab_size, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": window,
        "tie_word_embeddings": True, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos,
    }  # fmt: skip


def _studied_rope(window: int, base: float, layers: int = 4, **rotary: Any) -> Callable[[int, int, int], Any]:
    """A Llama; `rotary` goes into its `rope_parameters`."""

    def config(vocab_size: int, bos: int, eos: int) -> PretrainedConfig:
        from transformers import LlamaConfig

        parameters = {"rope_type": "default", "rope_theta": base} | rotary
        return LlamaConfig(rope_parameters=parameters, **_small(vocab_size, bos, eos, window, layers))

    return config


def _studied_local(vocab_size: int, bos: int, eos: int) -> PretrainedConfig:
    from transformers import Gemma3TextConfig

    rotary = {"sliding_attention": 1e4, "full_attention": 1e5}
    return Gemma3TextConfig(
        **_small(vocab_size, bos, eos, 512, 6), head_dim=32, query_pre_attn_scalar=32, sliding_window=64,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        rope_parameters={kind: {"rope_type": "default", "rope_theta": base} for kind, base in rotary.items()},
    )  # fmt: skip


def _studied_alibi(vocab_size: int, bos: int, eos: int) -> PretrainedConfig:
    from transformers import MptConfig

    return MptConfig(
        vocab_size=vocab_size, d_model=128, expansion_ratio=4, n_layers=4, n_heads=4, max_seq_len=256,
        bos_token_id=bos, eos_token_id=eos, pad_token_id=eos,
    )  # fmt: skip


def _studied_nope(vocab_size: int, bos: int, eos: int) -> PretrainedConfig:
    from transformers import SmolLM3Config

    return SmolLM3Config(**_small(vocab_size, bos, eos, 256, 4), no_rope_layers=[0, 0, 0, 0], use_sliding_window=False)


def _studied(
    name: str, positions: str, summary: str, config: Callable[[int, int, int], PretrainedConfig], window: int, seed: int
) -> EmbeddedModel:
    return EmbeddedModel(name, positions, summary, config, window, steps=1500, seed=seed, keys=False)


def _by_name(*rows: EmbeddedModel) -> dict[str, EmbeddedModel]:
    return {row.name: row for row in rows}


MODELS: dict[str, EmbeddedModel] = _by_name(
    EmbeddedModel("rope", "RoPE", "Llama architecture, rotary positions of base 10000", _rope),
    EmbeddedModel("alibi", "ALiBi", "MPT architecture, a linear bias on the distance", _alibi),
    EmbeddedModel("nope", "none", "SmolLM3 architecture with its rotary off in every layer", _nope),
)
"""Those that were taught to find pass keys."""

_LLAMA = "Llama architecture"

STUDIED: dict[str, EmbeddedModel] = _by_name(
    _studied("rope-b1e3", "RoPE", f"{_LLAMA}, base 1e3", _studied_rope(256, 1e3), 256, 1),
    _studied("rope-b1e4", "RoPE", f"{_LLAMA}, base 1e4", _studied_rope(256, 1e4), 256, 2),
    _studied("rope-b1e4-again", "RoPE", "rope-b1e4 from another seed", _studied_rope(256, 1e4), 256, 3),
    _studied("rope-b1e5", "RoPE", f"{_LLAMA}, base 1e5", _studied_rope(512, 1e5), 512, 4),
    _studied("rope-b1e6", "RoPE", f"{_LLAMA}, base 1e6", _studied_rope(256, 1e6), 256, 5),
    _studied("rope-2layers", "RoPE", f"{_LLAMA}, 2 layers, base 1e4", _studied_rope(512, 1e4, 2), 512, 6),
    _studied("rope-8layers", "RoPE", f"{_LLAMA}, 8 layers, base 1e4", _studied_rope(256, 1e4, 8), 256, 7),
    _studied(
        "rope-yarn", "RoPE", f"{_LLAMA}, trained with YaRN's frequencies for four times 64 tokens",
        _studied_rope(256, 1e4, rope_type="yarn", factor=4.0, original_max_position_embeddings=64), 256, 8,
    ),
    _studied("rope-local", "RoPE", "Gemma 3 architecture, two layers of 64 tokens to one", _studied_local, 512, 9),
    _studied("alibi-256", "ALiBi", "MPT architecture, a linear bias on the distance", _studied_alibi, 256, 10),
    _studied("nope-256", "none", "SmolLM3 architecture with its rotary off in every layer", _studied_nope, 256, 11),
)  # fmt: skip
"""Those of the study of thresholds: trained on text alone, in a quarter of the steps, each different in one thing."""

EMBEDDED = MODELS | STUDIED
