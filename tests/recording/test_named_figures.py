"""The paper's figures by their numbers: what the maps show, by hand, and the command that makes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import weavescope as ws
from probe.commands.figure_named import NUMBERS
from probe.commands.main import main
from probe.errors import FieldError, ProbeError
from probe.figures.maps import FURTHEST, MOST_LAYERS, STEPS, chosen_layers, field, maps_figure, means
from probe.figures.named import FIGURES, write_figure
from probe.figures.page import script_name
from probe.recording.folder import Run
from probe.thresholds.detectors import DetectorSettings

SETTINGS = DetectorSettings(burn_in=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("maps") / "run"
    made = ws.load("rope").probe(
        "origin,rerope", layers="all", dims=range(9), input="word:hello", length=768, out=folder
    )
    return Run(made.path)


def test_a_map_is_of_robust_departures_from_the_trained_window() -> None:
    rng = np.random.default_rng(0)
    reference, values = rng.normal(size=(300, 3)), rng.normal(size=(500, 3)) * 3
    made = field(values, reference, 200, SETTINGS, "departure")
    assert made.shape == (3, 128) and made.dtype == np.int8
    inside = reference[:200]
    median = np.median(inside, 0)
    scale = 1.4826 * np.median(np.abs(inside - median), 0)
    expected = (means(values[200:]) - median) / scale
    assert np.abs(made.T / STEPS - np.clip(expected, -FURTHEST, FURTHEST)).max() <= 0.5 / STEPS + 1e-9
    signed = field(values, reference, 200, SETTINGS, "value")
    assert (
        np.sign(signed) * np.sign(np.rint(STEPS * FURTHEST * means(values[200:]).T / np.abs(inside).max(0)[:, None]))
        >= 0
    ).all()


def test_means_are_of_positions_side_by_side() -> None:
    values = np.arange(10.0)[:, None]
    assert means(values, 3)[:, 0].tolist() == [1.0, 4.0, 7.5] and means(values, 20)[:, 0].tolist() == list(range(10))


def test_a_dimension_that_never_moved_has_a_colour_all_the_same() -> None:
    still = np.ones((40, 2))
    moved = np.concatenate([still, np.array([[1.0, 2.0]] * 20)])
    made = field(moved, moved, 40, SETTINGS, "departure")
    assert (made[0] == 0).all() and (made[1] == STEPS * FURTHEST).all()


def test_few_layers_are_drawn_of_many() -> None:
    assert chosen_layers(range(1, 5), None) == [1, 2, 3, 4]
    found = chosen_layers(range(1, 31), None)
    assert len(found) == MOST_LAYERS and (found[0], found[-1]) == (1, 30)
    with pytest.raises(FieldError, match="layers: expected recorded ones, 1, 2, got 3"):
        chosen_layers((1, 2), (3,))


def test_a_figure_has_a_field_per_layer_and_scheme_past_the_window(run: Run) -> None:
    figure = maps_figure(run)
    assert len(figure.data) == 2 * len(run.info.layers)
    for one in figure.data:
        assert one.z.shape == (9, 128) and one.x[0] >= 512 and one.x[-1] < 768
    origin, rerope = (np.abs(one.z.astype(float)).mean() for one in figure.data[:2])
    assert origin > rerope  # the paper's point, on a repeated word
    assert len(maps_figure(run, ["rerope"], [2]).data) == 1
    with pytest.raises(ProbeError, match="unknown scheme 'mesa'"):
        maps_figure(run, ["mesa"])
    with pytest.raises(ProbeError, match="unknown what is drawn 'sign'"):
        maps_figure(run, what="sign")


def test_an_input_inside_the_window_has_no_map(tmp_path: Path) -> None:
    made = ws.load("rope").probe("origin", layers=[1], dims=[0], length=300, out=tmp_path / "short")
    with pytest.raises(FieldError, match="its 300 tokens do not reach past M = 512"):
        maps_figure(Run(made.path))


def test_help_and_table_name_the_same_figures() -> None:
    assert list(NUMBERS) == list(FIGURES)


def test_the_command_makes_a_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "figure",
        "11",
        str(tmp_path),
        "--scheme",
        "origin,rerope",
        "--layer",
        "1,3",
        "--dim",
        "0-7",
        "--length",
        "640",
    ]
    assert main([*asked, "--quiet"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "figure-11.html")]
    page = (tmp_path / "figure-11.html").read_text()
    assert (tmp_path / script_name()).exists() and f'src="{script_name()}"' in page and "layer 3" in page
    first = Run(tmp_path / "run-11-rope").info.provenance.created
    assert main([*asked, "--quiet", "--values", "value"]) == 0
    assert Run(tmp_path / "run-11-rope").info.provenance.created == first
    assert main([*asked[:-1], "700", "--quiet"]) == 0  # another length is another run
    assert Run(tmp_path / "run-11-rope").info.input.length == 700
    capsys.readouterr()
    drawn = ["figure", "2", str(tmp_path / "other"), "--run", str(tmp_path / "run-11-rope")]
    assert main(drawn) == 0 and (tmp_path / "other" / "figure-2.html").exists()
    capsys.readouterr()
    assert main(["figure", "12", str(tmp_path), "--run", str(tmp_path / "nowhere")]) == 2
    assert "expected a run folder" in capsys.readouterr().err
    assert main([*drawn, "--format", "jpg"]) == 2
    assert "--format: expected some of html, svg, png, got jpg" in capsys.readouterr().err


def test_stills_are_made_where_a_browser_is(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome")):
        pytest.skip("no Chromium is installed")
    svg, png = write_figure(maps_figure(run, ["origin"], [1]), tmp_path, "maps", ["svg", "png"])
    assert svg.read_text().startswith("<svg") and png.read_bytes().startswith(b"\x89PNG")


def test_without_a_browser_a_still_is_refused_in_a_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = maps_figure(run, ["origin"], [1])

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no browser\nat all")

    monkeypatch.setattr(type(figure), "write_image", fails)
    with pytest.raises(FieldError, match=r"format: png needs kaleido and a Chromium.*\(no browser\)"):
        write_figure(figure, tmp_path, "maps", ["png"])
