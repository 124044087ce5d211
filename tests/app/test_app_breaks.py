"""The first page on real runs: what it says and draws equals what the detectors say when asked by hand."""

import time

import numpy as np
import pytest

from app.answers import answers
from app.options import parse_options
from app.runs import EXAMPLES
from probe.models import embedded
from probe.recording.folder import Run
from probe.thresholds.detectors import DetectorSettings, Untold, detect
from probe.thresholds.measured import measured_failure
from probe.thresholds.verdicts import read_verdicts


@pytest.fixture
def run(runs, probe_into):
    return probe_into(runs / "first")


def html(app):
    return " ".join(one.proto.body for one in app.get("html"))


def lines(chart, axis):
    """Lines of a panel by scheme; the raw ones where it is smoothed."""
    return {
        trace["name"]: trace for trace in chart["data"] if trace.get("yaxis", "y") == axis and trace["mode"] == "lines"
    }


def by_hand(run, scheme, detector, settings):
    """Earliest prediction, how many, and the measured failure, without anything of the app or of the verdicts."""
    found = []
    for place in run.info.places():
        reference, series = (run.series(name, place.site, place.layer, place.dim) for name in ("origin", scheme))
        one = detect(detector, reference, series, run.info.window, settings)
        if not isinstance(one, Untold) and one.position is not None:
            found.append(one.position)
    measured = measured_failure(run.nll["origin"], run.nll[scheme], run.info.window, settings)
    return found, None if isinstance(measured, Untold) else measured.position


def assert_verdicts(text, run, detector, settings):
    """Every scheme's line against the detectors asked by hand; the counts of crossing dimensions by scheme."""
    counts, of = {}, len(run.info.places())
    for scheme in run.info.shown:
        found, measured = by_hand(run, scheme, detector, settings)
        (line,) = [part for part in text.split('role="listitem"') if f"<code>{scheme}</code>" in part]
        if found:
            assert f"{len(found)} of {of} recorded dimensions" in line and f"the first at {min(found):,}" in line
        else:
            assert f"Of {of} recorded dimensions none" in line
        assert (f"breaks at {measured:,}" in line) if measured is not None else ("breaks at" not in line)
        counts[scheme] = len(found)
    return counts


def test_the_verdict_says_what_the_detectors_say(run, open_app):
    app = open_app()
    assert not app.error and not app.exception
    assert_verdicts(html(app), run, "range", DetectorSettings())
    app.selectbox(key="run").set_value("rope-hello").run()
    counts = assert_verdicts(html(app), Run(EXAMPLES / "rope-hello"), "range", DetectorSettings())
    assert counts["origin"] > 0 == counts["rerope"], "both kinds of line are met"


def test_the_chart_holds_the_likelihood_and_the_dimensions_that_cross_first(open_app, charts):
    run = Run(EXAMPLES / "rope-hello")
    app = open_app(run="rope-hello")
    (chart,) = charts(app)
    notes = [note["text"] for note in chart["layout"]["annotations"]]
    told = [one for one in read_verdicts(run) if one.predicted is not None]
    first = min(told, key=lambda one: (one.scheme != "origin", one.predicted))
    assert any(first.place.title in note for note in notes)
    shown = lines(chart, "y2")
    raw = shown.get("rerope: raw", shown["rerope"])
    series = run.series("rerope", first.site, first.layer, first.dim)
    np.testing.assert_allclose(raw["y"], series[raw["x"]], rtol=1e-6)
    assert {int(series.argmin()), int(series.argmax())} <= set(raw["x"].tolist()), "thinning keeps the extremes"
    assert any("M = 512" in note for note in notes)
    marks = [trace for trace in chart["data"] if trace["mode"] == "markers" and trace.get("yaxis") == "y2"]
    told = {one.scheme: one.predicted for one in read_verdicts(run) if one.place.title == first.place.title}
    for mark in marks:
        scheme = mark["name"].partition(":")[0]
        assert list(mark["x"]) == [told[scheme]]


def test_other_dimensions_detectors_and_settings(run, open_app, charts):
    app = open_app(run="first")
    app.multiselect(key="dims first").set_value(["attn, layer 2, dim 7"]).run()
    (chart,) = charts(app)
    assert any("attn, layer 2, dim 7" in note["text"] for note in chart["layout"]["annotations"])
    assert "attn, layer 2, dim 7" in app.query_params["dim"]
    app.selectbox(key="detector").set_value("paper")
    app.number_input(key="burn_in first").set_value(10)
    app.slider(key="run_length first").set_value(3)
    app.slider(key="margin first").set_value(0.5).run()
    assert not app.error
    counts = assert_verdicts(html(app), run, "paper", DetectorSettings(10, 3, 0.5))
    assert max(counts.values()) > 0


def test_a_chart_is_small_however_long_the_run(runs, probe_into, open_app):
    probe_into(
        runs / "long", length=6000, layers=(1,), dims=(0, 1, 2, 3, 4, 5), sites=("resid",), schemes="origin,rerope"
    )
    app = open_app()
    app.multiselect(key="dims long").set_value([f"resid, layer 1, dim {dim}" for dim in range(6)]).run()
    (chart,) = app.get("plotly_chart")
    assert len(chart.proto.spec) < 100_000


def test_an_address_brings_back_run_and_dimensions(run, runs, probe_into, open_app):
    time.sleep(0.02)
    probe_into(runs / "second", sites=("resid",), dims=(7,), schemes="origin,stair(N=8,E=4)")
    app = open_app(run="first", dim=["resid, layer 2, dim 3"])
    assert app.selectbox(key="run").value == "first"
    assert app.multiselect(key="dims first").value == ["resid, layer 2, dim 3"]
    app.selectbox(key="run").set_value("second").run()
    assert "second" in app.query_params["run"]
    assert "stair(N=8,E=4)" in html(app)


