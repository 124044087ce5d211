"""What a number was made with: versions, the commit of this code, the platform."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
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


def _git(*arguments: str, where: Path = Path(__file__).parent) -> str | None:
    # `git status` refreshes the index under a lock that a kill would leave behind, and then nobody could commit.
    command = ["git", "--no-optional-locks", "-C", str(where), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@dataclass(frozen=True)
class Provenance:
    """What a result was made with, the same for every kind of result.

    Attributes:
        created: when, ISO 8601 in UTC; None, as for what follows, where a result made before it was kept does not say.
        versions: of Python and of every package that a number could depend on; None for one that is not installed.
        git_commit: of this code, if it is a checkout.
        git_dirty: whether that checkout had changes.
        platform: the machine's architecture.
        threads: CPU threads of torch, where it was loaded.
        machine: what a benchmark adds: processor, load, devices, and whose code ran beside ours.
    """

    created: str | None
    versions: Mapping[str, str | None]
    git_commit: str | None
    git_dirty: bool | None
    platform: str | None
    threads: int | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def now(cls, **machine: Any) -> Provenance:
        """That of a result made now, here."""
        torch = sys.modules.get("torch")
        return cls(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            git_commit=_git("rev-parse", "HEAD"),
            git_dirty=bool(_git("status", "--porcelain", "--untracked-files=no")),
            platform=platform.machine(),
            threads=torch.get_num_threads() if torch else None,
            machine=machine,
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Provenance:
        """What `to_json` gave; fields that a later release added are left out."""
        known = {one.name for one in fields(cls)}
        return cls(**{key: item for key, item in value.items() if key in known})

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)
