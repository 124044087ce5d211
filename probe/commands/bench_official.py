"""`probe bench official`: beside the official Mesa code."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.text import parse_numbers

_SHAPE = "random:layers=8,width=512,heads=8,window=2048,vocab=1024"


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_checkout(parser, "the official repository", "transformers 4.31")
    parser.add_argument("--scheme", default="mesa", help="ours to compare with (default: mesa)")
    options.add_lengths(parser, "4096,8192,16384")
    parser.add_argument("--model", default=_SHAPE, metavar="M", help=f"random weights of a shape (default: {_SHAPE})")
    options.add_repeats(parser, 3)
    parser.add_argument("--steps", type=int, default=16, help="decoding steps in a repeat (default: 16)")
    options.add_threads(parser, 2)
    options.add_seed(parser, "of weights and token ids")
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.bench.official import OfficialBench, OfficialSettings
    from probe.results import carry_out, writable

    writable(args.out)
    settings = OfficialSettings(
        args.checkout, args.python, args.scheme, parse_numbers(args.lengths, "lengths", ()), args.model, args.repeats,
        args.steps, args.threads, args.seed,
    )  # fmt: skip
    work = OfficialBench.load(settings)
    carry_out(work, args.out, options.step(args.quiet), lambda result: show.bench(result, args.json))


COMMAND = Command(
    "official", "mesa beside the official Mesa-Extrapolation, from your checkout, on the same weights", _options, _run,
    python="probe.bench.official.OfficialBench.load(...)",
)  # fmt: skip
