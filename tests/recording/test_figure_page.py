"""The figure of a run is a small page: it shows what crosses first, and shares plotly.js with other runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from plotly.offline import get_plotlyjs

import weavescope as ws
from probe.figures.page import script_name
from probe.figures.thresholds import MAX_PANELS, thin, threshold_figure
from probe.recording.folder import Run, list_runs


def probed(out: Path, **options: object) -> Run:
    given = {"schemes": "origin,dynamic-ntk,rerope", "layers": "all", "dims": "all", "input": "heldout", "length": 1100}
    return ws.load("rope").probe(out=out, **(given | options))


def test_a_page_of_all_dimensions_is_small_and_shows_those_that_cross_first(tmp_path: Path) -> None:
    run = probed(tmp_path / "runs" / "one", input="word:hello")
    page = (run.path / "figure.html").read_text()
    assert len(page) < 500_000 and "the 12 dimensions that cross first; 628 more are in the run" in page
    titles = [note.text for note in threshold_figure(run).layout.annotations if note.text.startswith("resid, layer")]
    found = {row.place.title: row.predicted for row in run.thresholds if row.scheme == "origin"}
    crossings = sorted(position for position in found.values() if position is not None)
    assert len(crossings) > 100 and sorted(found[title] for title in titles) == crossings[:MAX_PANELS]


def test_noisy_text_is_drawn_with_fewer_points_and_keeps_its_extremes(tmp_path: Path) -> None:
    run = probed(tmp_path / "runs" / "one", dims=range(20))
    assert (run.path / "figure.html").stat().st_size < 500_000
    values = np.random.default_rng(0).normal(size=16384).astype(np.float32)
    x, y = thin(np.arange(16384, dtype=np.int32), values, 300)
    assert len(x) <= 302 and y.max() == values.max() and y.min() == values.min() and (np.diff(x) > 0).all()


def test_runs_share_one_plotly_and_foreign_folders_get_none(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("one", "two"):
        probed(runs / name, layers=[1], dims=[0])
    script = runs / script_name()
    assert script.read_text() == get_plotlyjs() and len(list_runs(runs)) == 2
    assert sorted(path.name for path in runs.iterdir()) == sorted(["one", "two", script_name()])
    page = (runs / "two" / "figure.html").read_text()
    assert page.count("Plotly.newPlot") == 1 and len(page) < 200_000
    assert re.search(rf'<script src="\.\./{re.escape(script_name())}" onerror=', page)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    probed(tmp_path / "mine" / "run", layers=[1], dims=[0])
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["run", "thesis.tex"]
