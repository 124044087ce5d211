"""The text that every Python user already has: the standard library's sources, docstrings and manual topics.

Files are found through `sysconfig`, so nothing is downloaded. A file is held out by a hash of its path, never by
chance, so that a model trained elsewhere is still tested on text that it has not seen.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

TextSplit = Literal["train", "heldout"]

HELDOUT_SHARE = 0.06
# Generated tables and tests teach a small model nothing but their own repetition.
SKIP_PARTS = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "encodings",
    "__pycache__", "ensurepip", "turtledemo", "config",
}  # fmt: skip
MAX_FILE_BYTES = 800_000


def is_heldout(relative: str) -> bool:
    """Whether the file at this path (relative to the standard library, '/' separated) is kept from training."""
    digest = hashlib.sha256(f"weavescope:{relative}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELDOUT_SHARE * 2**32


def _docstrings(source: str) -> str:
    """All docstrings of a module, each followed by a blank line; empty if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners))
    return "\n\n".join(text for text in found if text and len(text) > 60)


def documents(split: TextSplit) -> Iterator[tuple[str, str]]:
    """Yield (path, text) for each source file of a split, and its docstrings once more as plain prose.

    Raises:
        FileNotFoundError: this Python has no standard library on disk (a frozen or zipped one).
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(root.rglob("*.py"))
    if not files:
        raise FileNotFoundError(f"expected the standard library's sources under {root}, found none")
    for file in files:
        relative = file.relative_to(root).as_posix()
        if SKIP_PARTS.intersection(Path(relative).parts) or file.stat().st_size > MAX_FILE_BYTES:
            continue
        if is_heldout(relative) != (split == "heldout"):
            continue
        text = file.read_text(encoding="utf-8", errors="ignore")
        yield relative, text
        if prose := _docstrings(text):
            yield relative + "#doc", prose
