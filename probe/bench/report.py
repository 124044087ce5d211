"""What a benchmark prints and writes; a run that was cut short prints the rows it finished."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from probe.bench.run import Bench, warnings
from probe.bench.tables import markdown
from probe.errors import ProbeError


def writable(path: Path | None) -> None:
    """Check a file to be written before an hour is spent on what goes in.

    Raises:
        ProbeError: it is a folder, or lies in none.
    """
    if path is None:
        return
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise ProbeError(f"--out {path}: expected the name of a file")
    if not path.absolute().parent.is_dir():
        raise ProbeError(f"--out {path}: there is no folder {path.absolute().parent}")


def emit(result: dict[str, Any], as_json: bool, out: Path | None) -> None:
    """Print a result, as JSON or as a table, and write it; a line on stderr warns of every unsteady row.

    Raises:
        ProbeError: the file cannot be written.
    """
    for line in warnings(result["rows"]):
        print(f"probe: warning: {line}", file=sys.stderr)
    print(json.dumps(result, allow_nan=False) if as_json else markdown(result))
    save(result, out)


def save(result: dict[str, Any], out: Path | None) -> None:
    """Write a result as JSON, where a file was named.

    Raises:
        ProbeError: the file cannot be written.
    """
    if out is None:
        return
    try:
        out.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ProbeError(f"--out {out}: cannot write there ({error.strerror})") from None


def report(bench: Bench, complete: bool, as_json: bool, out: Path | None) -> None:
    """Print and write what a benchmark has."""
    if not complete and not bench.rows:
        return
    if not complete:
        print("probe: not all lengths were measured; these were", file=sys.stderr)
    emit(bench.result(complete), as_json, out)
