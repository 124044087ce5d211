"""`probe tune`: which scheme and parameters this model should use at this length, with the evidence."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.errors import FieldError

_EXAMPLES = """\
examples:
  probe tune --length 2048                                     the embedded model at four windows
  probe tune --model smollm2 --length 12288 --checked 4 --documents 1 --budget 1800
  probe tune --length 4096 --finalists all --checked 20        check every candidate: the grid, for comparison

Candidates are screened with short prompts and texts inside the window, the best are checked at the length. The last
line is what to paste.
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--length", type=int, help="tokens to be handled, more than the window (default: 2M)")
    options.add_scheme(
        parser, None, "every weave at N = M/8, M/4, M/2 and 3M/4, with and without log-n, and frequencies"
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stop screening and checking after so long")
    parser.add_argument(
        "--screened", type=int, default=6, help="short prompts per experiment and candidate (default: 6)"
    )
    parser.add_argument(
        "--finalists", default="3", help="candidates that are checked at the length, or all (default: 3)"
    )
    parser.add_argument(
        "--checked", type=int, default=8, help="pass keys at the length, a quarter of them first (default: 8)"
    )
    parser.add_argument("--documents", type=int, default=2, help="texts that likelihoods are means over (default: 2)")
    options.add_seed(parser, "of keys and texts")
    options.add_keep(parser)
    options.add_output(parser)


def _finalists(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise FieldError("finalists", "a number of at least 1, or all", repr(text))
    return int(text)


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.studies.pieces import PieceStore
    from probe.studies.tune import Tuning

    finalists = _finalists(args.finalists)
    if args.scheme is not None:
        check_texts(args.scheme)
    writable(args.out)
    loaded = options.load(args)
    work = Tuning(
        loaded, 2 * loaded.window if args.length is None else args.length,
        args.scheme, args.budget, args.screened, args.checked,
        args.documents, args.seed, finalists, PieceStore(args.keep),
    )  # fmt: skip
    options.carry(work, args, show.tuning)


COMMAND = Command(
    "tune", "which scheme and parameters this model should use at this length, with the evidence", _options, _run,
    python="weavescope.load(...).tune(...)", more=_EXAMPLES,
)  # fmt: skip
