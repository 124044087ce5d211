"""The first page on real runs: what it shows equals what the detectors say when asked by hand."""

import base64
import csv
import io
import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from app.options import parse_options
from app.views.thresholds import verdicts_csv
from probe.models import embedded
from probe.recording.folder import Run
from probe.recording.place import Place
from probe.thresholds.detectors import DetectorSettings, Untold, detect
from probe.thresholds.measured import measured_failure
from probe.thresholds.verdicts import judge_run, read_verdicts


@pytest.fixture
def run(runs, probe_into):
    return probe_into(runs / "first")


def figure(app):
    """The chart as the browser gets it."""
    (chart,) = app.get("plotly_chart")
    return json.loads(chart.proto.spec)


def line(app, scheme):
    """A scheme's values in the upper panel; the raw ones where it is noisy."""
    upper = {trace["name"]: trace["y"] for trace in figure(app)["data"] if trace.get("yaxis", "y") == "y"}
    return decoded(upper.get(f"{scheme}: raw", upper[scheme]))


def decoded(values):
    if isinstance(values, dict):  # plotly sends arrays as base64
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return np.array(values)


def titles(app):
    return [note["text"] for note in figure(app)["layout"]["annotations"]]


def names(app):
    """What stands at the lines' ends."""
    return [trace["text"][0].strip() for trace in figure(app)["data"] if trace.get("text")]


def by_hand(run, scheme, place, detector, settings):
    """Predicted and measured failure, computed without anything of the app or of the rows module."""
    reference, series = (run.series(name, *place) for name in ("origin", scheme))
    window = run.info.window
    found = detect(detector, reference, series, window, settings)
    measured = measured_failure(run.nll["origin"], run.nll[scheme], window, settings)
    return found, None if isinstance(measured, Untold) else measured.position


def assert_table(app, run, place, detector, settings, schemes):
    table = app.dataframe[0].value
    assert list(table["scheme"]) == schemes
    for _, row in table.iterrows():
        found, measured = by_hand(run, row["scheme"], place, detector, settings)
        assert row["threshold"] == pytest.approx(found.threshold, abs=1e-12)
        assert row["margin"] == pytest.approx(found.margin, abs=1e-9)
        assert row["fails"] == f"{found.direction} H"
        for name, expected in (("predicted", found.position), ("measured", measured)):
            assert row[name] in ("none", "cannot tell") if expected is None else row[name] == str(expected)


def test_the_page_shows_the_run_as_it_was_made(run, open_app):
    app = open_app()
    assert not app.error
    assert not app.exception
    assert app.title[0].value == "Thresholds"
    schemes = ["origin", "dynamic-ntk", "rerope"]
    assert_table(app, run, ("resid", 1, 0), "range", DetectorSettings(), schemes)
    assert "resid, layer 1, dim 0" in titles(app)
    for scheme in schemes:
        assert any(name.startswith(scheme) for name in names(app))
        np.testing.assert_allclose(line(app, scheme), run.series(scheme, "resid", 1, 0))
    facts = " ".join(caption.value for caption in app.sidebar.caption)
    for fact in ("tiny", "64 tokens", "160 tokens", "token:5", "range", "torch", "Commit"):
        assert fact in facts


def test_choosing_a_place_and_a_detector_changes_figure_and_table(run, open_app):
    app = open_app()
    app.selectbox(key="site").set_value("attn")
    app.select_slider(key="layer").set_value(2)
    app.select_slider(key="dim").set_value(7)
    app.selectbox(key="detector first").set_value("paper").run()
    schemes = ["origin", "dynamic-ntk", "rerope"]
    assert "attn, layer 2, dim 7" in titles(app)
    np.testing.assert_allclose(line(app, "rerope"), run.series("rerope", "attn", 2, 7))
    assert_table(app, run, ("attn", 2, 7), "paper", DetectorSettings(), schemes)

    app.number_input(key="burn_in first").set_value(10)
    app.slider(key="run_length first").set_value(3)
    app.slider(key="margin first").set_value(0.5)
    app.multiselect(key="schemes first").set_value(["rerope", "origin"]).run()
    assert not app.error
    assert_table(app, run, ("attn", 2, 7), "paper", DetectorSettings(10, 3, 0.5), ["origin", "rerope"])
    assert not any(name.startswith("dynamic-ntk") for name in names(app))


def test_the_reading_says_what_the_table_says(run, open_app):
    app = open_app()
    text = " ".join(markdown.value for markdown in app.main.markdown)
    for one in judge_run(run, "range", DetectorSettings(), places=[Place("origin", "resid", 1, 0)]):
        assert f"Under `{one.scheme}`" in text
        for position in (one.predicted, one.measured):
            assert position is None or str(position) in text


def test_no_scheme_shown_is_said(run, open_app):
    app = open_app()
    app.multiselect(key="schemes first").set_value([]).run()
    assert "at least one scheme" in app.info[0].value
    assert not app.exception


def test_a_place_survives_a_change_of_run_where_it_can(run, runs, probe_into, open_app):
    time.sleep(0.02)
    probe_into(runs / "second", sites=("resid",), dims=(7,), schemes="origin,stair(N=8,E=4)")
    app = open_app(run="first")
    app.select_slider(key="dim").set_value(7)
    app.select_slider(key="layer").set_value(2).run()
    assert app.selectbox(key="run").options == ["second", "first"]
    app.selectbox(key="run").set_value("second").run()
    assert not app.error
    assert "resid, layer 2, dim 7" in titles(app)
    assert list(app.dataframe[0].value["scheme"]) == ["origin", "stair(N=8,E=4)"]


