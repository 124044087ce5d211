"""Intervals of a measured failure: on made-up samples whose failure is known, and on a real run."""

import dataclasses

import numpy as np
import pytest

from probe.errors import ProbeError
from probe.models.load import load_model
from probe.recording.folder import SAMPLES, Run, write_trace
from probe.studies.run import RunSettings, run_probe
from probe.thresholds.detectors import DetectorSettings
from probe.thresholds.intervals import failure_interval
from probe.thresholds.measured import measured_failure


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = RunSettings(
        layers=(1,), dims=(0,), schemes="origin,rerope", input="heldout", length=1536, samples=8, seed=1
    )
    return run_probe(load_model("rope"), settings, tmp_path_factory.mktemp("runs") / "text")


def test_the_samples_are_kept_and_their_mean_is_the_likelihood(run):
    for scheme in ("origin", "rerope"):
        each = run.nll_samples[scheme]
        assert each.shape == (8, 1536)
        np.testing.assert_allclose(each.mean(0)[1:], run.nll[scheme][1:], rtol=1e-12)


def test_a_real_failure_lies_in_its_interval_and_none_has_none(run):
    found = failure_interval(run, "origin", resamples=60)
    whole = measured_failure(run.nll["origin"], run.nll["origin"], 512, DetectorSettings()).position
    assert found.position == whole and found.failing > 0.6
    assert found.low <= whole and (found.high is None or whole <= found.high)
    assert failure_interval(run, "origin", resamples=60) == found, "the seed decides"
    held = failure_interval(run, "rerope", resamples=60)
    assert held.position is None and held.failing < 0.5
    assert (held.said is None) == (held.low is None)


def made(folder, run, at, noise=0.05):
    """A run like a real one, whose samples fail at the positions given (None: not at all)."""
    generator = np.random.default_rng(0)
    length = 1536
    rows = 2.0 + noise * generator.standard_normal((len(at), length))
    for row, where in zip(rows, at, strict=True):
        if where is not None:
            row[where:] += 8.0
    rows[:, 0] = np.nan
    copy = Run(folder)
    info = dataclasses.replace(run.info, input=dataclasses.replace(run.info.input, samples=len(at), unigram=None))
    write_trace(folder / SAMPLES, {"origin": rows})
    object.__setattr__(copy, "__dict__", copy.__dict__ | {"info": info, "nll": {"origin": rows.mean(0)}})
    return copy


def test_samples_that_all_fail_alike_leave_no_doubt(run, tmp_path):
    found = failure_interval(made(tmp_path, run, [900] * 6), "origin", resamples=50)
    assert found.low == found.high == found.position == 900 and found.failing == 1.0
    assert found.said == "900 to 900"


def test_samples_that_fail_apart_spread_the_interval_over_them(run, tmp_path):
    found = failure_interval(made(tmp_path, run, [700, 800, 900, 1000, 1100, 1200]), "origin", resamples=200)
    assert 700 <= found.low < found.high <= 1200


def test_one_that_fails_of_many_may_not_fail_at_all(run, tmp_path):
    found = failure_interval(made(tmp_path, run, [900, None, None]), "origin", resamples=200)
    missing = (2 / 3) ** 3
    assert found.failing == pytest.approx(1 - missing, abs=0.1)
    assert found.high is None and "or not at all" in found.said


def test_one_sequence_has_no_interval_and_says_so(tmp_path):
    settings = RunSettings(layers=(1,), dims=(0,), schemes="origin", input="word:hello", length=700)
    found = failure_interval(run_probe(load_model("rope"), settings, tmp_path / "one"), "origin")
    assert found.low is None and found.untold == "the run is of one sequence" and found.said is None


def test_a_scheme_that_did_not_run_is_refused(run):
    with pytest.raises(ProbeError, match="unknown scheme"):
        failure_interval(run, "stair")


def test_the_table_and_the_library_tell_it(run, capsys):
    from probe.commands import show
    from weavescope.run import Run as Public

    show.run(run, False)
    said = capsys.readouterr().out
    assert "measured, 95% over 8 samples: origin " in said
    rows = Public(run.path).measured_intervals()
    assert (
        rows.column("scheme") == ["origin", "rerope"] and rows[0].position == failure_interval(run, "origin").position
    )
