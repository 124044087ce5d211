"""`probe report`: results as one page and as Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

from probe.commands import options
from probe.commands.command import Command
from probe.errors import FieldError, ProbeError


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=options.path, metavar="FILE",
        help="what --out of 'probe eval' wrote, and of 'probe bench' for time and memory",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=options.path, default=Path("report.html"), metavar="FILE",
        help="the page; Markdown goes beside it, with the ending .md (default: report.html)",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> None:
    from probe.bench import tables as bench
    from probe.figures.report import report_page
    from probe.results import read, writable
    from probe.tasks.report import markdown

    if args.out.suffix != ".html":
        raise FieldError("out", "a name that ends in .html", value=args.out)
    writable(args.out)
    results = [read(path) for path in args.files]
    for path, result in zip(args.files, results, strict=True):
        if result["kind"] not in ("eval", "bench"):
            raise ProbeError(
                f"{path}: expected a result of 'probe eval' or 'probe bench', got one of {result['kind']!r}"
            )
    page = report_page(results)
    text = markdown([result for result in results if result["kind"] == "eval"])
    costs = [bench.markdown(result) for result in results if result["kind"] == "bench"]
    text += "".join(["## Time and memory\n\n", *(table + "\n\n" for table in costs)] if costs else [])
    for path, content in ((args.out, page), (args.out.with_suffix(".md"), text)):
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise FieldError("out", hint=f"cannot write there ({error.strerror})", value=path) from None
        print(path)


COMMAND = Command(
    "report", "results as one page and as Markdown: accuracy by length and depth, effective context, what to use",
    _options, _run,
    python="weavescope results show themselves; .to_pandas()", words={"folder": "FILE"},
)  # fmt: skip
