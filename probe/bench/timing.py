"""How anything is timed: one warm-up each, then the contestants in turn, so that a drifting machine hits all alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from probe.bench.rss import load_average

Work = Callable[[], list[float] | None]
"""One repeat: does the work and returns None to be timed from outside, or the seconds of its parts (decoding steps)."""
SPREAD = 1.3
"""Slowest over fastest repeat from which a row is called unsteady."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing: median, fastest and slowest of so many repeats."""

    seconds: float
    fastest: float
    slowest: float
    repeats: int

    @property
    def unsteady(self) -> bool:
        """Whether the repeats differ so much that the machine was probably busy."""
        return self.slowest > SPREAD * self.fastest


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Work, device: torch.device) -> float:
    """Seconds of one repeat; where the work times its own parts, their median."""
    synchronize(device)
    began = time.perf_counter()
    parts = work()
    synchronize(device)
    return statistics.median(parts) if parts else time.perf_counter() - began


def interleaved(works: Mapping[str, Work], repeats: int, device: torch.device) -> dict[str, Timing]:
    """Time every work `repeats` times, in turn (A B C A B C ...), after one warm-up of each."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(timed(work, device))
    return {name: Timing(statistics.median(all_), min(all_), max(all_), repeats) for name, all_ in seconds.items()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were taken on: names, cores, threads, and how busy it was."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "load_before": load_average(),
    }
