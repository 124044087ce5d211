"""What a number was made with: versions, the commit of this code, the platform."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("weavescope", "torch", "transformers", "numpy", "scipy", "safetensors", "pyarrow")


def _version(package: str) -> str | None:
    """The version of a package; a loaded torch's own, which says for which CUDA it was built."""
    loaded: str | None = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return loaded
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=5)  # noqa: S603, S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """Versions of everything that a number could depend on, and the commit of this code if it is a checkout."""
    versions = {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "versions": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(changes),
        "platform": platform.machine(),
    }
