"""Runs started from the page: a real one from end to end, and what becomes of bad input."""

import threading
import time

import pytest

from app import jobs
from probe.errors import ProbeError
from probe.models.load import load_model
from probe.recording.folder import list_runs


def finish(app):
    """Let the run end as a browser would, by asking again."""
    end = time.monotonic() + 120
    while jobs.running() is not None and time.monotonic() < end:
        time.sleep(0.05)
    return app.run()


def fill(app, **fields):
    kinds = {
        "new_input": "selectbox", "new_length": "number_input",
        "new_schemes": "multiselect", "new_sites": "multiselect",
    }  # fmt: skip
    for key, value in ({"new_input": "a repeated token", "new_text": "5", "new_dims": "0-3"} | fields).items():
        getattr(app, kinds.get(key, "text_input"))(key=key).set_value(value)
    return app


def press(app):
    (button,) = [button for button in app.button if button.label == "Run"]
    return finish(button.click().run())


def test_run_button_makes_a_run_and_shows_it(open_app, runs, tiny_folder):
    app = fill(open_app("--model", tiny_folder), new_more="rerope(N=8)+logn", new_layers="2", new_length=100)
    app.multiselect(key="new_sites").set_value(["resid", "mlp"])
    app.selectbox(key="new_model").set_value(str(tiny_folder))
    press(app)
    assert not app.error
    (run,) = list_runs(runs)
    assert app.selectbox(key="run").value == run.path.name
    assert run.path.name.endswith("-tiny")
    assert (run.info.input.spec, run.info.input.length) == ("token:5", 100)
    assert (run.info.layers, run.info.dims, run.info.sites) == ((2,), (0, 1, 2, 3), ("resid", "mlp"))
    assert list(run.info.shown) == ["origin", "dynamic-ntk", "rerope", "rerope(N=8)+logn"]
    assert list(app.dataframe[0].value["scheme"]) == list(run.info.shown)
    assert not app.get("progress")


def test_length_left_open_is_four_windows(open_app, runs, tiny_folder):
    app = press(fill(open_app("--model", tiny_folder), new_schemes=["origin"]))
    assert not app.error
    assert list_runs(runs)[0].info.input.length == 4 * 64


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"new_text": "5000"}, "outside the vocabulary 0 to 96"),
        ({"new_text": "five"}, "expected an integer token id"),
        ({"new_input": "a repeated word", "new_text": "hello"}, "has no tokenizer"),
        ({"new_layers": "9"}, "layer: expected 1 to 3"),
        ({"new_dims": "60"}, "dim: expected 0 to 47"),
        ({"new_dims": "x"}, "dim: expected numbers"),
        ({"new_more": "magic"}, "unknown scheme 'magic'"),
        ({"new_schemes": []}, "at least one scheme"),
        ({"new_sites": []}, "site: expected at least one"),
    ],
)
def test_bad_input_is_a_message_and_leaves_nothing(open_app, runs, tiny_folder, probe_into, fields, expected):
    probe_into(runs / "first")
    app = press(fill(open_app("--model", tiny_folder), **fields))
    assert expected in app.error[0].value
    assert "--" not in app.error[0].value
    assert [run.path.name for run in list_runs(runs)] == ["first"]
    assert app.get("plotly_chart"), "the run that was there is still shown"


def test_an_unknown_model_is_a_message(open_app, tmp_path):
    app = press(fill(open_app("--model", tmp_path / "nothing")))
    assert "unknown model" in app.error[0].value


@pytest.mark.parametrize("length", [1, jobs.MAX_LENGTH + 1])
def test_length_has_a_cap(tiny_folder, runs, length):
    job = jobs.start(jobs.Request(str(tiny_folder), input="token:5", length=length), runs)
    assert job.ended.wait(60)
    assert f"2 to {jobs.MAX_LENGTH}" in job.error
    assert not runs.exists()


def test_recorded_numbers_have_a_cap(tiny_folder, runs, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_VALUES", 1000)
    job = jobs.start(jobs.Request(str(tiny_folder), input="token:5"), runs)
    assert job.ended.wait(60)
    assert "expected at most 1,000 recorded numbers" in job.error


@pytest.fixture
def held(monkeypatch):
    """A run that waits at its first step until it is let go."""
    go, there = threading.Event(), threading.Event()
    advance = jobs.Job._progress

    def progress(self, share, line):
        there.set()
        assert go.wait(60)
        advance(self, share, line)

    monkeypatch.setattr(jobs.Job, "_progress", progress)
    yield go, there
    go.set()


def test_progress_is_shown_and_the_page_stays_alive_meanwhile(open_app, runs, tiny_folder, probe_into, held):
    go, there = held
    go.set()
    probe_into(runs / "first")
    go.clear()
    app = fill(open_app("--model", tiny_folder))
    (button,) = [button for button in app.button if button.label == "Run"]
    button.click().run()
    assert there.wait(60)
    app.select_slider(key="layer").set_value(2).run()
    assert app.get("progress")
    assert "layer 2" in str(app.get("plotly_chart")[0].proto.spec)
    with pytest.raises(ProbeError, match="in progress"):
        jobs.start(jobs.Request(str(tiny_folder)), runs)
    go.set()
    finish(app)
    assert not app.error
    assert len(list_runs(runs)) == 2
    assert app.selectbox(key="run").value != "first"
    assert app.select_slider(key="layer").value == 2


def test_a_stopped_run_leaves_nothing(tiny_folder, runs, held):
    go, there = held
    job = jobs.start(jobs.Request(str(tiny_folder), input="token:5"), runs)
    assert there.wait(60)
    job.stop()
    go.set()
    assert job.ended.wait(60)
    assert job.error == "the run was stopped"
    assert list(runs.iterdir()) == []


def test_two_runs_in_one_second_have_two_folders(tiny_folder, runs):
    for _ in range(2):
        job = jobs.start(jobs.Request(str(tiny_folder), dims="0", schemes="origin", input="token:5", length=80), runs)
        assert job.ended.wait(60)
        assert job.error is None
    assert len(list_runs(runs)) == 2


def test_a_construction_is_judged_by_its_theorems_threshold(tiny_folder):
    for model, detector in (("construction:3.3(M=6,N=2)", "paper"), (str(tiny_folder), "range")):
        settings = jobs.Request(model, dims="0", input="token:5").settings(load_model(model))
        assert settings.detector == detector
