"""The one error that users see: a line that says what was expected, what came and how to fix it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable


class ProbeError(ValueError):
    """Bad input. The CLI prints it as one line and exits with 2; the dashboard shows it as a message."""


def unknown(what: str, got: object, known: Iterable[object]) -> ProbeError:
    """The error for a name that is not in a table: it lists what is there."""
    return ProbeError(f"unknown {what} {got!r}; known: {', '.join(map(str, known))}")


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of any device is what was lacking; torch's allocator of the CPU raises a bare RuntimeError."""
    texts = ("out of memory", "allocate memory", "not enough memory")
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, without its import
    return named or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts))


def exit_code(work: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Do a command's work and say how it ended: 0, 2 for bad input (one line on stderr), 130 when it was interrupted.

    More than the memory holds is bad input too.
    """
    try:
        work()
    except ProbeError as error:
        print(f"probe: error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        first = (str(error).strip() or "no more to be had").splitlines()[0]
        print(
            f"probe: error: expected less than the memory holds ({first}); take a shorter length, fewer samples, layers or dims, "
            "or another --device",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"probe: {interrupted}", file=sys.stderr)
        return 130
    return 0
