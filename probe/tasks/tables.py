"""Results of `probe eval --json` as Markdown, schemes down and lengths across: `python -m probe.tasks.tables FILE.json [...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probe.errors import ProbeError, exit_code
from probe.results import pipe_table, print_tables


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
        titles = ["scheme", *(f"{length} ({length / window:g}M)" for length in lengths)]
        cells = [[f"`{name}`", *(_cell(found.get((name, length))) for length in lengths)] for name in schemes]
    except (KeyError, TypeError):
        raise ProbeError("expected the JSON of `probe eval --json`") from None
    return caption + "\n\n" + pipe_table(titles, cells, [False, *(True for _ in lengths)])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m probe.tasks.tables", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    args = parser.parse_args(argv)
    return exit_code(lambda: print_tables(args.files, markdown))


if __name__ == "__main__":
    raise SystemExit(main())
