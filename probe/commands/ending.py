"""How a command ends: its exit code, its one line for what went wrong, and what a signal does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from probe.errors import ProbeError, Wording, out_of_memory

_SPECIAL = {
    "layers": "--layer", "dims": "--dim", "sites": "--site", "schemes": "--scheme", "chunks": "--chunk",
}  # fmt: skip
"""Options that are not called as the parameter is."""


def flags(special: Mapping[str, str] | None = None) -> Wording:
    """How the command line calls a field: `chunk_batch` is "--chunk-batch".

    Args:
        special: of one command, where it has another name for a field: {"folder": "FOLDER"}.
    """
    known = _SPECIAL | dict(special or {})
    return lambda field: known.get(field, "--" + field.replace("_", "-"))


def exit_code(work: Callable[[], int | None], interrupted: str = "interrupted", wording: Wording | None = None) -> int:
    """Do a command's work and say how it ended: its own code or 0, 2 for bad input (one line), 130 when interrupted.

    More than the memory holds is bad input too.

    Args:
        work: returns a code, or None for 0.
        interrupted: what is said then.
        wording: how the command calls a field; `flags()` where it has no names of its own.
    """
    try:
        return work() or 0
    except ProbeError as error:
        return _refused(error.worded(wording or flags()))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        first = (str(error).strip() or "no more to be had").splitlines()[0]
        return _refused(
            f"expected less than the memory holds ({first}); take a shorter length, fewer samples, layers or dims, "
            "or another --device"
        )
    except KeyboardInterrupt:
        print(f"probe: {interrupted}", file=sys.stderr)
        return 130


def _refused(line: str) -> int:
    print(f"probe: error: {line}", file=sys.stderr)
    return 2


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM unwinds the stack, so that what is done is kept; a second ends the process.

    Python's handlers wait for a long computation to return. The signal's number is written to a pipe without them, and
    a thread that reads there does not wait. Off the main thread, where Python sets no handlers, signals are left as
    they are.
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
