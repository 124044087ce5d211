"""`probe figure`: the pictures of the documentation."""

from __future__ import annotations

import argparse

from probe.commands import options
from probe.commands.command import Command, Group


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=options.path, metavar="DIR", help="where the pictures go; it is made")


def _mesa_options(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--window", type=int, default=512, help="trained window M (default: 512)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of the prompt (default: 2048)")


def _schemes(args: argparse.Namespace) -> None:
    from probe.figures.schemes import write

    print(*write(args.folder), sep="\n")


def _mesa(args: argparse.Namespace) -> None:
    from probe.figures.mesa import write

    print(write(args.folder, args.window, args.length))


_WORDS = {"folder": "DIR"}
COMMAND = Group(
    "figure", "draw the pictures of the documentation as SVG", "figure",
    (
        Command(
            "schemes", "every preset: W over d, who sees whom, and its frequencies", _folder, _schemes,
            python="probe.figures.schemes.write(...)", words=_WORDS,
        ),
        Command(
            "mesa", "the chunk-triangular matrix of Mesa for a real split, as mesa.svg", _mesa_options, _mesa,
            python="probe.figures.mesa.draw(...)", words=_WORDS,
        ),
    ),
)  # fmt: skip
