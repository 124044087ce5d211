"""Peak memory of one benchmark row, above the loaded model.

On CUDA the allocator says it. On CPU every row has a process of its own, since a process never forgets its highest mark
and memory that an earlier row freed would hide what a later one takes: `python -m probe.bench.memory` reads one row's
`MemoryRequest` as JSON from stdin and prints a `Peak` as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch

from probe.bench.rss import PeakMemory
from probe.bench.work import WORKS, decode, prefill
from probe.errors import ProbeError
from probe.models.load import LoadedModel
from probe.models.random import bench_model, random_ids
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme

STOCK = "stock"
"""The model as transformers runs it: its own SDPA, no scheme, no seam."""
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
"""Environment of a measured process: glibc then gives every freed block above 128 KiB back at once. Left to itself it
moves that bound and keeps some of what is freed, and the mark of one and the same run differs by tens of percent."""
REPEATS = 3
"""Processes of a memory row, at the most."""
WARM_UP = 64
"""Tokens of the pass that comes first, so that lazily made things are not counted."""


def generation(loaded: LoadedModel, length: int, seed: int) -> None:
    """What the memory benchmark runs: a prefill of `length` random tokens and one greedy step on its cache."""
    decode(loaded.model, prefill(loaded.model, random_ids(loaded, length, seed)), 1)


@dataclass(frozen=True)
class MemoryRequest:
    """One row to be measured, as `BenchSettings` has it, with one scheme (or `STOCK`) and one length in tokens."""

    what: str
    scheme: str
    length: int
    model: str
    window: int | None = None
    threads: int = 1
    dtype: str = "float32"
    backend: str = "pieces"
    seed: int = 0
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class Peak:
    """Bytes held at most above the loaded model, and how that was read: see `PeakMemory`."""

    peak_bytes: int
    method: str


def _run(loaded: LoadedModel, request: MemoryRequest, length: int) -> None:
    if request.what == "memory":
        generation(loaded, length, request.seed)
    else:
        WORKS[request.what](loaded, loaded.model, request.scheme == STOCK, length, request.seed)()


def measure(request: MemoryRequest) -> Peak:
    """Load, warm up, and run one row in this process.

    Raises:
        ProbeError: bad settings.
    """
    torch.set_num_threads(request.threads)
    loaded = bench_model(
        request.model, device="cpu", dtype=request.dtype, window=request.window, seed=request.seed,
        trust_remote_code=request.trust_remote_code, allow_pickle=request.allow_pickle,
    )  # fmt: skip
    with ExitStack() as stack:
        if request.scheme != STOCK:
            scheme = parse_scheme(request.scheme, loaded.window)
            stack.enter_context(apply_scheme(loaded.model, scheme, backend=request.backend))
        _run(loaded, request, min(WARM_UP, request.length))
        memory = PeakMemory()
        _run(loaded, request, request.length)
        return Peak(memory.read(), memory.method)


def fresh_process(request: MemoryRequest) -> Peak:
    """`measure` in a new process.

    Raises:
        ProbeError: it failed; the message is its last line.
    """
    command = [sys.executable, "-m", "probe.bench.memory"]
    done = subprocess.run(  # noqa: S603
        command,
        input=json.dumps(asdict(request)),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | RETURNED,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"killed, status {done.returncode}; too little memory?"]
        raise ProbeError(f"memory of {request.scheme} at {request.length} tokens: {lines[-1]}")
    return Peak(**json.loads(done.stdout))


def cuda_peak(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that PyTorch's allocator held at most during `work`, above what it held before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(measure(MemoryRequest(**json.load(sys.stdin))))))
    except ProbeError as error:
        sys.exit(str(error))
