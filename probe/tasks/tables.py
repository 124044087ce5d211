"""Results of `probe eval --json` as Markdown, schemes down and lengths across: `python -m probe.tasks.tables FILE.json [...]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probe.errors import ProbeError


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "accuracy" in row:
        return f"{row['accuracy']:.0%}"
    return f"{row['nll']:.2f} ± {row['standard_error']:.2f}"


def markdown(result: Any) -> str:
    """A caption and a table.

    Raises:
        ProbeError: it is no result of `probe eval`.
    """
    try:
        rows, window = result["rows"], result["window"]
        found = {(row["scheme"], row["length"]): row for row in rows}
        schemes, lengths = (list(dict.fromkeys(row[key] for row in rows)) for key in ("scheme", "length"))
        where = f", the last {result['tail']} positions" if result.get("tail") else ""
        caption = f"`{result['model']}`, M = {window}, {result['task']}{where}, {result['samples']} samples, seed {result['seed']}"
        lines = [["scheme", *(f"{length} ({length / window:g}M)" for length in lengths)]]
        lines += [["---", *("---:" for _ in lengths)]]
        lines += [[f"`{name}`", *(_cell(found.get((name, length))) for length in lengths)] for name in schemes]
    except (KeyError, TypeError):
        raise ProbeError("expected the JSON of `probe eval --json`") from None
    return caption + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m probe.tasks.tables", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    for path in parser.parse_args(argv).files:
        try:
            print(markdown(json.loads(path.read_text(encoding="utf-8"))) + "\n")
        except (ProbeError, OSError, ValueError) as error:
            print(f"probe: error: {path}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
