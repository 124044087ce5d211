"""The table of embedded models: what each one is, how it was trained, and where its folder lies.

A row is all that a new embedded model needs. Every folder is an ordinary Hugging Face one, so that
`AutoModelForCausalLM.from_pretrained(folder)` loads it without this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers takes seconds to import, and the table of models is read without it
    from transformers import PretrainedConfig

WINDOW = 512
FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class EmbeddedModel:
    """One row: `config(vocab_size, bos, eos)` builds the architecture."""

    name: str
    positions: str
    summary: str
    config: Callable[[int, int, int], PretrainedConfig]
    window: int = WINDOW
    licence: str = "Apache-2.0"

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


MODELS: dict[str, EmbeddedModel] = {
    row.name: row
    for row in (
        EmbeddedModel("rope", "RoPE", "Llama architecture, rotary positions of base 10000", _rope),
        EmbeddedModel("alibi", "ALiBi", "MPT architecture, a linear bias on the distance", _alibi),
        EmbeddedModel("nope", "none", "SmolLM3 architecture with its rotary off in every layer", _nope),
    )
}
