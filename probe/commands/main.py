"""The `probe` command: its parser, and what becomes of a call."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from probe.commands import (
    accept,
    app,
    audit,
    bench,
    causes,
    choices,
    eval,
    figure,
    frequencies,
    generate,
    leads,
    lm_eval,
    models,
    patch,
    peers,
    positional,
    precision,
    report,
    run,
    runs,
    scan,
    schemes,
    serve,
    signals,
    study,
    tables,
    train,
    tune,
)
from probe.commands.command import Command, Group, Parser
from probe.commands.ending import exit_code, flags, stoppable

COMMANDS: tuple[Command | Group, ...] = (
    run.COMMAND, eval.COMMAND, lm_eval.COMMAND, causes.COMMAND, tune.COMMAND, frequencies.COMMAND, scan.COMMAND,
    leads.COMMAND, study.COMMAND, signals.COMMAND, positional.COMMAND, patch.COMMAND, precision.COMMAND,
    generate.COMMAND, serve.COMMAND, audit.COMMAND,
    bench.COMMAND, peers.COMMAND, tables.COMMAND, report.COMMAND, runs.COMMAND, figure.COMMAND, models.COMMAND,
    schemes.COMMAND, choices.COMMAND, train.COMMAND, accept.COMMAND, app.COMMAND,
)  # fmt: skip


class _Versions(argparse.Action):
    """Prints the versions and ends; they are looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """What argparse calls."""
        from probe.provenance import Provenance

        versions = Provenance.now().versions
        print(", ".join(f"{name} {versions[name]}" for name in ("weavescope", "torch", "transformers")))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = Parser(
        prog="probe",
        description="Where does a language model break past its training window, "
        "and what do weave schemes do about it?",
        epilog="Start with 'probe run': it needs no model, no GPU and no network. Ctrl-C ends a command and keeps what "
        "is finished, a second one ends it at once. The theorems are verified by 'python -m constructions verify'.",
    )
    parser.add_argument("--version", action=_Versions, nargs=0, help="versions of weavescope, torch and transformers")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def _do(argv: Sequence[str] | None) -> int:
    args = argparse.Namespace(words={})
    interrupted = "interrupted; nothing was left half-written"

    def parsed() -> None:
        build_parser().parse_args(argv, args)

    code = exit_code(parsed)
    return code or exit_code(lambda: args.run(args), interrupted, flags(args.words))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    try:
        with stoppable():
            return _do(argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
