"""`probe study`: which signal foretells failure, judged on models that had no part in choosing it."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.errors import ProbeError

_EXAMPLES = """\
examples:
  probe study docs/results/study/*.json.gz      the scans that ship with the documentation
  probe study scans/*.json --out study.json && probe tables study.json
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=options.path,
        metavar="FILE",
        help="what --out of 'probe scan' wrote, of several models",
    )
    options.add_seed(parser, "of permuted labels")
    options.add_json(parser)
    parser.add_argument("--out", type=options.path, metavar="FILE", help="write the JSON object there too")


def _run(args: argparse.Namespace) -> None:
    from probe.results import deliver, read, writable
    from probe.studies.predictors import Scanned, Study

    writable(args.out)
    scans = []
    for path in args.files:
        try:
            scans.append(Scanned.read(read(path)))
        except ProbeError as error:
            raise ProbeError(f"{path}: {error}") from None
    deliver(Study(scans, args.seed).result(), args.out, lambda result: show.study(result, args.json))


COMMAND = Command(
    "study", "which signal foretells failure: scans of several models, each judged by the others", _options, _run,
    python="weavescope.study(...)", more=_EXAMPLES, words={"files": "FILE"},
)  # fmt: skip
