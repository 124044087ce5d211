"""Imports point downwards only: a room knows those below it, and none above or beside it that knows it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAYERS: tuple[tuple[str, ...], ...] = (
    ("constructions",),
    ("probe.errors", "probe.provenance"),
    ("probe.text", "probe.results", "probe.tables", "probe.defaults"),
    ("probe.schemes",),
    ("probe.attention",),
    ("probe.seam",),
    ("probe.models",),
    ("probe.recording",),
    ("probe.tasks",),
    ("probe.thresholds", "probe.signals"),
    ("probe.figures",),
    ("probe.studies", "probe.training", "probe.foreign"),
    ("probe.bench", "probe.peers"),
    ("weavescope",),
    ("probe.commands", "app"),
    ("probe.__main__",),
)
"""Rooms from the bottom up. Those of one level do not know each other."""

LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str:
    """The room that a module belongs to: its package, or itself at the top of `probe`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "probe" else parts[0]


def modules() -> Iterator[tuple[str, Path]]:
    for folder in ("constructions", "probe", "weavescope", "app"):
        for path in (ROOT / folder).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imported(path: Path) -> Iterator[str]:
    """Modules of this project that a file imports, anywhere in it, also for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def arrows() -> Iterator[tuple[str, str, str]]:
    """(module, its room, a room that it imports from)."""
    for module, path in modules():
        here = room_of(module)
        for target in imported(path):
            there = room_of(target)
            if there in LEVEL and there != here and here != "probe":
                yield module, here, there


def test_every_room_has_a_level() -> None:
    rooms = {room_of(module) for module, _ in modules()} - {"probe"}
    assert rooms == set(LEVEL)


def test_no_import_points_upwards() -> None:
    found = list(arrows())
    assert len(found) > 100  # the reader does read
    wrong = [f"{module} imports {there}" for module, here, there in found if LEVEL[there] >= LEVEL[here]]
    assert not wrong, wrong
