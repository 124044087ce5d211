"""`probe study`: which signal foretells failure, judged on models that had no part in choosing it."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.errors import FieldError, ProbeError

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
    parser.add_argument(
        "--truth", default="text", help="text (the likelihood) or keys (pass keys, of scans with --keys; default: text)"
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
            scans.append(Scanned.read(read(path)).about(args.truth))
        except ProbeError as error:
            raise ProbeError(f"{path}: {error}") from None
    told = [scan for scan in scans if scan.rows]
    if not told:
        raise FieldError("truth", hint="no scan there has it; make one with 'probe scan --keys 20'", value=args.truth)
    deliver(Study(told, args.seed).result(), args.out, lambda result: show.study(result, args.json))


COMMAND = Command(
    "study", "which signal foretells failure: scans of several models, each judged by the others", _options, _run,
    python="weavescope.study(...)", more=_EXAMPLES, words={"files": "FILE"},
)  # fmt: skip
