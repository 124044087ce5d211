"""Every Python block of the documentation runs as printed, a page's blocks one after another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from probe.errors import ProbeError
from probe.models.load import load_model
from probe.schemes import Scheme
from probe.schemes.pieces import compile_pieces
from probe.schemes.visibility import Visibility
from probe.studies.run import RunSettings, run_probe
from probe.thresholds.detectors import Detection

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = {
    page: blocks
    for page in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
    if (blocks := BLOCK.findall(page.read_text()))
}


def run_page(page: Path) -> dict:
    names: dict = {"__name__": "__main__"}
    for number, block in enumerate(PAGES[page], 1):
        exec(compile(block, f"{page.name}, block {number}", "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if page.name == "runs.md":  # reads what `make run` leaves
        (tmp_path / "runs").mkdir()
        run_probe(load_model("rope"), RunSettings(schemes="origin,rerope", length=600), Path("runs/headline"))
    names = run_page(page)
    if page.name == "python.md":
        assert names["logits"].shape[1] == 1 and names["text"].shape[1] == names["ids"].shape[1] + 8
        length = names["ids"].shape[1]
        assert length > 512 and names["seen"].values("resid", 2).shape == (1, length, 2)
        assert names["scores"].rows.column("scheme") == ["origin", "rerope+logn"] * 2
        assert isinstance(names["found"], Detection)
        mine = Scheme("root", window=512, weave=names["Root"](128))
        with pytest.raises(ProbeError, match="weave root: expected a method `parts`, and Root has none; backend dense"):
            compile_pieces(mine.weave_at(20), Visibility(), 0, 20)


def test_pages_with_blocks_are_found() -> None:
    assert {"README.md", "python.md", "runs.md"} <= {page.name for page in PAGES}
