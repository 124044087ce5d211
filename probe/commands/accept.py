"""`probe accept`: does an embedded model do what it must?"""

from __future__ import annotations

import argparse
import json

from probe.commands import options
from probe.commands.command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="embedded name; 'probe models' lists them")
    options.add_samples(parser, 400, "pass keys per length; 400 are 40 per decile")
    parser.add_argument("--windows", type=int, default=96, help="held-out windows (default: 96)")
    options.add_seed(parser, "of the samples")
    parser.add_argument(
        "--write-card", action="store_true", help="write acceptance.json and the model card into the model's folder"
    )


def _run(args: argparse.Namespace) -> int:
    from probe.training.acceptance import measure, write_card

    row = options.embedded(args.model)
    numbers = measure(row, samples=args.samples, windows=args.windows, seed=args.seed)
    print(json.dumps(numbers, indent=2))
    if args.write_card:
        write_card(row, numbers)
    return 0 if all(numbers["holds"].values()) else 1


COMMAND = Command(
    "accept", "measure what an embedded model must do, on fresh samples; exit code 1 where it does not", _options, _run,
    python="probe.training.acceptance.measure(...)",
)  # fmt: skip
