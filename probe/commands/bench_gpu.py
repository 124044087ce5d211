"""`probe bench gpu`: shapes of Llama-2-7B and Llama-3-8B on one GPU, within a time budget."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from probe.commands import options
from probe.commands.command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=options.path, metavar="DIR", help="folder for the results (default: $OUT, else bench-gpu)"
    )
    parser.add_argument("--minutes", type=float, default=9, help="time budget, everything included (default: 9)")
    options.add_scheme(parser, None, "stock, mesa and eight more, in this order")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes and lengths on CPU, to see that it runs")
    parser.add_argument("--quiet", action="store_true", help="do not print the rows as they come")


def _run(args: argparse.Namespace) -> None:
    began = time.monotonic()
    from probe.bench.gpu import GpuBench, GpuSettings
    from probe.results import carry_out

    out = args.out or Path(os.environ.get("OUT", "bench-gpu"))
    work = GpuBench(GpuSettings(out, args.minutes, args.scheme, args.device, args.smoke), began)

    def step(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)

    carry_out(work, out / "gpu.json", step, lambda _: print(out / "gpu.json"))


COMMAND = Command(
    "gpu", "first token, decoding and memory of 7B and 8B shapes on one GPU, within a time budget", _options, _run,
    python="probe.bench.gpu.GpuBench(...)",
    more="'probe tables DIR/gpu.json' and 'probe bench figure DIR/gpu.json DIR' show what it found.",
)  # fmt: skip
