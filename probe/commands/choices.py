"""`probe choices`: rows of the open tables."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from probe.commands import options, show
from probe.commands.command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", nargs="?", metavar="TABLE", help="site, detector, task, ... (default: all)")
    options.add_json(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.text import format_table
    from weavescope.listing import choices

    rows = [asdict(row) for row in choices(args.table)]
    if args.json:
        show.as_json({"choices": rows})
    else:
        print(format_table(rows, ("table", "name", "help")))


COMMAND = Command(
    "choices", "list what can be chosen by name, plugins' rows included", _options, _run,
    python='weavescope.choices("site")',
)  # fmt: skip
