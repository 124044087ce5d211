"""`probe train`: make an embedded model again."""

from __future__ import annotations

import argparse
from pathlib import Path

from probe.commands import options
from probe.commands.command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="embedded name; 'probe models' lists them")
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps (default: 6000)")
    options.add_seed(parser, "of weights and batches")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--work", type=options.path, default=Path("runs/train"), metavar="DIR",
        help="checkpoints and the encoded corpus (default: runs/train)",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> None:
    from probe.training.train import Recipe, train, use_threads

    row, recipe = options.embedded(args.model), Recipe(seed=args.seed, steps=args.steps)
    use_threads(args.threads)
    train(row, recipe, args.work, args.device)


COMMAND = Command(
    "train", "train an embedded model, or go on from its last checkpoint", _options, _run,
    python="probe.training.train.train(...)", words={"model": "MODEL"},
)  # fmt: skip
