"""Peak memory of one benchmark row, above the loaded model.

On CUDA the allocator says it. On CPU every row has a process of its own, since a process never forgets its highest mark and
memory that an earlier row freed would hide what a later one takes: `python -m probe.bench.memory` reads one row's settings as JSON
from stdin and prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import torch

from probe.bench.rss import PeakMemory
from probe.bench.work import WORKS, decode, prefill
from probe.errors import ProbeError
from probe.models.load import LoadedModel
from probe.models.random import bench_model, random_ids
from probe.schemes import parse_schemes
from probe.seam.apply import apply_scheme

STOCK = "stock"
"""The model as transformers runs it: its own SDPA, no scheme, no seam."""
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
"""Environment of a measured process: glibc then gives every freed block above 128 KiB back at once. Left to itself it moves that bound and keeps
some of what is freed, and the mark of one and the same run differs by tens of percent."""
REPEATS = 3
"""Processes of a memory row, at the most."""
WARM_UP = 64
"""Tokens of the pass that comes first, so that lazily made things are not counted."""


def generation(loaded: LoadedModel, length: int, seed: int) -> None:
    """What the memory benchmark runs: a prefill of `length` random tokens and one greedy step on its cache."""
    decode(loaded.model, prefill(loaded.model, random_ids(loaded, length, seed)), 1)


def _run(loaded: LoadedModel, settings: dict[str, Any], length: int) -> None:
    if settings["what"] == "memory":
        generation(loaded, length, settings["seed"])
    else:
        WORKS[settings["what"]](loaded, loaded.model, settings["scheme"] == STOCK, length, settings["seed"])()


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, and run one row in this process: {"peak_bytes", "method"}.

    Raises:
        ProbeError: bad settings.
    """
    torch.set_num_threads(settings["threads"])
    loaded = bench_model(
        settings["model"], device="cpu", dtype=settings["dtype"], window=settings["window"], seed=settings["seed"]
    )
    with ExitStack() as stack:
        if settings["scheme"] != STOCK:
            scheme = parse_schemes(settings["scheme"], loaded.window)[0]
            stack.enter_context(apply_scheme(loaded.model, scheme, backend=settings["backend"]))
        _run(loaded, settings, min(WARM_UP, settings["length"]))
        memory = PeakMemory()
        _run(loaded, settings, settings["length"])
        return {"peak_bytes": memory.read(), "method": memory.method}


def fresh_process(settings: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a new process.

    Raises:
        ProbeError: it failed; the message is its last line.
    """
    command = [sys.executable, "-m", "probe.bench.memory"]
    done = subprocess.run(  # noqa: S603
        command, input=json.dumps(settings), capture_output=True, text=True, check=False, env=os.environ | RETURNED
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"killed, status {done.returncode}; too little memory?"]
        raise ProbeError(f"memory of {settings['scheme']} at {settings['length']} tokens: {lines[-1]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def cuda_peak(work: Any, device: torch.device) -> int:
    """Bytes that PyTorch's allocator held at most during `work`, above what it held before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


if __name__ == "__main__":
    try:
        print(json.dumps(measure(json.load(sys.stdin))))
    except ProbeError as error:
        sys.exit(str(error))
