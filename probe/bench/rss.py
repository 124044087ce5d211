"""Resident memory of this process, in bytes. The standard library alone: a foreign interpreter loads this file too."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def _field(name: str) -> int | None:
    """A line of /proc/self/status, in bytes; None where there is no such line."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None


def _highest() -> int:
    """The highest resident size since the process began, or since the mark was last reset."""
    mark = _field("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if mark is None else mark


def _settle() -> None:
    """Give freed memory back to the system, so that what is resident is what is used."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; elsewhere there is none
    if trim is not None:
        trim(0)


def _reset() -> bool:
    """Bring the high-water mark down to what is resident now (Linux, proc(5)); False where that is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    now, mark = _field("VmRSS"), _field("VmHWM")
    return now is not None and mark is not None and mark < now + (4 << 20)


class PeakMemory:
    """Bytes that the process held at most, above what it held when this was made.

    `method` says how: "VmHWM" where the kernel lets the mark be reset, else "ru_maxrss", which is the peak since the
    process began: it understates when something before, such as loading, took more. Hence a fresh process for every
    measurement.
    """

    def __init__(self) -> None:
        _settle()
        self.method = "VmHWM" if _reset() else "ru_maxrss"
        resident = _field("VmRSS")
        self._before = _highest() if resident is None else resident

    def read(self) -> int:
        """The peak so far, in bytes above the start."""
        return max(0, _highest() - self._before)


def load_average() -> float | None:
    """Processes that wanted to run, averaged over the last minute; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
