"""The one error that users see: a line that says what was expected, what came and how to fix it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable


class ProbeError(ValueError):
    """Bad input. The CLI prints it as one line and exits with 2; the dashboard shows it as a message."""


def unknown(what: str, got: object, known: Iterable[object]) -> ProbeError:
    """The error for a name that is not in a table: it lists what is there."""
    return ProbeError(f"unknown {what} {got!r}; known: {', '.join(map(str, known))}")


def exit_code(work: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Do a command's work and say how it ended: 0, 2 for bad input (one line on stderr), 130 when it was interrupted."""
    try:
        work()
    except ProbeError as error:
        print(f"probe: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"probe: {interrupted}", file=sys.stderr)
        return 130
    return 0
