"""Real runs for the pages: a tiny Llama of random weights, saved as a user would save it, probed for real."""

import base64
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from probe.models.load import load_model
from probe.studies.run import RunSettings, run_probe

MAIN = Path(__file__).parents[2] / "app" / "main.py"


@pytest.fixture(scope="session")
def probe_into(tiny_folder):
    """Make a run folder."""

    def make(out, **settings):
        kept = {"layers": (1, 2), "dims": (0, 3, 7), "sites": ("resid", "attn"), "input": "token:5", "length": 160}
        return run_probe(load_model(str(tiny_folder), device="cpu"), RunSettings(**kept | settings), out)

    return make


@pytest.fixture
def runs(tmp_path):
    """The runs root of a test."""
    return tmp_path / "runs"


@pytest.fixture
def no_examples(monkeypatch, tmp_path):
    """A dashboard that ships nothing."""
    from app import runs

    monkeypatch.setattr(runs, "EXAMPLES", tmp_path / "nothing")


@pytest.fixture
def open_app(runs, monkeypatch):
    """Open the dashboard on the test's runs root, with launch options, as `streamlit run app/main.py -- ...` does."""
    from streamlit.testing.v1 import AppTest

    def open_it(*options, page=None, **query):
        monkeypatch.setattr(sys, "argv", [str(MAIN), "--runs", str(runs), *map(str, options)])
        app = AppTest.from_file(str(MAIN), default_timeout=120)
        if page is not None:  # AppTest opens the first page; the others are drawn by their module
            app = AppTest.from_function(_page, default_timeout=120, args=(page,))
        app.query_params.update(query)
        return app.run()

    return open_it


def _page(name):
    """One page with the shell around it, as `app.main` draws it."""
    import app.main as shell

    shell._guarded(next(row for row in shell.PAGES if row.module == name))


@pytest.fixture
def charts():
    """The charts of a page as the browser gets them, arrays decoded."""

    def read(app):
        return [_decoded(json.loads(chart.proto.spec)) for chart in app.get("plotly_chart")]

    return read


def _decoded(value):
    if isinstance(value, dict):
        if set(value) >= {"dtype", "bdata"}:  # plotly sends arrays as base64
            return np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        return {key: _decoded(one) for key, one in value.items()}
    return [_decoded(one) for one in value] if isinstance(value, list) else value


@pytest.fixture
def wait_for():
    """Until something is so."""

    def wait(what, seconds=120):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if what():
                return
            time.sleep(0.05)
        raise AssertionError("not so in time")

    return wait
