"""The other pages on real runs and results."""

import csv
import io
import json

import numpy as np
import pytest

from app.runs import EXAMPLES, delete, rename
from app.scores import accuracy, depths, effective_context
from app.views.manage import verdicts_csv
from constructions.closed_form import exact_crossing
from constructions.weave import Clamp, Linear, Stair
from probe.errors import ProbeError
from probe.recording.folder import Run
from probe.recording.repeat import command, python
from probe.schemes import parse_scheme
from probe.thresholds.detectors import DetectorSettings
from probe.thresholds.verdicts import judge_run, read_verdicts


@pytest.fixture
def run(runs, probe_into):
    return probe_into(runs / "first")


def said(app):
    return " ".join(one.value for one in [*app.markdown, *app.caption])


def test_the_map_has_every_recorded_dimension_once(open_app, charts):
    run = Run(EXAMPLES / "rope-hello")
    app = open_app(page="where", run="rope-hello")
    assert not app.error and not app.exception
    for chart, scheme in zip(charts(app)[:2], ("origin", "rerope"), strict=True):
        mine = [one for one in read_verdicts(run) if one.scheme == scheme]
        cells = {
            tuple(cell): colour
            for trace in chart["data"]
            for cell, colour in zip(
                trace["customdata"],
                trace["marker"]["color"] if not isinstance(trace["marker"]["color"], str) else [None] * len(trace["x"]),
                strict=True,
            )
        }
        assert cells == {(one.layer, one.dim): one.predicted for one in mine}


def test_the_causes_of_a_model_are_drawn_or_offered(open_app, charts, run):
    app = open_app(page="where", run="rope-hello")
    rises = [chart for chart in charts(app) if "rise" in chart["layout"]["yaxis"]["title"]["text"]]
    result = json.loads((EXAMPLES / "causes-rope.json").read_text())
    expected = [row["rise"] for row in result["rows"] if (row["scheme"], row["cause"]) == ("origin", "all")]
    (measured,) = [trace for trace in rises[0]["data"] if trace["name"] == "measured"]
    assert list(measured["y"]) == expected
    app = open_app(page="where", run="first")
    assert any("Not asked of" in one.value for one in app.info)


def test_the_rise_of_every_frequency_is_drawn_over_its_turns(open_app, charts):
    app = open_app(page="where", run="rope-hello")
    result = json.loads((EXAMPLES / "frequencies-rope.json").read_text())
    (chart,) = [one for one in charts(app) if "rotary frequency" in one["layout"]["xaxis"]["title"]["text"]]
    for trace, what in zip(chart["data"], ("alone", "spared"), strict=True):
        rows = [row for row in result["rows"] if row["what"] == what]
        assert list(trace["y"]) == [row["rise"] for row in rows]
    # The frequencies of base 10000 that turn less than once within 512 tokens.
    slow = [j for j in range(16) if 512 * 10000 ** (-j / 16) / (2 * np.pi) < 1]
    (band,) = [one for one in chart["layout"]["shapes"] if one["type"] == "rect"]
    assert (band["x0"], band["x1"]) == (slow[0] - 0.5, slow[-1] + 0.5)


@pytest.mark.parametrize(("N", "E", "slope"), [(4, 4, 1.0), (3, 2, 0.5), (2, 6, 1.5)])
def test_the_theory_page_says_the_exact_horizon(open_app, N, E, slope):
    app = open_app(page="theory")
    app.select_slider(key="positions").set_value(4096)
    app.slider(key="N").set_value(N)
    app.slider(key="E").set_value(E)
    app.slider(key="slope").set_value(slope)
    app.slider(key="M").set_value(16).run()
    assert not app.error and not app.exception
    (table,) = [one.value for one in app.markdown if one.value.startswith("| | o first")]
    for name, weave in (("PE", Linear()), ("ReRoPE", Clamp(N)), ("Stair PE", Stair(N, E))):
        (line,) = [line for line in table.splitlines() if line.startswith(f"| **{name}**")]
        exact = exact_crossing(weave, 17, slope).first_failure
        assert (f"T = {exact:,} " in line) if exact < 4096 else "beyond 4,096" in line


def test_a_weave_of_ones_own_equal_to_rerope_has_its_curve(open_app, charts):
    app = open_app(page="theory")
    app.text_input(key="W").set_value("min(d, N)").run()
    (chart,) = charts(app)
    curves = {trace["name"]: trace for trace in chart["data"] if trace["mode"] == "lines"}
    np.testing.assert_array_equal(curves["W(d)"]["y"], curves["ReRoPE"]["y"])
    app.text_input(key="W").set_value("__import__('os')").run()
    assert "W(d)" in app.error[0].value and not app.exception
    assert app.get("plotly_chart"), "the theorems' curves stay"


