"""`probe train`: make an embedded model again."""

from __future__ import annotations

import argparse
from pathlib import Path

from probe.commands import options
from probe.commands.command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="embedded name; 'probe models' lists them")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the model's own)")
    parser.add_argument("--seed", type=options.seed, help="of weights and batches (default: the model's own)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--work", type=options.path, default=Path("runs/train"), metavar="DIR",
        help="checkpoints and the encoded corpus (default: runs/train)",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> None:
    from probe.training.train import Recipe, train, use_threads

    row = options.embedded(args.model)
    recipe = Recipe(
        seed=row.seed if args.seed is None else args.seed, steps=row.steps if args.steps is None else args.steps
    )
    use_threads(args.threads)
    train(row, recipe, args.work, args.device)


COMMAND = Command(
    "train", "train an embedded model, or go on from its last checkpoint", _options, _run,
    python="probe.training.train.train(...)", words={"model": "MODEL"},
)  # fmt: skip
