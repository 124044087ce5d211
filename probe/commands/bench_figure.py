"""`probe bench figure`: the GPU benchmark as pictures."""

from __future__ import annotations

import argparse

from probe.commands import options
from probe.commands.command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=options.path, metavar="FILE", help="the gpu.json of 'probe bench gpu'")
    parser.add_argument("folder", type=options.path, metavar="DIR", help="where the pictures go")


def _run(args: argparse.Namespace) -> None:
    from probe.bench.figure import write
    from probe.results import read

    print(*write(read(args.file), args.folder), sep="\n")


COMMAND = Command(
    "figure", "draw the result of 'probe bench gpu': one SVG per model", _options, _run,
    python="probe.bench.figure.write(...)", words={"folder": "DIR"},
)  # fmt: skip
