"""`probe models`: what can be loaded, and fetching and removing what is fetched."""

from __future__ import annotations

import argparse
import sys

from probe.commands import options, show
from probe.commands.command import Command
from probe.errors import FieldError, unknown

_MORE = """
  probe models                   what there is, how big and where
  probe models fetch smollm2     get it now; its first use would do so too
  probe models remove smollm2    delete it from the cache folder
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", metavar="ACTION", help="fetch or remove; without one, a list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a fetched model")
    options.add_json(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.models.fetched import fetch, fetched, remove
    from probe.seam.families import FAMILIES
    from weavescope.listing import models

    if args.action is None:
        show.models(models(), FAMILIES, args.json)
        return
    if args.action not in ("fetch", "remove"):
        raise unknown("action", args.action, ("fetch", "remove"))
    if args.name is None:
        raise FieldError("name", f"which model to {args.action}", "none")
    row = fetched(args.name)
    if args.action == "fetch":
        fetch(row)
        print(row.folder)
    elif not remove(row):
        print(f"{row.name} is not there; nothing was removed", file=sys.stderr)


COMMAND = Command(
    "models", "list models and supported families; fetch or remove a pretrained one", _options, _run,
    python="weavescope.models(), weavescope.load(name)", more=_MORE, words={"name": "NAME"},
)  # fmt: skip
