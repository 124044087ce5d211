"""`probe schemes`: every scheme and option, with its defaults."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.errors import FieldError


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--window", type=int, default=4096, help="trained window the defaults are shown for (default: 4096)"
    )
    options.add_json(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.schemes.options import OPTIONS
    from probe.schemes.presets import PRESETS

    if args.window < 2:
        raise FieldError("window", "at least 2", args.window)
    show.schemes(args.window, list(PRESETS.values()), list(OPTIONS.values()), args.json)


COMMAND = Command(
    "schemes", "list position schemes with their parameters and defaults", _options, _run,
    python="weavescope.schemes()",
)  # fmt: skip