def test_no_scheme_shown_is_said(run, open_app):
    app = open_app()
    group = next(one for one in app.get("button_group") if "origin" in one.options)
    group.set_value([]).run()
    assert "at least one scheme" in app.info[0].value and not app.exception


def test_an_input_that_cannot_tell_is_said(runs, probe_into, open_app):
    probe_into(runs / "short", length=64)
    app = open_app()
    assert not app.error
    assert "inside its window" in " ".join(one.value for one in app.markdown)
    assert "cannot" in html(app)


def test_answers_count_false_alarms():
    run = Run(EXAMPLES / "rope-hello")
    verdicts = list(read_verdicts(run, "paper"))
    found = answers(run.info, verdicts)
    assert any("false alarm" in one.more for one in found), "the paper's rule fires under rerope"
    for one in found:
        crossing = [row for row in verdicts if row.scheme == one.scheme and row.predicted is not None]
        assert (one.first is None) == (not crossing)
        assert ("false alarm" in one.more) == bool(crossing and one.state == "holds")


def test_the_shipped_runs_are_there_without_any_run(open_app, runs, charts):
    app = open_app()
    assert not app.error and not runs.exists()
    assert "rope-hello" in app.selectbox(key="run").options[0]
    assert "breaks at 876" in html(app)
    app.selectbox(key="run").set_value("smollm2-hello").run()
    assert "cannot tell" in " ".join(one.value for one in app.markdown)


def test_no_runs_yet_says_what_to_do(open_app, no_examples):
    app = open_app()
    assert not app.error
    assert "no runs" in app.info[0].value and "New run" in app.info[0].value
    assert "probe run" in app.code[0].value


def test_no_model_says_how_to_get_one(open_app, no_examples, monkeypatch):
    monkeypatch.setattr(embedded, "FOLDER", embedded.FOLDER / "nowhere")
    monkeypatch.setenv("WEAVESCOPE_CACHE", "/nowhere")
    app = open_app()
    app.button(key="new").click().run()
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
def test_a_broken_run_is_a_message_without_paths_and_the_others_can_be_chosen(
    run, runs, probe_into, open_app, file, content
):
    time.sleep(0.02)
    broken = probe_into(runs / "broken").path
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_bytes(content)
    app = open_app(run="broken")
    assert len(app.error) == 1
    assert "broken" in app.error[0].value and str(runs) not in app.error[0].value
    assert "\n" not in app.error[0].value
    assert not app.get("plotly_chart")
    app.selectbox(key="run").set_value("first").run()
    assert not app.error
    assert app.get("plotly_chart")


def test_a_run_whose_files_do_not_belong_together_is_refused(run, runs, probe_into, open_app):
    other = probe_into(runs / "other", dims=(0,)).path
    (run.path / "trace.safetensors").write_bytes((other / "trace.safetensors").read_bytes())
    assert "expected (160, 3)" in open_app(run="first").error[0].value


@pytest.mark.parametrize("name", ["../outside", "..", "/etc", "first/../../outside", "link", "gone", "<b>x</b>"])
def test_an_address_opens_nothing_outside_the_runs_root(run, runs, probe_into, open_app, name):
    outside = probe_into(runs.parent / "outside")
    assert Run(outside.path).info
    (runs / "link").symlink_to(outside.path, target_is_directory=True)
    app = open_app(run=name)
    assert "link" not in app.selectbox(key="run").options
    assert app.selectbox(key="run").value == "first"
    assert "There is no run" in app.error[0].value
    assert app.get("plotly_chart"), "the run that is shown instead is drawn"


def test_a_file_of_a_run_that_links_outside_is_not_read(run, runs, probe_into, open_app):
    outside = probe_into(runs.parent / "outside").path
    (run.path / "nll.parquet").unlink()
    (run.path / "nll.parquet").symlink_to(outside / "nll.parquet")
    assert "nothing outside it is read" in open_app().error[0].value


def test_names_from_a_run_are_no_markup(runs, probe_into, open_app):
    info = probe_into(runs / "first").path / "run.json"
    info.write_text(info.read_text().replace("token:5", "word:<img src=x onerror=alert(1)>[a](javascript:b)"))
    app = open_app()
    text = " ".join([html(app), *(one.value for one in app.markdown)])
    assert "<img" not in html(app)
    assert "`word:<img src=x onerror=alert(1)>[a](javascript:b)`" in text


@pytest.mark.parametrize(
    ("options", "expected"), [(["--rnus", "x"], "runs DIR"), (["--runs"], "expected one argument")]
)
def test_bad_launch_options_are_a_message(open_app, options, expected):
    assert expected in open_app(*options).error[0].value


def test_a_runs_root_that_is_a_file_is_a_message(runs, open_app):
    runs.write_text("")
    assert "expected a folder" in open_app().error[0].value


def test_the_environment_names_the_runs_root_and_models(tmp_path):
    options = parse_options([], {"WEAVESCOPE_RUNS": str(tmp_path), "WEAVESCOPE_MODELS": "a:b"})
    assert (options.runs, options.models) == (tmp_path.resolve(), ("a", "b"))
    assert parse_options(["--model", "c"], {"WEAVESCOPE_MODELS": "a"}).models == ("c",)


@pytest.mark.parametrize("page", [None, "where"])
def test_a_run_judged_as_one_shows_single_dimensions(open_app, runs, probe_into, page):
    """Its own detector has no dimensions to draw: the first that has is chosen, and no other is offered."""
    probe_into(runs / "joint", detector="multivariate")
    app = open_app(page=page)
    assert not app.exception
    [chosen] = [one for one in app.selectbox if one.label == "Detector"]
    assert chosen.value == "range" and list(chosen.options) == ["range", "paper", "change"]
