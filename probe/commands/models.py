"""`probe models`: what can be loaded."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command


def _run(args: argparse.Namespace) -> None:
    from probe.models.embedded import MODELS
    from probe.seam.families import FAMILIES

    show.models(list(MODELS.values()), FAMILIES, args.json)


COMMAND = Command(
    "models", "list embedded models and supported families", options.add_json, _run, python="weavescope.models()"
)
