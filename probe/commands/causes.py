"""`probe causes`: unseen distances or more keys than ever, and where either will break the model."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.text import parse_lengths


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_scheme(parser, "origin,rerope")
    parser.add_argument("--length", type=int, help="tokens of the longest input (default: 2M)")
    options.add_lengths_of_windows(parser, "M times 1.125, 1.25, 1.5, 2, 3, 4 and 8, up to --length, and --length")
    parser.add_argument(
        "--measure", type=int, metavar="TOKENS",
        help="longest input that is really run, to compare with; 0: none, predict alone (default: all)",
    )  # fmt: skip
    options.add_samples(parser, 2, "shipped documents")
    parser.add_argument("--tail", type=int, help="last tokens that a rise is a mean over (default: M/4)")
    options.add_seed(parser, "of where the documents' windows end")
    options.add_keep(parser)
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.studies.causes import Causes
    from probe.studies.pieces import PieceStore

    check_texts(args.scheme)
    writable(args.out)
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    work = Causes(
        options.load(args), args.scheme, args.length, args.samples, args.seed, args.measure, args.tail, lengths,
        PieceStore(args.keep),
    )  # fmt: skip
    options.carry(work, args, show.causes)


COMMAND = Command(
    "causes", "unseen distances or more keys: why a model fails past its window, and where it will", _options, _run,
    python="weavescope.load(...).causes(...)",
)  # fmt: skip
