"""The schemes page says of every scheme what the tables say, and its pictures are what the script draws."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from probe.figures.schemes import DRAWN, draw, write
from probe.schemes import OPTIONS, PRESETS, parse_scheme

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "schemes.md").read_text(encoding="utf-8")


def test_every_preset_is_drawn_and_on_the_page() -> None:
    assert set(PRESETS) <= set(DRAWN)
    for name, spec in DRAWN.items():
        assert f"figures/schemes/{name}.svg" in PAGE and parse_scheme(spec, 64).spec.startswith(
            name.split("-bottom")[0]
        )
    for name, preset in PRESETS.items():
        assert f"### {name}\n" in PAGE
        assert all(f"`{parameter}" in PAGE.split(f"### {name}\n")[1].split("###")[0] for parameter in preset.parameters)
    assert all(f"`{name}" in PAGE for name in OPTIONS)


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_small_and_up_to_date(name: str) -> None:
    committed = (DOCS / "figures" / "schemes" / f"{name}.svg").read_text(encoding="utf-8")
    assert committed == draw(DRAWN[name])
    assert len(committed) < 30_000
    assert ElementTree.fromstring(committed).tag.endswith("svg")


def test_writing_makes_one_file_per_picture(tmp_path: Path) -> None:
    assert sorted(path.stem for path in write(tmp_path / "new")) == sorted(DRAWN)


def test_specs_on_the_page_parse() -> None:
    block = PAGE.split("```text\n")[1].split("```")[0]
    specs = [line.split("  ")[0].strip() for line in block.splitlines() if line.strip()]
    assert len(specs) >= 6
    for spec in specs:
        parse_scheme(spec, 4096)
