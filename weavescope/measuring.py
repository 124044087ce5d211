"""What is no verb of one model: speed and memory beside the stock model, and scans of several models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from probe.bench.run import Bench, BenchSettings
from probe.results import Result, read
from probe.studies.predictors import Scanned, Study, StudyRow
from probe.studies.scan import ScanRow


def study(scans: Sequence[str | Path | Result[ScanRow]], *, truth: str = "text", seed: int = 0) -> Result[StudyRow]:
    """Which signal foretells failure: every score of several models' scans, each model judged by the others.

    Args:
        scans: results of `Model.scan`, or files that `probe scan --out` wrote; of at least two models.
        truth: "text", the rise of the likelihood, or "keys", pass keys that are lost, of scans that asked for them.
        seed: of permuted labels.

    Raises:
        ProbeError: fewer than two models that have the truth, or a file that holds no scan.
    """
    given = [read(Path(one)) if isinstance(one, str | Path) else one.to_json() for one in scans]
    told = [Scanned.read(one).about(truth) for one in given]
    return Study([scan for scan in told if scan.rows], seed).result()


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
