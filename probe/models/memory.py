"""How much memory there is for a model."""

from __future__ import annotations

from pathlib import Path

from probe.errors import ProbeError

_MEMINFO = Path("/proc/meminfo")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def available_memory() -> int | None:
    """Bytes that can be allocated now on this machine or in this container, or None where that is not known."""
    if not _MEMINFO.exists():
        return None
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return None
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limits = [int(text) for path in _LIMITS if path.exists() and (text := path.read_text().strip()).isdigit()]
    return min([free, *limits])


def check_memory(needed: int, what: str) -> None:
    """Refuse what does not fit, before it is tried.

    Args:
        needed: bytes.
        what: whose weights they are.

    Raises:
        ProbeError: less is available.
    """
    free = available_memory()
    if free is not None and needed > free:
        raise ProbeError(
            f"{what}: its weights take {needed / 1e9:.1f} GB of memory when dequantised, and {free / 1e9:.1f} GB are "
            "free; take dtype bfloat16, a smaller model or a larger machine"
        )
