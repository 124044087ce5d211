"""Change points and many units as one, on series whose changes are known."""

from __future__ import annotations

import numpy as np
import pytest
import ruptures
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from probe.errors import FieldError
from probe.thresholds.changes import penalty, points, segments, single_cut
from probe.thresholds.detectors import (
    Detection,
    DetectorSettings,
    as_single,
    detect,
    kept_detectors,
    single_detectors,
)
from probe.thresholds.joint import distances

WINDOW, LENGTH = 128, 640
SETTINGS = DetectorSettings(run_length=8)
seeds = st.integers(0, 2**32 - 1)


def judged(name: str, reference: np.ndarray, series: np.ndarray) -> Detection:
    found = detect(name, reference, series, WINDOW, SETTINGS)
    assert isinstance(found, Detection)
    return found


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(LENGTH, *shape))


@settings(deadline=None)
@given(seed=seeds, at=st.integers(WINDOW, LENGTH - 64), up=st.booleans())
def test_a_jump_is_found_where_it_is(seed: int, at: int, up: bool) -> None:
    """Up to a quarter of a run, which is a point, and what the noise of one point can hide."""
    sign = 1.0 if up else -1.0
    found = judged("change", noise(seed), noise(seed + 1) + sign * 12.0 * (np.arange(LENGTH) >= at))
    assert found.position is not None and abs(found.position - at) <= 4
    assert found.direction == ("above" if up else "below") and found.margin < 0


@settings(deadline=None)
@given(seed=seeds)
def test_the_trained_window_and_more_of_the_same_hold(seed: int) -> None:
    """A drift to and fro inside the window, and on at its end's level: nothing that the window did not have."""
    wave = np.sin(np.arange(LENGTH) / WINDOW * 2 * np.pi) * (np.arange(LENGTH) < WINDOW)
    series = 5.0 * wave + 0.1 * noise(seed)
    found = judged("change", series, series)
    assert found.position is None and found.margin >= 0


@settings(deadline=None)
@given(seed=seeds, factor=st.floats(0.01, 100), shift=st.floats(-1000, 1000))
def test_units_do_not_matter(seed: int, factor: float, shift: float) -> None:
    reference, series = noise(seed), noise(seed + 1) + 3.0 * (np.arange(LENGTH) >= 300)
    plain = judged("change", reference, series)
    moved = judged("change", factor * reference + shift, factor * series + shift)
    assert (plain.position, plain.direction) == (moved.position, moved.direction)
    both = [np.stack([one, one[::-1]], 1) for one in (reference, series)]
    joint = [judged("multivariate", *(factor * one + shift for one in both)), judged("multivariate", *both)]
    assert joint[0].position == joint[1].position


@given(seed=seeds, count=st.integers(4, 40), least=st.integers(1, 4))
def test_the_best_single_cut_is_that_of_all(seed: int, count: int, least: int) -> None:
    """Against every cut, tried."""
    values = np.random.default_rng(seed).normal(size=count)
    whole = ((values - values.mean()) ** 2).sum()
    gains = [
        whole - sum(((part - part.mean()) ** 2).sum() for part in (values[:at], values[at:]))
        for at in range(least, count - least + 1)
    ]
    assert single_cut(values, least) == pytest.approx(max(gains, default=0.0), abs=1e-9)


@settings(deadline=None)
@given(seed=seeds, cost=st.floats(0.5, 20))
def test_segments_are_next_to_the_cheapest_there_are(seed: int, cost: float) -> None:
    """Against dynamic programming over every number of cuts, of the same library's other search: what PELT prunes may,
    with a least length of a segment, cost a cut at most.
    """
    values = np.random.default_rng(seed).normal(size=24) + 2.0 * (np.arange(24) >= 11)

    def error(ends: list[int]) -> float:
        return sum(len(part) * part.var() for part in np.split(values, ends[:-1]))

    exact = ruptures.Dynp(model="l2", min_size=4, jump=1).fit(values)
    best = min(error(ends) + cost * (len(ends) - 1) for ends in ([24], *(exact.predict(n_bkps=n) for n in range(1, 6))))
    found = [end for _, end in segments(values, cost, 4)]
    assert best - 1e-6 <= error(found) + cost * (len(found) - 1) <= best + cost


def test_a_cut_costs_what_the_window_gains_by_one() -> None:
    """A step inside the window is no failure, and no smaller one past it is cut off."""
    inside = np.repeat([0.0, 1.0], 16)
    cost = penalty(inside, 128, 4, 0.0)
    assert cost >= single_cut(inside, 4)
    assert segments(np.concatenate([inside, np.full(96, 1.0)]), cost, 4) == [(0, 128)]


def test_points_are_means_and_leave_the_rest_out() -> None:
    assert points(np.arange(11.0), 4).tolist() == [1.5, 5.5]


@given(seed=seeds)
def test_distance_is_mahalanobis_under_a_shrunk_covariance(seed: int) -> None:
    """Against scipy's, of standardized units, where no component is left out."""
    rng = np.random.default_rng(seed)
    inside, series = rng.normal(size=(64, 3)) @ rng.normal(size=(3, 3)), rng.normal(size=(7, 3))
    _, found = distances(inside, series, 8)
    mean, scale = inside.mean(0), inside.std(0)
    axes = np.linalg.svd((inside - mean) / scale, full_matrices=False)[2].T
    precision = LedoitWolf(assume_centered=True).fit((inside - mean) / scale @ axes).get_precision()
    expected = [mahalanobis((one - mean) / scale @ axes, np.zeros(3), precision) / np.sqrt(3) for one in series]
    assert found == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, at=st.integers(WINDOW, LENGTH - 64))
def test_units_that_no_longer_go_together_are_found_by_all_of_them_alone(seed: int, at: int) -> None:
    """Each unit stays in its range, and their order is broken: only what sees them as one can tell."""
    rng = np.random.default_rng(seed)

    def together() -> np.ndarray:
        return rng.uniform(-1, 1, (LENGTH, 1)) + 0.01 * rng.normal(size=(LENGTH, 4))

    reference, series = together(), together()
    series[at:] = rng.uniform(0.3, 1, (LENGTH - at, 1)) * [1, -1, 1, -1]
    found = judged("multivariate", reference, series)
    assert found.position == at
    alone = [judged("range", reference[:, n], series[:, n]).position for n in range(4)]
    assert alone == [None] * 4


def test_more_units_than_positions_are_no_failure_by_themselves() -> None:
    """What was fitted on lies nearer than what was not: calibrated on the other half, the rest of the text holds."""
    found = judged("multivariate", noise(0, 500), noise(1, 500))
    assert found.position is None


def test_several_units_need_a_joint_detector() -> None:
    with pytest.raises(FieldError, match=r"series: expected one value per position for detector range"):
        detect("range", noise(0, 2), noise(1, 2), WINDOW, SETTINGS)
    assert "multivariate" not in single_detectors() and as_single("multivariate") == "range"
    assert as_single("change") == "change"
    assert kept_detectors("range") == ["range", "paper"] and kept_detectors("change")[-1] == "change"
