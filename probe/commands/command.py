"""What a subcommand is: a row with its options, what it does, and the same call in Python."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from probe.errors import unknown


class Parser(argparse.ArgumentParser):
    """Errors are one line, exit code 2; a name that is not there is an error like everywhere else."""

    def error(self, message: str) -> NoReturn:
        """End with the line, and where help is."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise unknown(str(action.metavar or action.dest).lower(), value, action.choices)


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        name: as it is typed.
        help: one line.
        add_options: puts its options into a parser.
        run: does it; returns an exit code other than 0 where there is one.
        python: the same in Python, the last line of its help.
        more: what its help says besides, before that line.
        words: options that are not called as the parameter is: {"folder": "FOLDER"}.
        foreign: whether everything behind its name is passed on as it is, options too.
    """

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    python: str
    more: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    foreign: bool = False

    def add_to(self, commands: Any) -> None:
        """Make its parser, among those of other commands."""
        parser = commands.add_parser(
            self.name, help=self.help, description=self.help, formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="\n".join(filter(None, (self.more, f"In Python: {self.python}"))),
            **({"prefix_chars": "\0", "add_help": False} if self.foreign else {}),
        )  # fmt: skip
        self.add_options(parser)
        parser.set_defaults(run=self.run, words=self.words)


@dataclass(frozen=True)
class Group:
    """Several subcommands under one name.

    Attributes:
        name: as it is typed.
        help: one line.
        what: what its members are: "benchmark".
        members: the subcommands.
    """

    name: str
    help: str
    what: str
    members: Sequence[Command]

    def add_to(self, commands: Any) -> None:
        """Make its parser and those of its members."""
        parser = commands.add_parser(self.name, help=self.help, description=self.help)
        members = parser.add_subparsers(required=True, metavar=self.what.upper(), parser_class=Parser)
        for member in self.members:
            member.add_to(members)
