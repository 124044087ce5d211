"""`probe eval`: a task at several lengths, under several schemes."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.text import parse_numbers


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--task", default="passkey", help="passkey or nll (default: passkey)")
    options.add_scheme(parser, "origin")
    options.add_lengths(parser, None, "M/4, M/2, M, 2M")
    options.add_samples(parser, 50, "samples per length")
    options.add_seed(parser, "of the samples")
    parser.add_argument(
        "--tail", type=int, help="--task nll: mean over the last so many positions (default: a quarter)"
    )
    parser.add_argument("--input", help="--task nll: what is read, as for 'probe run' (default: heldout)")
    parser.add_argument(
        "--prompt", help="--task passkey: plain, or chat for the model's chat template (default: plain)"
    )
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.tasks.evaluate import Evaluation, check_task

    chosen = {"tail": args.tail, "input": args.input, "prompt": args.prompt}
    check_task(args.task, args.samples, **chosen)
    check_texts(args.scheme)
    writable(args.out)
    lengths = None if args.lengths is None else parse_numbers(args.lengths, "lengths", ())
    work = Evaluation(options.load(args), args.task, args.scheme, lengths, args.samples, args.seed, **chosen)
    options.carry(work, args, show.evaluation)


COMMAND = Command(
    "eval", "pass-key accuracy or likelihood at chosen lengths, under any scheme", _options, _run,
    python="weavescope.load(...).evaluate(...)", words={"length": "--lengths"},
)  # fmt: skip
