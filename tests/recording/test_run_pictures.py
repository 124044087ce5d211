"""A run's still pictures say what the run says."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import weavescope as ws
from probe.commands.main import main as cli
from probe.errors import ProbeError
from probe.figures.run import HEIGHT, binned, crossings_svg, likelihood_svg
from probe.recording.folder import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "one"
    return ws.load("rope").probe("origin,rerope", layers="all", dims=range(20), length=1100, out=out)


def test_a_square_is_a_dimension_that_crosses(run: ws.Run) -> None:
    text = crossings_svg(run)
    ElementTree.fromstring(text)
    crossing = [row for row in run.thresholds if row.predicted is not None]
    assert len(re.findall(r"<title>layer \d", text)) == len(crossing) > 20
    assert all(f"layer {row.layer}, dim {row.dim}: {row.predicted}<" in text for row in crossing)
    for scheme in ("origin", "rerope"):
        count = sum(row.scheme == scheme for row in crossing)
        assert f"{scheme}: {count} of 80" in text


def test_a_line_is_the_mean_of_every_bin(run: ws.Run) -> None:
    x, y = binned(run.nll["origin"], 10)
    assert len(x) == 10 and y.mean() == pytest.approx(run.nll["origin"][1:].mean(), abs=0.01)
    text = likelihood_svg(run, ["origin", "rerope"])
    ElementTree.fromstring(text)
    lines = re.findall(r'<polyline points="([^"]+)"', text)
    ends = [float(line.split()[-1].split(",")[1]) for line in lines]
    assert len(lines) == 2 and ends[0] < ends[1] < HEIGHT  # `origin` ends higher: less likely
    with pytest.raises(ProbeError, match="unknown scheme 'stair'; known: origin, rerope"):
        likelihood_svg(run, ["stair"])


def test_the_command_writes_both(run: ws.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["figure", "run", str(run.path), str(tmp_path / "made"), "--scheme", "rerope"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in written] == ["one-likelihood.svg", "one-crossings.svg"]
    assert "origin" not in written[0].read_text()
    assert cli(["figure", "run", str(tmp_path), str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bands_are_means_of_the_likelihood(run: ws.Run) -> None:
    rows = run.likelihood([0, 0.5, 1, 2])
    assert [(row.scheme, row.start, row.stop) for row in rows[:3]] == [
        ("origin", 0, 256), ("origin", 256, 512), ("origin", 512, 1024),
    ]  # fmt: skip
    assert rows[0].nll == pytest.approx(run.nll["origin"][1:256].mean())
    assert rows[5].nll == pytest.approx(run.nll["rerope"][512:1024].mean()) and rows[5].standard_error > 0
    for edges in ([1], [1, 0.5], [-1, 1], [1, 9], [1, 1.001]):
        with pytest.raises(ProbeError, match="edges: expected ascending, from 0 to"):
            run.likelihood(edges)
    with pytest.raises(ProbeError, match="unknown scheme 'stair'"):
        run.likelihood(schemes=["stair"], edges=[0, 1])
