"""Checksums of a run's files, in the form that `sha256sum -c` reads: what a disk or a copy has done to them is seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

SUMS = "SHA256SUMS"
"""File in a run folder, a line for each other file."""


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the checksums of a folder's files.

    Args:
        folder: with files.
        names: of those to look at anew, the others keep their lines; None for all that are there.
    """
    if names is None:
        found = {path.name: digest(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != SUMS}
    else:
        found = read_sums(folder) | {name: digest(folder / name) for name in names}
    text = "".join(f"{value}  {name}\n" for name, value in sorted(found.items()))
    part = folder / f".{SUMS}.part"
    part.write_text(text, encoding="utf-8")
    part.replace(folder / SUMS)


def read_sums(folder: Path) -> dict[str, str]:
    """Checksums by file; empty where none are kept, or nothing can be read of them."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.split("  ", 1) for line in lines if len(line) > 66 and line[64:66] == "  ")
    return {name: value for value, name in pairs if Path(name).name == name}


def differing(folder: Path) -> dict[str, str]:
    """What is wrong with each file that has a checksum: "missing", "changed", or "cannot be read (why)"."""
    found = {}
    for name, value in read_sums(folder).items():
        try:
            if digest(folder / name) != value:
                found[name] = "changed"
        except FileNotFoundError:
            found[name] = "missing"
        except OSError as error:
            found[name] = f"cannot be read ({error.strerror})"
    return found
