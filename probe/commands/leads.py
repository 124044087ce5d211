"""`probe leads`: which detector says that a model fails before its likelihood does, and how long before."""

from __future__ import annotations

import argparse
from pathlib import Path

from probe.commands import options, show
from probe.commands.command import Command
from probe.errors import ProbeError
from probe.text import parse_names

_EXAMPLES = """\
examples:
  probe leads --model rope --scheme origin,rerope,mesa --input heldout --samples 8
  probe leads --model rope --signals norm,entropy --detectors range,change
  probe leads --read rope.json nope.json         the results of several models, as one table

Stopped, one with --keep goes on where it was when it is called again; other detectors then cost no pass.
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_scheme(parser, "origin")
    options.add_texts(parser, 8)
    parser.add_argument("--signals", help="names, separated by commas; see 'probe signals' (default: all but nll)")
    parser.add_argument("--detectors", help="names, separated by commas (default: all)")
    parser.add_argument(
        "--resamples", type=int, default=100, help="texts drawn again, for the intervals (default: 100)"
    )
    options.add_seed(parser, "of the texts and the resamples")
    options.add_keep(parser)
    parser.add_argument(
        "--read", nargs="+", type=options.path, metavar="FILE",
        help="run nothing: one table of what --out of earlier ones wrote",
    )  # fmt: skip
    options.add_output(parser)


def _read(files: list[Path], as_json: bool) -> None:
    from probe.results import read

    results = []
    for path in files:
        result = read(path)
        if result["kind"] != "leads":
            raise ProbeError(f"{path}: expected the JSON of probe leads, got that of probe {result['kind']}")
        results.append(result)
    show.lead_summary(results, as_json)


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.studies.leads import Leads
    from probe.studies.pieces import PieceStore

    if args.read is not None:
        _read(args.read, args.json)
        return
    check_texts(args.scheme)
    writable(args.out)
    work = Leads(
        options.load(args), args.scheme, args.length, args.input, args.samples, args.seed,
        parse_names(args.signals), parse_names(args.detectors), args.resamples, PieceStore(args.keep),
    )  # fmt: skip
    options.carry(work, args, show.leads)


COMMAND = Command(
    "leads", "which detector speaks before the likelihood fails, and how long before", _options, _run,
    python="weavescope.load(...).leads(...)", more=_EXAMPLES,
)  # fmt: skip
