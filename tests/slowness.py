"""Which tests are slow, by measured times: `make check` leaves them out, `make test` runs all.

`python -m pytest --numprocesses 2 --record-times` measures them anew and writes `tests/slow.txt`. A test that is not in
the file is new, and counts as fast until it is measured.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

LIST = Path(__file__).parent / "slow.txt"
LIMIT = 0.4
"""Seconds from which on a test is slow: setup, call and teardown together, two at a time on two cores."""


class Times:
    """A plugin that adds up what each test took."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):  # a worker; the controller hears of every test
            return
        slow = sorted(node for node, seconds in self.seconds.items() if seconds >= LIMIT)
        LIST.write_text("".join(f"{node}\n" for node in slow), encoding="utf-8")


def mark(items: list[pytest.Item]) -> None:
    """Give slow tests their marker."""
    slow = set(LIST.read_text(encoding="utf-8").splitlines()) if LIST.exists() else set()
    for item in items:
        if item.nodeid in slow:
            item.add_marker("slow")
