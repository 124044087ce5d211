"""`probe bench`: schemes beside the stock model; what is shared by the benchmarks that time any model."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from probe.commands import bench_figure, bench_gpu, bench_official, bench_record, options, show
from probe.commands.command import Command, Group
from probe.text import parse_numbers

TIMED = {
    "attention": "one layer's attention, over random queries, keys and values",
    "prefill": "a pass over all tokens, to the logits of the last",
    "decode": "seconds of a step on a full cache",
    "memory": "peak bytes of a prefill and one step",
}
"""The benchmarks of any model, and what each measures."""


def _options(parser: argparse.ArgumentParser) -> None:
    kinds = "embedded name, local folder, hub id or random:KEY=NUMBER,..."
    options.add_model(parser, "random:layers=4,width=512,heads=8", kinds, dtype="float32")
    options.add_scheme(parser, "origin,rerope,stair")
    options.add_lengths(parser, "2048,4096,8192")
    options.add_repeats(parser, 5)
    options.add_threads(parser, 2)
    parser.add_argument("--backend", default="pieces", help="pieces or dense (default: pieces)")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory of timed rows too (on CPU a process for each)"
    )
    options.add_seed(parser, "of random weights and token ids")
    options.add_output(parser)


def _run(what: str) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        from probe.bench.run import Bench, BenchSettings
        from probe.results import carry_out, writable

        writable(args.out)
        bench = Bench.load(
            BenchSettings(
                what, args.scheme, parse_numbers(args.lengths, "lengths", ()),
                model=args.model, window=args.window, repeats=args.repeats,
                threads=args.threads, dtype=args.dtype, device=args.device, backend=args.backend, seed=args.seed,
                memory=args.memory, trust_remote_code=args.trust_remote_code, allow_pickle=args.allow_pickle,
            )
        )  # fmt: skip
        options.warn_of_window(bench.loaded)
        carry_out(bench, args.out, options.step(args.quiet), lambda result: show.bench(result, args.json))

    return run


COMMAND = Group(
    "bench", "time and memory of schemes beside the stock model, on the same weights", "benchmark",
    (
        *(
            Command(what, help, _options, _run(what), python=f'weavescope.bench("{what}", ...)')
            for what, help in TIMED.items()
        ),
        bench_record.COMMAND, bench_gpu.COMMAND, bench_official.COMMAND, bench_figure.COMMAND,
    ),
)  # fmt: skip
