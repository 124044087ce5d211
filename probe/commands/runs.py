"""`probe runs`: what is in a runs folder, whether it is whole, and mending and deleting it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from probe.commands import options, show
from probe.commands.command import Command, Group
from probe.errors import FieldError
from probe.text import format_table


def _root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", type=options.path, default=Path("runs"), metavar="DIR", help="the runs folder (default: runs)"
    )


def _names(parser: argparse.ArgumentParser, what: str, least: str) -> None:
    _root(parser)
    parser.add_argument("names", nargs=least, metavar="NAME", help=what)


def _list_options(parser: argparse.ArgumentParser) -> None:
    _root(parser)
    options.add_json(parser)


def _list(args: argparse.Namespace) -> None:
    from probe.studies.keeping import kept

    found = [asdict(one) for one in kept(args.root)]
    if args.json:
        show.as_json({"runs": found})
    elif not found:
        print(f"no run is in {args.root}; 'probe run' makes one")
    else:
        print(format_table(found, tuple(found[0])))


def _folders(args: argparse.Namespace) -> list[Path]:
    """The runs that are named; all where none is."""
    from probe.studies.keeping import kept

    known = [one.name for one in kept(args.root) if one.kind == "run"]
    for name in args.names:
        if name not in known:
            raise FieldError("name", hint=f"there is no finished run {name!r} in {args.root}")
    return [args.root / name for name in args.names or known]


def _check_options(parser: argparse.ArgumentParser) -> None:
    _names(parser, "a run; all where none is named", "*")
    options.add_json(parser)


def _check(args: argparse.Namespace) -> int:
    from probe.studies.keeping import check

    return _told([check(path) for path in _folders(args)], args.json)


def _repair(args: argparse.Namespace) -> int:
    from probe.studies.keeping import repair

    return _told([repair(path) for path in _folders(args)], args.json)


def _told(found: list[object], json: bool) -> int:
    """What was found of each run; the exit code is 1 where one is not whole."""
    rows = [asdict(one) for one in found]  # type: ignore[call-overload]
    if json:
        show.as_json({"runs": rows})
    for row in () if json else rows:
        print(f"{row['name']}: {'whole' if row['whole'] else '; '.join(row['problems'])}")
        if not row["whole"]:
            mend = "probe runs repair mends it" if row["mendable"] else "what was recorded cannot be mended"
            print(f"    {mend}{'' if row['mendable'] or not row['again'] else '; make it again: ' + row['again']}")
    return int(not all(row["whole"] for row in rows))


def _remove(args: argparse.Namespace) -> None:
    from probe.studies.keeping import remove

    if not args.yes:
        raise FieldError("yes", hint=f"deleting cannot be undone; give --yes to delete {', '.join(args.names)}")
    for one in remove(args.root, args.names):
        print(f"{one.name} is deleted ({one.megabytes:g} MB)")


def _remove_options(parser: argparse.ArgumentParser) -> None:
    _names(parser, "a run, an unfinished one or a leftover, as 'probe runs list' names them", "+")
    parser.add_argument("--yes", action="store_true", help="really delete")


COMMAND = Group(
    "runs", "list, check, mend and delete runs", "action",
    (
        Command("list", "what is in a runs folder", _list_options, _list, python="weavescope.list_runs(folder)"),
        Command("check", "whether runs are whole: checksums, and contents against run.json; exit code 1 if not",
                _check_options, _check, python="weavescope.open_run(folder)", words={"name": "NAME"}),
        Command("repair", "make verdicts, figure and checksums of runs anew where they are damaged", _check_options,
                _repair, python="weavescope.open_run(folder).judge()", words={"name": "NAME"}),
        Command("rm", "delete runs", _remove_options, _remove, python="shutil.rmtree(run.path)",
                words={"name": "NAME"}),
    ),
)  # fmt: skip
