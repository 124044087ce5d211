"""The one error that users see: a line that says what was expected, what came and how to fix it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

Wording = Callable[[str], str]
"""How a face calls a field: `length` is "length" in Python, the name of an option on the command line."""

_NAMED = re.compile(r"\{\{|\{(\w+)\}")


def literal(text: object) -> str:
    """Somebody else's text, as part of a `FieldError`'s `expected` or `hint`: no brace in it names a field."""
    return str(text).replace("{", "{{")


def _named(text: str, name: Wording) -> str:
    """A text with every `{field}` in it as one face calls it."""
    return _NAMED.sub(lambda found: name(found[1]) if found[1] else "{", text)


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

    `expected` and `hint` may name other fields as `{field}`; every face has its own word for those too. Text that comes
    from elsewhere goes in as `literal(text)`.

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
        """The line in the words of one face: "length: expected at least 2 tokens, got 1; hint"."""

        head = name(self.field) if self.value is None else f"{name(self.field)} {self.value}"
        got = "" if self.got is None else f"got {self.got}"
        said = ", ".join(part for part in (self.expected and f"expected {_named(self.expected, name)}", got) if part)
        return f"{head}: {'; '.join(part for part in (said, _named(self.hint, name)) if part)}"

    def __reduce__(self) -> tuple[object, ...]:
        """Exceptions cross processes, and would be made again from the line alone."""
        return type(self), (self.field, self.expected, self.got, self.hint, self.value)


class UnknownNameError(ProbeError):
    """A name is not in a table: which table, what came, what is there. `what` may name fields as `{field}`."""

    def __init__(self, what: str, got: object, known: Iterable[object]) -> None:
        self.what, self.got, self.known = what, got, tuple(map(str, known))
        super().__init__(self.worded(lambda name: name))

    def worded(self, name: Wording) -> str:
        """The line in the words of one face: "unknown detector 'rang'; known: range, paper; did you mean range?"."""
        close = difflib.get_close_matches(str(self.got), self.known, n=1)
        meant = f"; did you mean {close[0]}?" if close and close[0] != str(self.got) else ""
        return f"unknown {_named(self.what, name)} {self.got!r}; known: {', '.join(self.known)}{meant}"

    def __reduce__(self) -> tuple[object, ...]:
        """Exceptions cross processes, and would be made again from the line alone."""
        return type(self), (self.what, self.got, self.known)


def unknown(what: str, got: object, known: Iterable[object]) -> ProbeError:
    """The error for a name that is not in a table: it lists what is there."""
    return UnknownNameError(what, got, known)


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of any device is what was lacking; torch's allocator of the CPU raises a bare RuntimeError."""
    texts = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, without its import
    return named or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts))
