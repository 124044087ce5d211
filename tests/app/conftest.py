"""Real runs for the pages: a tiny Llama of random weights, saved as a user would save it, probed for real."""

import sys
from pathlib import Path

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
def open_app(runs, monkeypatch):
    """Open the dashboard on the test's runs root, with launch options, as `streamlit run app/main.py -- ...` does."""
    from streamlit.testing.v1 import AppTest

    def open_it(*options, **query):
        monkeypatch.setattr(sys, "argv", [str(MAIN), "--runs", str(runs), *map(str, options)])
        app = AppTest.from_file(str(MAIN), default_timeout=120)
        app.query_params.update(query)
        return app.run()

    return open_it