def test_rows_of_a_run_equal_what_the_run_wrote(run):
    """The rows recomputed from the folder are those that the runner wrote, for both detectors."""
    assert judge_run(run, "range", DetectorSettings()) == read_verdicts(run)
    written = pq.read_table(run.path / "thresholds.parquet").to_pylist()
    again = [row for name in ("range", "paper") for row in judge_run(run, name, DetectorSettings()).to_json()]
    assert again == [{name: row[name] for name in again[0]} for row in written]


def test_downloads_hold_all_rows_and_the_figure(run):
    verdicts = judge_run(run, "range", DetectorSettings())
    read = list(csv.DictReader(io.StringIO(verdicts_csv(verdicts))))
    assert len(read) == 3 * 2 * 2 * 3
    expected = ["" if one.predicted is None else str(one.predicted) for one in verdicts]
    assert [row["predicted"] for row in read] == expected


def test_a_run_that_does_not_reach_past_the_window_has_no_threshold(runs, probe_into, open_app):
    probe_into(runs / "short", length=64, detector="paper")
    app = open_app()
    assert not app.error
    assert app.dataframe[0].value["threshold"].isna().all()
    assert any("does not reach past M" in markdown.value for markdown in app.main.markdown)


def test_no_runs_yet_says_what_to_do(open_app, tiny_folder):
    app = open_app("--model", tiny_folder)
    assert not app.error
    assert "no runs" in app.info[0].value
    assert "New run" in app.info[0].value
    assert "probe run" in app.code[0].value


def test_no_runs_and_no_model_says_how_to_get_one(open_app, monkeypatch):
    monkeypatch.setattr(embedded, "FOLDER", embedded.FOLDER / "nowhere")
    monkeypatch.setenv("WEAVESCOPE_CACHE", "/nowhere")
    app = open_app()
    assert not app.error
    assert any("probe train rope" in info.value for info in app.info)
    assert any("--model FOLDER" in info.value for info in app.info)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", b'{"format": 1, "mod'),
        ("run.json", b'{"format": 99}'),
        ("run.json", b'{"format": 1}'),
        ("run.json", b"\xff\xfe"),
        ("trace.safetensors", b"nonsense"),
        ("nll.parquet", b"nonsense"),
        ("trace.safetensors", None),
    ],
)
def test_a_broken_run_is_a_message_and_the_others_can_be_chosen(run, runs, probe_into, open_app, file, content):
    time.sleep(0.02)
    broken = probe_into(runs / "broken").path
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_bytes(content)
    app = open_app(run="broken")
    assert len(app.error) == 1
    assert "broken" in app.error[0].value
    assert "\n" not in app.error[0].value
    assert not app.get("plotly_chart")
    app.selectbox(key="run").set_value("first").run()
    assert not app.error
    assert app.get("plotly_chart")


def test_a_run_whose_files_do_not_belong_together_is_refused(run, runs, probe_into, open_app):
    other = probe_into(runs / "other", dims=(0,)).path
    (run.path / "trace.safetensors").write_bytes((other / "trace.safetensors").read_bytes())
    app = open_app(run="first")
    assert "expected (160, 3)" in app.error[0].value


@pytest.mark.parametrize("name", ["../outside", "..", "/etc", "first/../../outside", "link"])
def test_nothing_outside_the_runs_root_is_read(run, runs, probe_into, open_app, name):
    outside = probe_into(runs.parent / "outside")
    assert Run(outside.path).info
    (runs / "link").symlink_to(outside.path, target_is_directory=True)
    app = open_app(run=name)
    assert app.selectbox(key="run").options == ["first"]
    assert app.selectbox(key="run").value == "first"
    assert "nothing outside it is read" in app.error[0].value


def test_a_file_of_a_run_that_links_outside_is_not_read(run, runs, probe_into, open_app):
    outside = probe_into(runs.parent / "outside").path
    (run.path / "nll.parquet").unlink()
    (run.path / "nll.parquet").symlink_to(outside / "nll.parquet")
    app = open_app()
    assert "nothing outside it is read" in app.error[0].value


def test_a_run_that_is_not_there_is_said(run, open_app):
    app = open_app(run="gone")
    assert "no such run" in app.error[0].value
    assert app.selectbox(key="run").value == "first"


@pytest.mark.parametrize(
    ("options", "expected"), [(["--rnus", "x"], "runs DIR"), (["--runs"], "expected one argument")]
)
def test_bad_launch_options_are_a_message(open_app, options, expected):
    app = open_app(*options)
    assert expected in app.error[0].value


def test_a_runs_root_that_is_a_file_is_a_message(runs, open_app):
    runs.write_text("")
    assert "expected a folder" in open_app().error[0].value


def test_the_environment_names_the_runs_root_and_models(tmp_path):
    options = parse_options([], {"WEAVESCOPE_RUNS": str(tmp_path), "WEAVESCOPE_MODELS": "a:b"})
    assert (options.runs, options.models) == (tmp_path.resolve(), ("a", "b"))
    assert parse_options(["--model", "c"], {"WEAVESCOPE_MODELS": "a"}).models == ("c",)
