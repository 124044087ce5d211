"""`probe figure`: the pictures of the documentation."""

from __future__ import annotations

import argparse

from probe.commands import figure_named, options
from probe.commands.command import Command, Group
from probe.errors import FieldError


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=options.path, metavar="DIR", help="where the pictures go; it is made")


def _mesa_options(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--window", type=int, default=512, help="trained window M (default: 512)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of the prompt (default: 2048)")


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=options.path, metavar="RUN", help="a run folder")
    _folder(parser)
    parser.add_argument("--scheme", help="of those that ran, separated by commas (default: those that it shows)")
    parser.add_argument("--most", type=float, help="nats at the likelihood's upper edge (default: what it reaches)")

    parser.add_argument("--bins", type=int, default=240, help="points of its lines, each a mean (default: 240)")


def _of_run(args: argparse.Namespace) -> None:
    from probe.figures.run import write
    from probe.recording.folder import Run
    from probe.schemes.parse import split_specs

    if args.bins < 2:
        raise FieldError("bins", "at least 2", args.bins)
    schemes = None if args.scheme is None else split_specs(args.scheme)
    print(*write(Run(args.run_folder), args.folder, schemes, args.most, args.bins), sep="\n")


def _schemes(args: argparse.Namespace) -> None:
    from probe.figures.schemes import write

    print(*write(args.folder), sep="\n")


def _mesa(args: argparse.Namespace) -> None:
    from probe.figures.mesa import write

    print(write(args.folder, args.window, args.length))


def _causes_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=options.path, metavar="FILE", help="what --out of 'probe causes' wrote")
    _folder(parser)
    parser.add_argument("--scheme", help="of those in it, separated by commas (default: all)")


def _causes(args: argparse.Namespace) -> None:
    from probe.figures.causes import write
    from probe.results import read
    from probe.schemes.parse import split_specs

    schemes = None if args.scheme is None else split_specs(args.scheme)
    print(write(read(args.file), args.folder, args.file.stem, schemes))


def _study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=options.path,
        metavar="FILE",
        help="what --out of 'probe scan' wrote, of any models, or that of 'probe study' (its calibration)",
    )
    _folder(parser)


def _study(args: argparse.Namespace) -> None:
    from probe.figures.study import write
    from probe.results import read

    print(*write([read(path) for path in args.files], args.folder), sep="\n")


def _positional_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=options.path, metavar="FILE", help="what --out of 'probe positional' wrote")
    _folder(parser)


def _positional(args: argparse.Namespace) -> None:
    from probe.figures.positional import write
    from probe.results import read

    print(write(read(args.file), args.folder, args.file.stem))


def _leads_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=options.path, metavar="FILE", help="what --out of 'probe leads' wrote")
    _folder(parser)


def _leads(args: argparse.Namespace) -> None:
    from probe.figures.leads import write
    from probe.results import read
    from probe.studies.leads import lead_summaries

    results = [read(path) for path in args.files]
    print(write(results, lead_summaries(results), args.folder))


_WORDS = {"folder": "DIR"}
COMMAND = Group(
    "figure", "draw the pictures of the documentation, and the paper's figures by their numbers", "figure",
    (
        Command(
            "schemes", "every preset: W over d, who sees whom, and its frequencies", _folder, _schemes,
            python="probe.figures.schemes.write(...)", words=_WORDS,
        ),
        Command(
            "run", "a run's likelihood by position, and which dimensions of which layers cross", _run_options, _of_run,
            python="probe.figures.run.write(...)", words=_WORDS,
        ),
        Command(
            "causes", "rises by length and cause, a field per scheme", _causes_options, _causes,
            python="probe.figures.causes.write(...)", words=_WORDS,
        ),
        Command(
            "study", "scans: the rise predicted inside the window and the rise measured", _study_options, _study,
            python="probe.figures.study.write(...)", words=_WORDS | {"files": "FILE"},
        ),
        Command(
            "leads", "which detectors speak at a failure, and which where nothing fails", _leads_options, _leads,
            python="probe.figures.leads.write(...)", words=_WORDS | {"files": "FILE"},
        ),
        Command(
            "positional", "how much of the hidden vectors is position, by layer", _positional_options, _positional,
            python="probe.figures.positional.write(...)", words=_WORDS,
        ),
        Command(
            "mesa", "the chunk-triangular matrix of Mesa for a real split, as mesa.svg", _mesa_options, _mesa,
            python="probe.figures.mesa.draw(...)", words=_WORDS,
        ),
        *figure_named.COMMANDS,
    ),
)  # fmt: skip
