"""Detectors on synthetic series whose crossings are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import ProbeError
from probe.thresholds.detectors import Detection, DetectorSettings, Untold, detect, lasting, robust_sd
from probe.thresholds.measured import measured_failure, smooth_nll

WINDOW, LENGTH = 128, 512
SETTINGS = DetectorSettings(run_length=8)
seeds = st.integers(0, 2**32 - 1)
positions = st.integers(WINDOW + 2, LENGTH - 60)


def noise(seed: int, size: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-size, size, LENGTH)


def where(found: Detection | Untold) -> int | None:
    assert isinstance(found, Detection)
    return found.position


def step(at: int, height: float) -> np.ndarray:
    return height * (np.arange(LENGTH) >= at)


@given(seed=seeds, at=positions, up=st.booleans())
def test_a_step_past_the_window_is_found_at_its_position(seed: int, at: int, up: bool) -> None:
    height = 5.0 if up else -5.0
    found = detect("range", noise(seed), noise(seed + 1) + step(at, height), WINDOW, SETTINGS)
    assert isinstance(found, Detection) and found.position == at
    assert found.direction == ("above" if up else "below") and found.margin < 0


@given(seed=seeds, at=positions, length=st.integers(1, 7))
def test_an_excursion_shorter_than_the_run_is_no_failure(seed: int, at: int, length: int) -> None:
    bump = step(at, 50.0) - step(at + length, 50.0)
    found = detect("range", noise(seed), noise(seed + 1) + bump, WINDOW, SETTINGS)
    assert isinstance(found, Detection) and found.position is None and found.margin > 0


@given(seed=seeds)
def test_the_reference_never_fails_inside_its_own_window(seed: int) -> None:
    series = noise(seed)
    found = detect("range", series, series, WINDOW, SETTINGS)
    assert isinstance(found, Detection) and found.position is None


@given(seed=seeds, at=positions, slope=st.floats(0.05, 5), up=st.booleans())
def test_paper_threshold_is_the_value_at_M_and_the_first_lasting_crossing(
    seed: int, at: int, slope: float, up: bool
) -> None:
    """The reference drifts away from its value at M; another series reaches that value exactly after `at`."""
    sign = 1.0 if up else -1.0
    t = np.arange(LENGTH)
    reference = sign * slope * (t - WINDOW) + 3.0
    found = detect("paper", reference, sign * slope * (t - at) + 3.0, WINDOW, SETTINGS)
    assert isinstance(found, Detection)
    assert found.threshold == 3.0 and found.direction == ("above" if up else "below")
    assert found.position == at + 1  # at `at` it equals H, which is no crossing
    own = detect("paper", reference, reference, WINDOW, SETTINGS)
    assert isinstance(own, Detection) and own.position == WINDOW + 1


@given(seed=seeds, factor=st.floats(0.01, 100), shift=st.floats(-1000, 1000), name=st.sampled_from(["paper", "range"]))
def test_verdicts_do_not_depend_on_units(seed: int, factor: float, shift: float, name: str) -> None:
    reference, series = noise(seed) + step(WINDOW, 1.0), noise(seed + 1) + step(300, 2.0)
    plain = detect(name, reference, series, WINDOW, SETTINGS)
    moved = detect(name, factor * reference + shift, factor * series + shift, WINDOW, SETTINGS)
    assert isinstance(plain, Detection) and isinstance(moved, Detection)
    assert (plain.position, plain.direction) == (moved.position, moved.direction)


@given(seed=seeds, run=st.integers(1, 40), length=st.integers(1, 60))
def test_lasting_is_the_least_of_the_next_run_positions(seed: int, run: int, length: int) -> None:
    series = np.random.default_rng(seed).normal(size=length)
    expected = [series[p : p + run].min() for p in range(length - run + 1)]
    assert lasting(series, run).tolist() == expected


@given(seed=seeds, name=st.sampled_from(["paper", "range"]))
def test_margin_is_negative_exactly_with_a_failure(seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    series = noise(seed) + step(int(rng.integers(WINDOW, LENGTH)), rng.normal())
    found = detect(name, noise(seed + 1) + step(WINDOW, 0.2), series, WINDOW, SETTINGS)
    assert isinstance(found, Detection) and (found.position is not None) == (found.margin < 0)


def test_robust_sd_is_the_standard_deviation_of_normal_values_and_ignores_outliers() -> None:
    values = np.random.default_rng(0).normal(3, 2, 200_000)
    assert robust_sd(values) == pytest.approx(2, rel=0.02)
    values[:1000] = 1e9
    assert robust_sd(values) == pytest.approx(2, rel=0.02)


def test_an_input_inside_the_window_has_no_paper_threshold() -> None:
    short = noise(0)[: WINDOW + 1]
    untold = detect("paper", short, short, WINDOW, SETTINGS)
    assert isinstance(untold, Untold) and "does not reach past M = 128" in untold.reason
    found = detect("range", short, short, WINDOW, SETTINGS)
    assert isinstance(found, Detection) and found.position is None


def test_bad_settings_are_answered() -> None:
    with pytest.raises(ProbeError, match="unknown detector 'mean'; known: range, paper"):
        detect("mean", noise(0), noise(0), WINDOW, SETTINGS)
    with pytest.raises(ProbeError, match="burn_in: expected at most 126 for window 128, got 127"):
        detect("range", noise(0), noise(0), WINDOW, DetectorSettings(burn_in=127))


@given(seed=seeds, at=positions)
def test_measured_failure_is_where_the_likelihood_steps_up(seed: int, at: int) -> None:
    nll = 2.0 + noise(seed)
    nll[0] = np.nan
    found = measured_failure(nll, nll + step(at, 1.5), WINDOW, SETTINGS)
    assert isinstance(found, Detection) and found.position == at and found.direction == "above"
    assert where(measured_failure(nll, nll, WINDOW, SETTINGS)) is None


def test_a_rise_below_the_floor_is_no_failure_however_quiet_the_window() -> None:
    nll = np.full(LENGTH, 0.001)
    nll[0] = np.nan
    assert where(measured_failure(nll, nll + step(300, 0.19), WINDOW, SETTINGS)) is None
    assert where(measured_failure(nll, nll + step(300, 0.21), WINDOW, SETTINGS)) == 300


def test_smoothing_keeps_a_step_in_place() -> None:
    nll = step(250, 3.0)
    assert np.array_equal(smooth_nll(nll, 33), nll)


def test_a_likelihood_no_better_than_a_guess_cannot_fail() -> None:
    """In the window it has to be better than ln V, and so has the end of its band; else the input cannot tell."""
    nll = np.full(LENGTH, 5.0)
    nll[0] = np.nan
    worse = nll + step(300, 3.0)
    guess = {"vocabulary": round(np.exp(4.9))}
    untold = measured_failure(nll, worse, WINDOW, SETTINGS, **guess)
    assert isinstance(untold, Untold) and "no better than a uniform guess among 134 tokens, 4.9 nats" in untold.reason
    narrow = measured_failure(nll, worse, WINDOW, SETTINGS, vocabulary=round(np.exp(5.1)))
    assert isinstance(narrow, Untold) and "a failure could not show" in narrow.reason
    assert where(measured_failure(nll, worse, WINDOW, SETTINGS, vocabulary=round(np.exp(5.3)))) == 300


def test_the_better_of_two_guesses_counts() -> None:
    """A guess by the frequencies of the input's own tokens is nearer than a uniform one."""
    nll = np.full(LENGTH, 5.0)
    nll[0] = np.nan
    worse = nll + step(300, 3.0)
    among = {"vocabulary": 49152}
    untold = measured_failure(nll, worse, WINDOW, SETTINGS, **among, unigram=4.9)
    assert isinstance(untold, Untold) and "how often each token comes in this input, 4.9 nats" in untold.reason
    assert where(measured_failure(nll, worse, WINDOW, SETTINGS, **among, unigram=6.0)) == 300
    untold = measured_failure(nll, worse, WINDOW, SETTINGS, vocabulary=130, unigram=6.0)
    assert isinstance(untold, Untold) and "uniform" in untold.reason


def test_a_model_without_a_head_and_an_input_too_short_say_so() -> None:
    headless = np.full(LENGTH, np.nan)
    untold = measured_failure(headless, headless, WINDOW, SETTINGS)
    assert isinstance(untold, Untold) and "no vocabulary head" in untold.reason
    few = noise(0)[: WINDOW // 8 + 1]
    untold = detect("range", few, few, WINDOW, SETTINGS)
    assert isinstance(untold, Untold) and "17 tokens are too few to calibrate on: expected at least 18" in untold.reason
    assert measured_failure(few, few, WINDOW, SETTINGS) == untold


@pytest.mark.parametrize(("name", "value"), [("burn_in", -1), ("run_length", 0), ("margin", -0.5), ("margin", np.nan)])
def test_settings_validate_themselves(name: str, value: float) -> None:
    with pytest.raises(ProbeError, match=f"{name}: expected at least"):
        DetectorSettings(**{name: value})
