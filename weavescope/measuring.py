"""Speed and memory of schemes beside the stock model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from probe.bench.run import Bench, BenchSettings
from probe.results import Result


def bench(
    what: str = "prefill",
    schemes: str | Sequence[Any] = "origin,rerope,stair",
    *,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Result[Any]:
    """Time or memory of schemes, each with its ratio to the stock model on the same weights in the same run.

    Args:
        what: "attention", "prefill", "decode" or "memory".
        schemes: text, objects or both.
        progress: told what comes next.
        options: further fields of `BenchSettings`: lengths, model, window, repeats, threads, dtype, device, backend,
            seed, memory.

    Raises:
        ProbeError: bad settings, a model that does not load, or a length that does not fit the memory.
    """
    work = Bench.load(BenchSettings(what=what, schemes=schemes, **options))
    for line in work.run():
        if progress is not None:
            progress(line)
    return work.result(True)
