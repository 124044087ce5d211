"""Comparisons with others' code as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probe.errors import ProbeError
from probe.results import pipe_table

_TITLES = {
    "name": "tokens come in", "kv_heads": "key heads", "ours": "ours", "length": "T", "inside": "inside M",
    "past": "past M", "first": "from position", "off_by_one": "ours off by one", "stock": "no scheme",
    "verdict": "verdict",
}  # fmt: skip


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def markdown(result: Mapping[str, Any]) -> str:
    """The rows as a table. Differences are relative to the largest logit.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it has no rows.
    """
    rows = result["rows"]
    if not rows:
        raise ProbeError('expected a comparison with "rows", got none')
    right = [not isinstance(rows[0].get(name), str) for name in _TITLES]
    return pipe_table(list(_TITLES.values()), [[_cell(row.get(name)) for name in _TITLES] for row in rows], right)
