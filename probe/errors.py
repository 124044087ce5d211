"""The one error that users see: a line that says what was expected, what came and how to fix it."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

Wording = Callable[[str], str]
"""How a face calls a field: `length` is "--length" on the command line, and "length" in Python."""


class ProbeError(ValueError):
    """Bad input. The CLI prints it as one line and exits with 2; the dashboard shows it as a message."""

    def worded(self, name: Wording) -> str:
        """The line in the words of one face.

        Args:
            name: what that face calls a field.
        """
        return str(self)


class FieldError(ProbeError):
    """A field has a value that it cannot have: which one, what was expected, what came, and how to mend it.

    `expected` and `hint` may name other fields as `{field}`; every face has its own word for those too.

    Args:
        field: the parameter in Python, such as "chunk_batch".
        expected: what would have done, without the word "expected"; empty where `hint` says it all.
        got: what came; left out where there is nothing to show.
        hint: what to do.
        value: the field's whole value, where `got` is only a property of it.
    """

    def __init__(
        self, field: str, expected: str = "", got: object = None, hint: str = "", value: object = None
    ) -> None:
        self.field, self.expected, self.got, self.hint, self.value = field, expected, got, hint, value
        super().__init__(self.worded(lambda name: name))

    def worded(self, name: Wording) -> str:
        """As `ProbeError.worded`: "length: expected at least 2 tokens, got 1; hint"."""

        def named(text: str) -> str:
            return re.sub(r"\{(\w+)\}", lambda found: name(found[1]), text)

        head = name(self.field) if self.value is None else f"{name(self.field)} {self.value}"
        got = "" if self.got is None else f"got {self.got}"
        said = ", ".join(part for part in (self.expected and f"expected {named(self.expected)}", got) if part)
        return f"{head}: {'; '.join(part for part in (said, named(self.hint)) if part)}"

    def __reduce__(self) -> tuple[object, ...]:
        """Exceptions cross processes, and would be made again from the line alone."""
        return type(self), (self.field, self.expected, self.got, self.hint, self.value)


class UnknownNameError(ProbeError):
    """A name is not in a table: which table, what came, what is there."""

    def __init__(self, what: str, got: object, known: Iterable[object]) -> None:
        self.what, self.got, self.known = what, got, tuple(map(str, known))
        close = difflib.get_close_matches(str(got), self.known, n=1)
        meant = f"; did you mean {close[0]}?" if close and close[0] != str(got) else ""
        super().__init__(f"unknown {what} {got!r}; known: {', '.join(self.known)}{meant}")

    def __reduce__(self) -> tuple[object, ...]:
        """As `FieldError.__reduce__`."""
        return type(self), (self.what, self.got, self.known)


def unknown(what: str, got: object, known: Iterable[object]) -> ProbeError:
    """The error for a name that is not in a table: it lists what is there."""
    return UnknownNameError(what, got, known)


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of any device is what was lacking; torch's allocator of the CPU raises a bare RuntimeError."""
    texts = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
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


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM unwinds the stack, so that what is finished is kept; a second ends the process at once.

    Python's handlers wait for a long computation to return. The signal's number is written to a pipe without them, and
    a thread that reads there does not wait. Off the main thread, where Python sets no handlers, signals are left as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)), signal.set_wakeup_fd(writer)
    threading.Thread(target=_end_at_second, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before[1])
        signal.signal(signal.SIGTERM, before[0])
        os.close(writer)  # the thread reads the end of the pipe, and ends


def _end_at_second(reader: int) -> None:
    heard = 0
    while number := os.read(reader, 1):
        heard += number[0] in (signal.SIGINT, signal.SIGTERM)
        if heard == 2:
            os._exit(128 + number[0])
    os.close(reader)
