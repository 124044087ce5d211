"""`probe audit`: what a chunked prefill would not see of a trained model's attention."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.text import parse_numbers


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--chunk", help="widths of the middle chunks in tokens: 64,128 (default: M/8, M/4, M/2)")
    parser.add_argument("--first", type=int, help="tokens of chunk 0 (default: mesa's F)")
    parser.add_argument("--length", type=int, help="tokens, at most the window (default: the window)")
    parser.add_argument("--input", default="heldout", help="as for 'probe run' (default: heldout)")
    options.add_samples(parser, 16, "sequences, for --input heldout")
    options.add_seed(parser, "of what is drawn of --input heldout")
    options.add_json(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.tasks.audit import audit

    chunks = None if args.chunk is None else parse_numbers(args.chunk, "chunks", ())
    samples = args.samples if args.input == "heldout" else 1
    result = audit(
        options.load(args), chunks=chunks, first=args.first, length=args.length, input=args.input, samples=samples,
        seed=args.seed,
    )  # fmt: skip
    show.audit(result, args.json)


COMMAND = Command(
    "audit", "what share of a trained model's attention a chunked prefill (mesa) would not see", _options, _run,
    python="weavescope.load(...).audit(...)",
)  # fmt: skip
