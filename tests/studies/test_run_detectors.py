"""Runs judged by the detectors that a run does not keep by itself: what is written, checked, drawn and judged anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import weavescope as ws
from probe.commands.main import main
from probe.figures.run import crossings_svg
from probe.figures.thresholds import threshold_figure
from probe.recording.folder import Run
from probe.studies.keeping import check, repair
from probe.thresholds.detectors import DETECTORS, Detection, detect, single_detectors
from probe.thresholds.verdicts import settings_of


@pytest.fixture(scope="module", params=["change", "multivariate"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ws.Run:
    return ws.load("rope-b1e4").probe(
        "origin,rerope", layers="all", dims=range(6), input="heldout", samples=2, length=512,
        detector=request.param, out=tmp_path_factory.mktemp("runs") / request.param,
    )  # fmt: skip


def test_a_run_keeps_the_quick_detectors_and_its_own(run: ws.Run) -> None:
    rows = Run(run.path).table("thresholds")
    assert {row["detector"] for row in rows} == {"range", "paper", run.info.detector}
    assert check(run.path).whole
    mine = run.thresholds
    joint = DETECTORS[run.info.detector].joint
    assert len(mine) == 2 * len(run.info.layers) * (1 if joint else 6)
    assert {row.dim for row in mine} == ({None} if joint else set(range(6)))
    assert list(mine) == list(run.judge()) and len(mine.to_pandas()) == len(mine)


def test_verdicts_are_those_of_the_detector_by_hand(run: ws.Run) -> None:
    found, settings = Run(run.path), settings_of(run.info)
    for row in run.thresholds:
        reference, series = (
            found.trace[f"{name}/resid.{row.layer}"].astype(np.float64) for name in ("origin", row.scheme)
        )
        if row.dim is not None:
            reference, series = reference[:, row.dim], series[:, row.dim]
        one = detect(row.detector, reference, series, 256, settings)
        assert isinstance(one, Detection) and one.position == row.predicted


def test_every_detector_judges_every_run(run: ws.Run) -> None:
    for name, row in DETECTORS.items():
        judged = run.judge(name)
        assert len(judged) == 2 * len(run.info.layers) * (1 if row.joint else 6)
        one = judged[-1].place
        assert list(run.judge(name, places=[one])) == [
            each for each in judged if each.place.under("x") == one.under("x")
        ]


def test_pictures_are_of_single_dimensions(run: ws.Run) -> None:
    figure = threshold_figure(Run(run.path))
    shown = run.info.detector if run.info.detector in single_detectors() else "range"
    assert f"detector {shown}" in figure.layout.title.text
    assert crossings_svg(Run(run.path)).startswith("<svg")


def test_a_table_that_lost_rows_is_mended(run: ws.Run) -> None:
    before = Run(run.path).table("thresholds")
    (run.path / "thresholds.parquet").unlink()
    assert not check(run.path).whole and repair(run.path).whole
    assert Run(run.path).table("thresholds") == before


def test_the_command_says_what_it_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "--model", "rope-b1e4", "--length", "400", "--layer", "1-2", "--dim", "0-3", "--quiet"]
    assert main([*asked, "--detector", "multivariate", "--out", str(tmp_path / "r")]) == 0
    said = capsys.readouterr().out
    assert "all as one" in said and "of 2 layers" in said
