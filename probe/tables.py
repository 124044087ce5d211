"""Open tables: rows by name, to which other packages add theirs without a fork.

A row is a small frozen object with a `name`. Whoever has one calls `register(row)`. An installed package names its rows
in the entry-point group `weavescope`, and is asked for them the first time that somebody looks for a name that is not
there, or at all of a table; so nothing is loaded while modules are still being imported, unless one of them walks
through a table.

    [project.entry-points.weavescope]
    mine = "my_package:rows"          # a function without arguments that returns rows, or one row
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any, Generic, TypeVar

from probe.errors import ProbeError, unknown

GROUP = "weavescope"
"""The entry-point group in which a package names its rows."""


R = TypeVar("R", bound=Any)
_TABLES: list[Table[Any]] = []
"""Every open table that has been imported."""


class Table(Mapping[str, R], Generic[R]):
    """Rows by name, in the order in which they came.

    Args:
        what: what a row is, in words: "detector".
        kind: the class of its rows, or from which they derive.
        rows: those that the project ships.
        classes: whether rows are classes that derive from `kind`, and not objects of it.
    """

    def __init__(self, what: str, kind: type, rows: Iterable[R], *, classes: bool = False) -> None:
        self.what, self.kind, self.classes = what, kind, classes
        self._rows: dict[str, R] = {}
        for row in rows:
            self.add(row)
        _TABLES.append(self)

    def takes(self, row: object) -> bool:
        """Whether a row belongs here."""
        if self.classes:
            return isinstance(row, type) and issubclass(row, self.kind)
        return isinstance(row, self.kind)

    def add(self, row: R, *, replace: bool = False) -> R:
        """Put a row in.

        Raises:
            ProbeError: another one has its name already.
        """
        if row.name in self._rows and not replace and self._rows[row.name] is not row:
            raise ProbeError(f"{self.what} {row.name!r}: the name is taken already; give the row another one")
        self._rows[row.name] = row
        return row

    def __getitem__(self, name: str) -> R:
        """The row of that name.

        Raises:
            ProbeError: there is none; the message lists those that are.
        """
        if name not in self._rows:
            load_plugins()
        if name not in self._rows:
            raise unknown(self.what, name, self._rows)
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is a row of that name."""
        if name not in self._rows:
            load_plugins()
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        """The names."""
        load_plugins()
        return iter(tuple(self._rows))

    def __len__(self) -> int:
        """How many rows there are."""
        load_plugins()
        return len(self._rows)


def tables() -> tuple[Table[Any], ...]:
    """Every open table that has been imported."""
    return tuple(_TABLES)


def register(row: R, *, replace: bool = False) -> R:
    """Add a row to the table that it belongs to, by its class; can be used as a decorator of a class.

    Args:
        row: of any open table.
        replace: take the place of a row with its name.

    Returns:
        The row.

    Raises:
        ProbeError: no table takes such a thing, or its name is taken.
    """
    for table in _TABLES:
        if table.takes(row):
            table.add(row, replace=replace)
            return row
    kinds = ", ".join(f"{table.kind.__name__} ({table.what})" for table in _TABLES)
    got = row.__name__ if isinstance(row, type) else type(row).__name__
    raise ProbeError(f"register: expected a row of one of these kinds: {kinds}; got {got}")


_loaded = False


def load_plugins() -> None:
    """Ask every installed package that has rows for them, once.

    What fails is left out with a warning on stderr: one row whose name is taken, or a whole package that does not
    import.
    """
    global _loaded
    if _loaded:
        return
    _loaded = True  # before the work: a plugin looks at tables too
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        try:
            rows = list(_rows_of(entry.load()))
        except Exception as error:
            _warn(entry, error)
            continue
        for row in rows:
            try:
                register(row)
            except Exception as error:
                _warn(entry, error)


def _rows_of(named: Any) -> Iterable[Any]:
    """What an entry point names: a row, several, or a function that returns either."""
    if any(table.takes(named) for table in _TABLES):
        return (named,)
    made = named() if callable(named) else named
    if any(table.takes(made) for table in _TABLES) or not isinstance(made, Iterable):
        return (made,)
    return made


def _warn(entry: metadata.EntryPoint, error: Exception) -> None:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(f"probe: warning: plugin {entry.name} ({entry.value}) was left out: {reason}", file=sys.stderr)
