"""`probe tables`: results as Markdown, by their kind."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from probe.commands import options
from probe.commands.command import Command
from probe.errors import ProbeError, unknown

Markdown = Callable[[Mapping[str, Any]], str]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=options.path,
        metavar="FILE",
        help="what --out of eval, causes, tune, frequencies, scan, study, leads, positional, patch, precision, "
        "bench or peers wrote, or audit --json printed",
    )


def kinds() -> dict[str, Markdown]:
    """What makes Markdown of a result, by its kind."""
    from probe.bench import tables as bench
    from probe.peers import tables as peers
    from probe.studies import tables as studies
    from probe.tasks import tables as tasks

    return {
        "audit": tasks.audit_markdown, "bench": bench.markdown, "causes": studies.causes_markdown,
        "eval": tasks.markdown, "frequencies": studies.frequencies_markdown, "leads": studies.leads_markdown,
        "patch": studies.patch_markdown, "peers": peers.markdown, "positional": studies.positional_markdown,
        "precision": studies.precision_markdown,
        "scan": studies.scan_markdown, "study": studies.study_markdown, "tune": studies.tune_markdown,
    }  # fmt: skip


def _run(args: argparse.Namespace) -> None:
    from probe.results import read

    known = kinds()
    for path in args.files:
        result = read(path)
        try:
            if result["kind"] not in known:
                raise unknown("kind of result", result["kind"], known)
            print(known[result["kind"]](result) + "\n")
        except ProbeError as error:
            raise ProbeError(f"{path}: {error}") from None


COMMAND = Command(
    "tables",
    "make Markdown tables of results: eval, causes, tune, frequencies, scan, study, leads, positional, patch, audit, "
    "precision, bench, peers",
    _options, _run,
    python="weavescope results show themselves; .to_pandas()",
)  # fmt: skip
