"""`probe frequencies`: which rotary frequencies cause the failure past the window."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command

_EXAMPLES = """\
examples:
  probe frequencies                                       the embedded model at two windows, every frequency by itself
  probe frequencies --model smollm2 --groups 8 --length 16384 --samples 1
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_scheme(parser, "origin", "those that leave distances as they are: origin, pi, ntk, dynamic-ntk, yarn")
    parser.add_argument("--length", type=int, help="tokens of the long input that is stood for (default: 2M)")
    parser.add_argument("--groups", type=int, help="of neighbouring frequencies (default: each by itself)")
    options.add_samples(parser, 2, "shipped documents")
    parser.add_argument("--tail", type=int, help="last tokens that a rise is a mean over (default: M/4)")
    options.add_seed(parser, "of where the documents' windows end")
    options.add_keep(parser)
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.studies.frequencies import FrequencyStudy
    from probe.studies.pieces import PieceStore

    check_texts(args.scheme)
    writable(args.out)
    work = FrequencyStudy(
        options.load(args), args.scheme, args.length, args.groups, args.samples, args.tail, args.seed,
        PieceStore(args.keep),
    )  # fmt: skip
    options.carry(work, args, show.frequencies)


COMMAND = Command(
    "frequencies", "which rotary frequencies cause the failure past the window, from passes inside it", _options, _run,
    python="weavescope.load(...).frequencies(...)", more=_EXAMPLES,
)  # fmt: skip
