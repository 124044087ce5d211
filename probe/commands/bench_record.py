"""`probe bench record`: what watching a pass costs."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.text import parse_names, parse_numbers

_EXAMPLES = """\
examples:
  probe bench record                                  an 8-layer model of width 512 at 8192 tokens
  probe bench record --model smollm2 --lengths 4096 --repeats 3
"""


def _options(parser: argparse.ArgumentParser) -> None:
    kinds = "embedded name, local folder, hub id or random:KEY=NUMBER,..."
    options.add_model(parser, "random:layers=8,width=512,heads=8,window=8192", kinds, dtype="float32")
    options.add_scheme(parser, "origin", "one scheme (default: origin)")
    options.add_lengths(parser, "8192")
    parser.add_argument("--watched", help="what is watched, separated by semicolons (default: everything there is)")
    options.add_repeats(parser, 5)
    options.add_threads(parser, 2)
    options.add_seed(parser, "of random weights and token ids")
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.bench.record import WATCHED, RecordBench, RecordSettings
    from probe.results import carry_out, writable

    writable(args.out)
    watched = parse_names(args.watched, ";")
    bench = RecordBench.load(
        RecordSettings(
            args.scheme, parse_numbers(args.lengths, "lengths", ()), tuple(WATCHED if watched is None else watched),
            model=args.model, window=args.window, repeats=args.repeats, threads=args.threads, dtype=args.dtype,
            device=args.device, seed=args.seed, trust_remote_code=args.trust_remote_code,
            allow_pickle=args.allow_pickle,
        )
    )  # fmt: skip
    options.warn_of_window(bench.loaded)
    carry_out(bench, args.out, options.step(args.quiet), lambda result: show.bench(result, args.json))


COMMAND = Command(
    "record", "what recording and scanning cost beside the pass that nobody looks at", _options, _run,
    python="probe.bench.record.RecordBench", more=_EXAMPLES,
)  # fmt: skip
