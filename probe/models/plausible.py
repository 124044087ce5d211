"""Numbers of a configuration that no model can have, refused before anything is built with them: a billion layers would
be tried, layer by layer, until the memory is used up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from probe.errors import ProbeError

_LIMITS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), (1, 10_000)),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"), (1, 100_000)),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_hidden_size", "head_dim"), (1, 10**7)
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0, 100_000)),
    "vocab_size": (1, 10**8),
}
"""Least and most of whole numbers, by field: far beyond every model there is."""

_BASES = ("rope_theta", "rotary_emb_base", "rope_local_base_freq")
"""Fields with a rotary base."""


def check_plausible(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration with a number that no model has, also in a part of it.

    Args:
        config: as `config.json` has it.
        where: whose it is: "model folder ./mine".

    Raises:
        ProbeError: one line that names the field.
    """
    for field, value in _fields(config):
        if field in _LIMITS and value is not None and not isinstance(value, list):
            least, most = _LIMITS[field]
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise _refused(where, field, f"a whole number from {least:,} to {most:,}", value)
        if field in _BASES and value is not None:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise _refused(where, field, "a number above 0", value)
            if value <= 0 or (isinstance(value, float) and not math.isfinite(value)):
                raise _refused(where, field, "a finite number above 0", value)


def _fields(config: Any) -> Iterator[tuple[str, Any]]:
    """Every field of a configuration and of its parts."""
    for field, value in config.items():
        if isinstance(value, Mapping):
            yield from _fields(value)
        else:
            yield str(field), value


def _refused(where: str, field: str, expected: str, got: Any) -> ProbeError:
    return ProbeError(f"{where}: config.json has {field} = {repr(got)[:40]}, expected {expected}; correct it")
