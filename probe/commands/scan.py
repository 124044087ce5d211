"""`probe scan`: every signal of a model at every scheme and length, beside whether it fails there."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.text import parse_lengths, parse_names

_EXAMPLES = """\
examples:
  probe scan --model rope --scheme origin,rerope,mesa --lengths 1024,2048
  probe scan --model smollm2 --scheme origin,rerope --lengths 12288 --samples 1 --keep scans/smollm2
  probe scan --out rope.json && probe scan --model nope --out nope.json && probe study rope.json nope.json

Stopped, a scan with --keep goes on where it was when it is called again.
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_scheme(parser, None, "every preset that fits the model, origin+logn, mesa+logn")
    options.add_lengths_of_windows(parser, "1.25, 1.5, 2 and 4 windows, of long ones up to 2")
    parser.add_argument("--input", default="documents", help="text, as 'probe run' takes it (default: documents)")
    options.add_samples(parser, 4, "texts")
    parser.add_argument("--tail", type=int, help="last tokens that everything is a mean over (default: M/4)")
    parser.add_argument("--signals", help="names, separated by commas; see 'probe signals' (default: all)")
    parser.add_argument(
        "--keys", type=int, default=0, help="pass keys that every pair is asked for besides (default: none)"
    )
    options.add_seed(parser, "of the texts, and of what the controls draw")
    options.add_keep(parser)
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.studies.pieces import PieceStore
    from probe.studies.scan import Scan

    if args.scheme is not None:
        check_texts(args.scheme)
    writable(args.out)
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    work = Scan(
        options.load(args), args.scheme, lengths, args.input, args.samples, args.seed, args.tail,
        parse_names(args.signals), PieceStore(args.keep), args.keys,
    )  # fmt: skip
    options.carry(work, args, show.scan)


COMMAND = Command(
    "scan", "every signal at every scheme and length, beside whether the model fails there", _options, _run,
    python="weavescope.load(...).scan(...)", more=_EXAMPLES, words={"length": "--lengths"},
)  # fmt: skip
