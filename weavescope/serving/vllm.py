"""A vLLM plugin: a model under a scheme, with paged cache, continuous batching and chunked prefill.

vLLM (https://docs.vllm.ai, checked with 0.32 on CPU) finds it by the entry point `vllm.general_plugins`. Nothing
changes until a scheme is chosen: by `WEAVESCOPE_SCHEME=rerope+logn` (and `WEAVESCOPE_WINDOW`), by `--hf-overrides
'{"weavescope_scheme": "rerope+logn"}'`, or by `--additional-config '{"weavescope": {"scheme": "rerope+logn", "window":
8192}}'`.

The rotary turns nothing, so that the cache holds raw keys, and attention is `weavescope.serving.engine`'s. The length
of a prompt, which Mesa and other schemes follow, comes the way that vLLM hands it to backends of reference sliding
window attention.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.attention.paged import Pages
from probe.errors import ProbeError
from weavescope.serving.engine import EngineScheme

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ENV, ENV_WINDOW = "WEAVESCOPE_SCHEME", "WEAVESCOPE_WINDOW"
OVERRIDE = "weavescope_scheme"
SECTION = "weavescope"
_MADE = "_weavescope_engine_scheme"
"""Attribute of vLLM's configuration: the scheme, once it is made."""


def chosen(config: VllmConfig) -> tuple[str, int | None] | None:
    """(scheme, window M where one is given) of an engine's configuration; None where there is none.

    Raises:
        ProbeError: the section in `additional_config` is not one, or the window is no number.
    """
    section = (config.additional_config or {}).get(SECTION) if isinstance(config.additional_config, dict) else None
    if section is not None:
        if not isinstance(section, dict) or not isinstance(section.get("scheme"), str):
            raise ProbeError(
                f'additional_config: {SECTION}: expected {{"scheme": TEXT, "window": TOKENS}}, got {section!r}'
            )
        return section["scheme"], _tokens(section.get("window"), "additional_config: window")
    text = getattr(config.model_config.hf_config, OVERRIDE, None) or os.environ.get(ENV)
    return (str(text), _tokens(os.environ.get(ENV_WINDOW), ENV_WINDOW)) if text else None


def _tokens(value: Any, name: str) -> int | None:
    """A trained window M; None where none is given.

    Raises:
        ProbeError: it is no whole number.
    """
    if value in (None, ""):
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ProbeError(f"{name}: expected a number of tokens, got {value!r}") from None


def engine_scheme(config: VllmConfig) -> EngineScheme | None:
    """The scheme of an engine, made once; None where none is chosen.

    Raises:
        ProbeError: the scheme does not fit the model, or the engine's options do not fit the scheme.
    """
    if not hasattr(config.model_config, _MADE):
        asked = chosen(config)
        made = None if asked is None else EngineScheme.of(config.model_config.hf_text_config, *asked)
        if made is not None:
            _check_engine(config, made)
            if made.follows:
                # What makes the runner hand on the length of every prompt.
                config.model_config.model_arch_config.rswa_window = made.scheme.window
        setattr(config.model_config, _MADE, made)
    found: EngineScheme | None = getattr(config.model_config, _MADE)
    return found


def _check_engine(config: VllmConfig, made: EngineScheme) -> None:
    """Refuse options under which numbers would be wrong.

    Raises:
        ProbeError: prefix caching under a scheme that follows the prompt's length, a quantised cache, a bias per head
            on several devices, or a device that there is no backend for.
    """
    spec = made.scheme.spec
    if made.follows and config.cache_config.enable_prefix_caching:
        raise ProbeError(
            f"scheme {spec}: what a token sees depends on the whole prompt's length, so that prompts which begin alike "
            "do not share keys; start with --no-enable-prefix-caching (enable_prefix_caching=False)"
        )
    if config.cache_config.cache_dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ProbeError(f"kv_cache_dtype: expected auto under a scheme, got {config.cache_config.cache_dtype}")
    if made.biased and config.parallel_config.tensor_parallel_size > 1:
        raise ProbeError("tensor_parallel_size: expected 1 for a model with ALiBi under a scheme")
    if config.device_config.device_type != "cpu":
        device = config.device_config.device_type
        raise ProbeError(f"scheme {spec}: the plugin has a backend for vLLM on CPU only, got device {device}")


def register() -> None:
    """What the entry point calls in each of vLLM's processes; a second call changes nothing."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, "weavescope.serving.vllm_cpu.WeaveBackend")
    _let_rotaries_rest()
    if os.environ.get(ENV):
        # Longer inputs than the model was trained for are what a scheme is for.
        os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")


def _let_rotaries_rest() -> None:
    """Put in the place of every rotary one that turns nothing where a scheme is chosen."""
    import vllm.model_executor.layers.rotary_embedding as rotaries
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

    kinds = {
        kind for kind in vars(rotaries).values() if isinstance(kind, type) and issubclass(kind, RotaryEmbeddingBase)
    }
    for kind in kinds:
        if kind.__name__ in op_registry_oot:
            continue

        def made(kind: Any = kind) -> Any:
            class Resting(kind):
                def __init__(self, *args: Any, **options: Any) -> None:
                    super().__init__(*args, **options)
                    if engine_scheme(get_current_vllm_config()) is not None:
                        self._forward_method = self.resting

                def resting(
                    self, positions: Tensor, query: Tensor, key: Tensor | None = None, *_: Any, **__: Any
                ) -> tuple[Tensor, Tensor | None]:
                    return query, key

            return Resting

        kind.register_oot(made())  # type: ignore[attr-defined]


def pages_of(key_cache: Tensor, value_cache: Tensor, table: Tensor, length: int) -> Pages:
    """The pages of one sequence of so many tokens, whose row of the block table may be longer."""
    return Pages(key_cache, value_cache, table[: -(-length // key_cache.shape[2])].long(), length)


def write_raw(key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> None:
    """Put keys and values [tokens, kv_heads, dim] where the slots say; those below 0 are padding."""
    slots = slots[: len(key)]
    size = key_cache.shape[2]
    if bool((slots < 0).any()):
        real = slots >= 0
        key, value, slots = key[: len(slots)][real], value[: len(slots)][real], slots[real]
    page, place = torch.div(slots, size, rounding_mode="floor").long(), (slots % size).long()
    key_cache[page, :, place] = key[: len(slots)].to(key_cache.dtype)
    value_cache[page, :, place] = value[: len(slots)].to(value_cache.dtype)