def test_the_toy_transformers_lie_on_their_curves(open_app, charts):
    app = open_app(page="theory")
    app.button(key="toys_run").click().run(timeout=180)
    assert not app.error and not app.exception
    (chart,) = charts(app)
    curves = {trace["name"]: trace for trace in chart["data"] if "name" in trace}
    for name in ("NoPE", "ReRoPE", "Stair PE"):
        measured, formula = curves[f"{name}: toy transformer"], curves[name]
        on = np.isin(measured["x"], formula["x"])
        at = np.searchsorted(formula["x"], measured["x"][on])
        np.testing.assert_allclose(measured["y"][on], formula["y"][at], rtol=1e-4, atol=1e-4)
        assert on.sum() > 20


def test_the_matrix_is_the_weave_of_every_pair_that_is_seen(open_app, charts):
    app = open_app(page="sees")
    spec = "lm-infinite(n_global=2,n_local=12)"
    app.selectbox(key="scheme").set_value(spec).run()
    assert not app.error and not app.exception
    chart = charts(app)[0]
    values = np.array(chart["data"][0]["z"]).reshape(24, 24)
    scheme = parse_scheme(spec, 16)
    weave, visibility = scheme.weave_at(24), scheme.visibility_at(24)
    for t in range(24):
        for i in range(24):
            if visibility.sees(t, i):
                assert values[t, i] == weave(t, i)
            else:
                assert np.isnan(values[t, i])


def test_a_scheme_that_does_not_parse_is_a_message(open_app):
    app = open_app(page="sees", scheme="magic(N=3")
    assert "magic" in app.error[0].value and not app.exception


def test_results_by_length_and_depth_are_those_of_the_table(open_app, charts):
    app = open_app(page="works", model="rope")
    assert not app.error and not app.exception
    result = json.loads((EXAMPLES / "passkey-rope.json").read_text())
    chart = charts(app)[0]
    for trace in chart["data"]:
        rows = sorted((row for row in result["rows"] if row["scheme"] == trace["name"]), key=lambda row: row["length"])
        assert list(trace["y"]) == pytest.approx([100 * row["accuracy"] for row in rows])
        above = [100 * (row["high"] - row["accuracy"]) for row in rows]
        assert list(trace["error_y"]["array"]) == pytest.approx(above)
    assert "right answers (%)" in str(chart["layout"])


def test_a_depth_map_counts_the_samples_of_each_fifth():
    from app.look import LIGHT

    hits = [[0.05, True], [0.1, False], [0.5, True], [1.0, True]]
    figure = depths([{"scheme": "a", "length": 8, "hits": hits}], "a", LIGHT)
    assert [row[0] for row in figure["data"][0]["text"]] == ["1 of 2", "", "1 of 1", "", "1 of 1"]
    assert depths([{"scheme": "a", "length": 8}], "a", LIGHT) is None


def row(scheme, length, accuracy):
    return {"scheme": scheme, "length": length, "accuracy": accuracy}


def test_effective_context_ends_before_the_first_length_that_fails():
    settings = {"window": 64, "task": "passkey", "samples": 10}
    rows = [row("origin", 32, 0.9), row("origin", 64, 1.0), row("origin", 128, 0.1), row("origin", 256, 0.9),
            row("a", 32, 0.5), row("a", 64, 0.6), row("a", 128, 0.5), row("a", 256, 0.5),
            row("b", 32, 0.0)]  # fmt: skip
    found = {one["scheme"]: one["works up to"] for one in effective_context({"settings": settings, "rows": rows})}
    assert found == {"origin": "64", "a": "256, the longest measured", "b": "below 32"}
    told = effective_context({"settings": settings, "rows": [row("a", 32, 1.0)]})
    assert "cannot tell" in told[0]["works up to"]
    nll = [{"scheme": "origin", "length": 64, "nll": 2.0}, {"scheme": "origin", "length": 128, "nll": 2.3},
           {"scheme": "a", "length": 128, "nll": 2.2}]  # fmt: skip
    found = effective_context({"settings": {"window": 64, "task": "nll"}, "rows": nll})
    assert [one["works up to"] for one in found] == ["64", "128, the longest measured"]


def test_an_accuracy_without_an_interval_gets_one_from_its_samples():
    from app.look import LIGHT
    from probe.tasks.intervals import wilson

    result = {"settings": {"window": 64, "samples": 10}, "rows": [row("a", 32, 0.5), row("a", 64, 1.0)]}
    (trace,) = accuracy(result, ["a"], LIGHT)["data"]
    assert trace["error_y"]["arrayminus"][0] == pytest.approx(100 * (0.5 - wilson(5, 10)[0]))


def test_results_of_strangers_and_broken_files_are_left_out(open_app, runs):
    runs.mkdir()
    (runs / "broken.json").write_text("{")
    (runs / "list.json").write_text("[1]")
    (runs / "other.json").write_text('{"kind": "eval", "settings": {}, "provenance": {}, "rows": []}')
    app = open_app(page="works")
    assert not app.error and not app.exception


