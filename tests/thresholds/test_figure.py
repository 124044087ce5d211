"""Figure 2 from made-up runs: what is drawn is what was given, and nothing hides anything else."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import run_info

from probe.figures.thresholds import LABEL_HEIGHT, LABEL_LENGTH, _spread, threshold_figure
from probe.recording.info import InputRecord
from probe.thresholds.detectors import DetectorSettings
from probe.thresholds.verdicts import Verdict

WINDOW, LENGTH, RUN = 64, 256, 8


def made_up(values, borders=None, length=LENGTH):
    """A run that recorded one dimension, `values` by scheme, and its verdicts."""
    info = run_info(list(values), borders=borders, input=InputRecord("token:5", length))
    nll = {scheme: np.linspace(3, 4, length) for scheme in values}
    run = SimpleNamespace(info=info, nll=nll, series=lambda scheme, *place: values[scheme])
    return run, [Verdict(scheme, "resid", 1, 0, "range", 9.0, "above", None, 1.0, None) for scheme in values]


def upper(figure, name):
    """A trace of the upper panel."""
    (trace,) = [trace for trace in figure.data if trace.name == name and trace.yaxis == "y"]
    return trace


def captions(figure):
    return figure.layout.annotations[-1].text.split("<br>")


RAMP = np.linspace(0, 8, LENGTH)


def test_the_axis_ends_with_the_input_and_every_panel_has_titles():
    figure = threshold_figure(*made_up({"origin": RAMP, "mesa": RAMP}))
    for axis in figure.select_xaxes():
        assert axis.range == (0, LENGTH) and axis.title.text == "position"
    assert [axis.title.text for axis in figure.select_yaxes()] == ["activation", "NLL (nats)"]


def test_chunks_are_lines_behind_the_curves_and_the_caption_says_so():
    figure = threshold_figure(*made_up({"origin": RAMP, "mesa": RAMP + 0.1}, {"mesa": [4, 60, 116]}))
    chunks = upper(figure, "mesa: chunks")
    assert chunks.x[::3] == chunks.x[1::3] == (4, 60, 116) and set(chunks.x[2::3]) == {None}
    assert set(chunks.y) == {*figure.layout.yaxis.range, None}
    assert chunks.legendgroup == "mesa"
    drawn = [trace.name for trace in figure.data]
    assert drawn.index("mesa: chunks") < min(drawn.index("origin"), drawn.index("mesa"))
    assert any("a chunk of mesa begins" in line for line in captions(figure))
    plain = threshold_figure(*made_up({"origin": RAMP, "mesa": RAMP}))
    assert not any("chunk" in line for line in captions(plain))


def test_noise_is_drawn_faint_under_its_running_median():
    noise = np.random.default_rng(0).normal(size=LENGTH)
    figure = threshold_figure(*made_up({"origin": RAMP + noise, "mesa": RAMP - noise}))
    raw, strong = upper(figure, "origin: raw"), upper(figure, "origin")
    np.testing.assert_array_equal(raw.y, (RAMP + noise).astype(np.float32))  # half of float64 in the page
    expected = [np.median((RAMP + noise)[n - RUN // 2 : n + RUN // 2 + 1]) for n in range(RUN, LENGTH - RUN)]
    np.testing.assert_allclose(strong.y[RUN:-RUN], expected, rtol=1e-6)
    assert raw.opacity < 0.5 < strong.opacity
    drawn = [trace.name for trace in figure.data]
    assert max(drawn.index("origin: raw"), drawn.index("mesa: raw")) < drawn.index("origin")
    assert any(f"running median over {RUN + 1} positions" in line for line in captions(figure))


def test_what_is_not_noisy_is_drawn_as_it_is():
    step = np.where(np.arange(LENGTH) < 100, 0.0, 5.0) + 0.01 * np.sin(np.arange(LENGTH))
    figure = threshold_figure(*made_up({"origin": step, "mesa": RAMP}))
    np.testing.assert_array_equal(upper(figure, "origin").y, step.astype(np.float32))
    assert not any("raw" in (trace.name or "") for trace in figure.data)
    assert not any("median" in line for line in captions(figure))


def test_names_stand_right_of_the_panel_and_apart():
    schemes = ["origin", "rerope", "stair", "mesa", "yarn", "pi", "nope", "lm-infinite+bottom(L=64)"]
    figure = threshold_figure(*made_up({scheme: RAMP for scheme in schemes}))
    labels = [upper(figure, f"{scheme}: name") for scheme in schemes]
    assert {label.x for label in labels} == {(LENGTH,)}
    heights = sorted(label.y[0] for label in labels)
    assert np.diff(heights).min() >= LABEL_HEIGHT * (9.0 - RAMP[4]) * (1 - 1e-9)
    low, high = figure.layout.yaxis.range
    assert low < heights[0] and heights[-1] < high
    assert {label.text[0].strip() for label in labels} == {*schemes[:-1], schemes[-1][: LABEL_LENGTH - 1] + "…"}


def test_a_click_in_the_legend_hides_all_of_a_scheme():
    schemes = ["origin", "self-extend", "lm-infinite+bottom(L=64)", "mesa"]
    figure = threshold_figure(*made_up({scheme: RAMP for scheme in schemes}, {"mesa": [4, 60]}))
    assert [trace.name for trace in figure.data if trace.showlegend] == schemes
    assert {trace.legendgroup for trace in figure.data} == set(schemes)
    looks = {(upper(figure, scheme).line.color, upper(figure, scheme).line.dash) for scheme in schemes}
    assert len(looks) == len(schemes), "two of them have one colour"


def test_an_input_inside_the_window_is_drawn():
    figure = threshold_figure(*made_up({"origin": RAMP[:20]}, length=20), settings=DetectorSettings())
    assert figure.layout.xaxis.range == (0, 20)


@given(values=st.lists(st.floats(-2, 2), min_size=1, max_size=12).map(sorted))
def test_spread_keeps_order_distance_and_room(values):
    placed = _spread(values, 0.1, -2.0, 2.0)
    assert all(second - first >= 0.1 - 1e-9 for first, second in pairwise(placed))
    assert min(placed) >= -2 - 1e-9 and max(placed) <= 2 + 1e-9
    if all(second - first >= 0.1 for first, second in pairwise(values)):
        assert placed == pytest.approx(values)
