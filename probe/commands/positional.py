"""`probe positional`: how much of the hidden vectors is position, inside the window and past it."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command

_EXAMPLES = """\
examples:
  probe positional --model rope --scheme origin,rerope --input heldout --samples 16
  probe positional --model nope --out nope.json && probe figure positional nope.json pictures
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_scheme(parser, "origin")
    options.add_texts(parser, 8)
    options.add_seed(parser, "of the texts")
    options.add_keep(parser)
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.studies.pieces import PieceStore
    from probe.studies.positional import Positional

    check_texts(args.scheme)
    writable(args.out)
    work = Positional(
        options.load(args), args.scheme, args.length, args.input, args.samples, args.seed, PieceStore(args.keep)
    )
    options.carry(work, args, show.positional)


COMMAND = Command(
    "positional", "how much of the hidden vectors' variance is position, inside the window and past it", _options, _run,
    python="weavescope.load(...).positional(...)", more=_EXAMPLES,
)  # fmt: skip
