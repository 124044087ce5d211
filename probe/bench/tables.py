"""Benchmark results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probe.bench.growth import growths
from probe.errors import ProbeError
from probe.results import pipe_table

_TITLES = {
    "what": "measured", "length": "tokens", "scheme": "scheme", "seconds": "time", "prefill_seconds": "first token",
    "prefill_ratio": "of stock", "matrix_share": "of matrix rate", "decode_seconds": "step",
    "decode_ratio": "of stock's", "bandwidth_share": "of bandwidth", "tokens_per_second": "tokens/s",
    "spread": "largest/least", "peak_bytes": "peak memory", "ratio": "of stock",
    "largest_difference": "largest difference", "largest": "of values up to", "skipped": "left out because",
}  # fmt: skip


def _seconds(value: float) -> str:
    """Three digits: s, ms or µs."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1 or unit == "µs":
            return f"{value * factor:.3g} {unit}" if value * factor < 1000 else f"{value * factor:.0f} {unit}"
    raise AssertionError


def _bytes(value: float) -> str:
    """Decimal units: GB or MB."""
    return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"


_FORMATS = {
    "seconds": _seconds, "prefill_seconds": _seconds, "decode_seconds": _seconds, "peak_bytes": _bytes,
    **dict.fromkeys(("ratio", "prefill_ratio", "decode_ratio"), lambda value: f"{value:.2f}"),
    "largest_difference": lambda value: f"{value:.1e}", "largest": lambda value: f"{value:.2g}",
    "tokens_per_second": lambda value: f"{value:.0f}" if value >= 100 else f"{value:.3g}",
    "matrix_share": lambda value: f"{value:.0%}", "bandwidth_share": lambda value: f"{value:.0%}",
}  # fmt: skip


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "peak_bytes" and value == 0:
        return "below a page"
    return str(_FORMATS.get(name, str)(value)).replace("|", "\\|")


def _with_spread(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the largest over the least of its repeats, as one cell."""
    least, most = ("fastest", "slowest") if row.get("fastest") else ("least_bytes", "most_bytes")
    if row.get(least) and (row.get("repeats") or 1) > 1:
        return row | {"spread": f"{row[most] / row[least]:.2f} in {row['repeats']}"}
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table: columns that are empty everywhere are left out."""
    shown = [_with_spread(row) for row in rows]
    names = [name for name in _TITLES if any(row.get(name) is not None for row in shown)]
    right = [all(not isinstance(row.get(name), str) for row in shown) for name in names]
    cells = [[_cell(name, row.get(name)) for name in names] for row in shown]
    return pipe_table([_TITLES[name] for name in names], cells, right)


def _caption(settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """What the numbers were taken with, in a line."""
    machine, versions = provenance.get("machine") or {}, provenance.get("versions") or {}
    parts = [
        settings.get("model"),
        f"window {settings['window']}" if settings.get("window") else None,
        settings.get("dtype"),
        machine.get("device") if machine.get("device") not in (None, "cpu") else machine.get("cpu"),
        f"{machine['threads']} of {machine['cores']} cores" if "threads" in machine else None,
        f"torch {versions['torch']}" if versions.get("torch") else None,
        f"transformers {versions['transformers']}" if versions.get("transformers") else None,
        f"load {machine['load_before']}" if machine.get("load_before") is not None else None,
        f"seed {settings['seed']}" if "seed" in settings else None,
    ]
    return ", ".join(str(part) for part in parts if part)


def _rates(row: dict[str, Any]) -> str:
    return (
        f"This machine: {row['matrix'] / 1e12:.3g} TFLOP/s in a {row['dtype']} matrix product, "
        f"{row['bandwidth'] / 1e12:.3g} TB/s in a copy, read and written counted."
    )


def _sections(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The GPU script's rows: rates in a sentence, checks, then a table for each model."""
    parts = [_rates(row) for row in rows if row.get("kind") == "rates"]
    checks = [row for row in rows if row.get("kind") == "check"]
    if checks:
        parts.append(table(checks))
    for model in dict.fromkeys(row["model"] for row in rows if row.get("kind") == "speed"):
        mine = [row for row in rows if row.get("model") == model]
        parts += [f"**{model}**", table(sorted(mine, key=lambda row: int(row["length"])))]
    return parts


def growth_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Exponents of time and memory over the length, where there are enough lengths; empty otherwise."""
    found = growths(rows)
    if not found:
        return ""
    cells = [
        [
            one.what,
            one.scheme,
            f"{one.shortest} to {one.longest}",
            f"{one.exponent:.2f} ({one.low:.2f} to {one.high:.2f})",
        ]
        for one in found
    ]
    titles = ["measured", "scheme", "tokens", "grows like length to the power (95%)"]
    return pipe_table(titles, cells, [False, False, False, True])


def markdown(result: Mapping[str, Any]) -> str:
    """A caption and a table, or several where the rows are of several kinds.

    Args:
        result: as `Result.to_json` has it.

    Raises:
        ProbeError: it has no rows.
    """
    rows = result["rows"]
    if not rows:
        raise ProbeError('expected a benchmark result with "rows", got none')
    parts = _sections(rows) if any("kind" in row for row in rows) else [table(rows), growth_table(rows)]
    return "\n\n".join(filter(None, (_caption(result["settings"], result["provenance"]), *parts)))