def test_the_list_finds_renames_and_deletes(run, runs, open_app, probe_into):
    probe_into(runs / "second", schemes="origin,stair(N=8,E=4)")
    app = open_app(page="manage", run="first")
    assert not app.error and not app.exception
    names = list(app.dataframe[0].value["run"])
    assert {"first", "second", "rope-hello"} <= set(names)
    app.text_input(key="find").set_value("STAIR tiny").run()
    assert list(app.dataframe[0].value["run"]) == ["second"]
    app.text_input(key="find").set_value("nothing like it").run()
    assert any("No run has" in one.value for one in app.info)
    app.text_input(key="find").set_value("").run()

    app.text_input(key="rename first").set_value("renamed")
    next(one for one in app.button if one.label == "Rename").click().run()
    assert not app.error
    assert (runs / "renamed" / "run.json").is_file() and not (runs / "first").exists()
    assert app.selectbox(key="run").value == "renamed"

    app.button(key="delete").click().run()
    assert any("cannot be brought back" in one.value for one in app.markdown)
    assert (runs / "renamed").is_dir(), "not before it is confirmed"


@pytest.mark.parametrize("name", ["..", "", "first/..", "gone", "link", "rope-hello"])
def test_nothing_but_a_run_of_ones_own_is_deleted(run, runs, probe_into, name):
    outside = probe_into(runs.parent / "outside").path
    (runs / "link").symlink_to(outside, target_is_directory=True)
    with pytest.raises(ProbeError, match="yours to change"):
        delete(runs, name)
    assert (outside / "run.json").is_file() and (runs / "first" / "run.json").is_file()
    delete(runs, "first")
    assert not (runs / "first").exists()


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "", "second", "x" * 200, "a\nb"])
def test_a_name_that_leads_elsewhere_or_is_taken_is_refused(run, runs, probe_into, name):
    probe_into(runs / "second")
    with pytest.raises(ProbeError, match="name"):
        rename(runs, "first", name)
    assert (runs / "first" / "run.json").is_file()


def test_examples_cannot_be_changed(runs, open_app):
    app = open_app(page="manage", run="rope-hello")
    assert not [one for one in app.button if one.label == "Rename"]
    with pytest.raises(ProbeError, match="yours to change"):
        rename(runs, "rope-hello", "mine")


def test_two_runs_are_compared_under_a_common_scheme(run, runs, probe_into, open_app, charts):
    probe_into(runs / "second", length=200)
    app = open_app(page="manage", run="first")
    app.selectbox(key="other").set_value("second").run()
    chart = charts(app)[-1]
    assert {trace["name"] for trace in chart["data"] if trace["mode"] == "lines"} == {"first", "second"}


def test_a_broken_run_is_listed_with_its_reason_and_can_be_deleted(run, runs, open_app):
    (runs / "bad").mkdir()
    (runs / "bad" / "run.json").write_text("{")
    app = open_app(page="manage", run="first")
    assert any("'bad'" in one.value for one in app.error)
    app.button(key="delete broken bad").click().run()
    assert any("`bad` takes" in one.value for one in app.markdown)


def test_downloads_hold_all_rows(run):
    verdicts = judge_run(run, "range", DetectorSettings())
    read = list(csv.DictReader(io.StringIO(verdicts_csv(verdicts))))
    assert len(read) == 3 * 2 * 2 * 3
    assert [row["predicted"] for row in read] == [
        "" if one.predicted is None else str(one.predicted) for one in verdicts
    ]


def test_the_command_and_the_python_make_the_same_run(run, tiny_folder, tmp_path):
    import shlex

    from probe.commands.main import main

    line = shlex.split(command(run.info))
    assert line[0] == "probe"
    assert main([*line[1:], "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert read_verdicts(Run(tmp_path / "again")) == read_verdicts(run)
    space: dict = {}
    exec(python(run.info), space)
    assert list(space["run"].thresholds) == list(read_verdicts(run))


def test_ranges_of_numbers_are_short():
    from probe.recording.repeat import _numbers

    assert _numbers((1, 2, 3, 7, 9, 10)) == "1-3,7,9-10"


def test_shipped_results_and_runs_can_all_be_read():
    from probe.results import read

    assert {read(path)["kind"] for path in EXAMPLES.glob("*.json")} >= {"eval", "causes", "bench"}
    for path in EXAMPLES.glob("*/run.json"):
        run = Run(path.parent)
        assert run.info.provenance.git_commit and not run.info.provenance.git_dirty
        again = judge_run(run, run.info.detector, DetectorSettings())
        assert again == read_verdicts(run)
    assert sum(file.stat().st_size for file in EXAMPLES.rglob("*")) < 12e6
