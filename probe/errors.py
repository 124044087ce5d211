"""The one error that users see: a line that says what was expected, what came and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable


class ProbeError(ValueError):
    """Bad input. The CLI prints it as one line and exits with 2; the dashboard shows it as a message."""


def unknown(what: str, got: object, known: Iterable[object]) -> ProbeError:
    """The error for a name that is not in a table: it lists what is there."""
    return ProbeError(f"unknown {what} {got!r}; known: {', '.join(map(str, known))}")
