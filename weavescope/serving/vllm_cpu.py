"""vLLM's CPU backend under a scheme; without one, it is vLLM's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from probe.errors import ProbeError
from weavescope.serving.vllm import engine_scheme, pages_of, write_raw


class WeaveBackend(CPUAttentionBackend):
    """CPU_ATTN, with this module's implementation and metadata."""

    @classmethod
    def supports_rswa(cls) -> bool:
        """That is how prompts' lengths arrive."""
        return True

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """This module's."""
        return WeaveImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        """This module's."""
        return WeaveMetadataBuilder


@dataclass
class _Sequences:
    """What one step says of its sequences: (row of the block table, first query, one behind the last, tokens so far,
    tokens of the prompt).
    """

    rows: list[tuple[int, int, int, int, int | None]]


class WeaveMetadataBuilder(CPUAttentionMetadataBuilder):
    """Adds what schemes need of each sequence."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        """vLLM's own metadata, with the sequences of this step."""
        made = super().build(common_prefix_len, common_attn_metadata, fast_build)
        starts = common_attn_metadata.query_start_loc_cpu.tolist()
        lengths, prompts = made.seq_lens.tolist(), common_attn_metadata.rswa_prefix_lens
        told = [None] * len(lengths) if prompts is None else prompts.tolist()
        rows = [
            (number, starts[number], starts[number + 1], length, told[number])
            for number, length in enumerate(lengths)
            if starts[number + 1] > starts[number]
        ]
        made.weavescope = _Sequences(rows)
        return made


class WeaveImpl(CPUAttentionBackendImpl):
    """One layer's attention under the engine's scheme."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.weave = engine_scheme(get_current_vllm_config())
        if self.weave is not None:
            if self.attn_type != AttentionType.DECODER:
                raise ProbeError(f"scheme {self.weave.scheme.spec}: expected a decoder, got attention {self.attn_type}")
            if self.logits_soft_cap:
                raise ProbeError(
                    f"scheme {self.weave.scheme.spec}: soft-capped logits have no paged kernel here; run this model "
                    "under transformers"
                )

    def _halves(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [pages, kv_heads, size, dim] of a layer's cache, as vLLM's own backend takes them apart."""
        pages, heads, size, _ = kv_cache.shape
        key, value = kv_cache.view(pages, heads, 2 * size, -1).chunk(2, dim=2)
        return key, value

    def do_kv_cache_update(
        self, layer: torch.nn.Module, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Put raw keys, and values, into the pages."""
        if self.weave is None:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        else:
            write_raw(*self._halves(kv_cache), key, value, slot_mapping)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attention [tokens, heads * dim] of all sequences of this step, written into `output`."""
        if self.weave is None or attn_metadata is None:
            own: Tensor = super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
            return own
        keys, values = self._halves(kv_cache)
        number = extract_layer_index(layer.layer_name)
        queries = query.view(-1, self.num_heads, self.head_size)
        into = output.view(-1, self.num_heads, self.head_size)
        sequences: _Sequences = attn_metadata.weavescope
        for row, start, stop, length, prompt in sequences.rows:
            pages = pages_of(keys, values, attn_metadata.block_table[row], length)
            if prompt is None and self.weave.follows:
                raise ProbeError(f"scheme {self.weave.scheme.spec}: this vLLM does not tell the lengths of prompts")
            into[start:stop] = self.weave.attend(number, queries[start:stop], pages, prompt, self.scale, self.sinks)
        return output
