"""`probe signals`: what a scan can look at."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_json(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.signals.table import SIGNALS

    show.signals(list(SIGNALS.values()), args.json)


COMMAND = Command(
    "signals", "list what 'probe scan' looks at: hidden vectors, attention, the output", _options, _run,
    python='weavescope.choices("signal")',
)  # fmt: skip
