"""What is proposed, against checking everything and against what the window says."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.commands.main import main
from probe.errors import FieldError, ProbeError
from probe.models.load import load_model
from probe.schemes import parse_scheme
from probe.schemes.cut_out import largest_position
from probe.studies.tune import TuneRow, Tuning, _group, _rank, _step, against_grid, candidates


@pytest.fixture(scope="module")
def rope():
    return load_model("rope")


@given(window=st.sampled_from([64, 512, 4096]), times=st.integers(2, 16))
def test_every_candidate_parses_and_stays_inside_the_window(window, times):
    length = times * window
    found = candidates(window, length, True)
    assert len(found) == len(set(found))
    for text in found:
        scheme = parse_scheme(text, window)
        weave = scheme.weave_at(length)
        if weave.name != "linear":
            assert weave(length - 1, 0) <= window


@given(st.integers(64, 4096), st.integers(2, 40), st.floats(0.1, 0.8))
def test_steps_and_groups_are_the_least_that_stay_inside(window, times, share):
    length, width = times * window, max(2, round(share * window))
    step = _step(window, length, width)
    assert width + math.ceil((length - 1 - width) / step) <= window
    group = _group(window, length, width)
    assert (length - 1) // group + width - width // group < window
    if group > 2:
        assert (length - 1) // (group - 1) + width - width // (group - 1) >= window


def test_screening_tells_what_works_at_four_windows_from_what_does_not(rope):
    work = Tuning(rope, 2048, "origin,rerope,rerope+logn,dynamic-ntk", screened=4, checked=6, finalists=None)
    lines = list(work.run())
    assert len(lines) == 8
    rows = {row.scheme: row for row in work.rows}
    assert rows["rerope+logn"].keys == 1.0 and rows["rerope+logn"].correct == 6
    for scheme in ("origin", "rerope"):  # 0% of 100 keys each, by the README's table
        assert rows[scheme].keys < 0.5 and rows[scheme].correct <= 1
    assert work.rows[0].scheme == work.proposed.scheme == "rerope+logn"
    result = work.result(True).to_json()
    assert result["kind"] == "tune" and result["settings"]["proposed"] == "rerope+logn"
    for row in rows.values():
        scheme = parse_scheme(row.scheme, 512)
        assert row.largest == largest_position(scheme.weave_at(2048), 2048)


def test_nothing_longer_than_the_window_runs_while_screening(rope, monkeypatch):
    seen = []
    forward = rope.model.forward

    def watched(input_ids=None, **more):
        seen.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **more)

    monkeypatch.setattr(rope.model, "forward", watched)
    work = Tuning(rope, 4096, "rerope+logn", screened=2, checked=1, documents=1)
    steps = work.run()
    next(steps), next(steps)
    assert seen and max(seen) <= 512
    next(steps)
    assert max(seen) >= 4096


def test_what_cannot_be_screened_says_why(rope):
    work = Tuning(rope, 2048, "mesa,stair(N=64,E=2)", screened=1, checked=1, documents=1)
    list(work.run())
    why = {row.scheme: row.left_out for row in work.rows}
    assert "not every query sees" in why["mesa"]
    assert "past the window of 512" in why["stair(N=64,E=2)"]
    assert why["origin"] is None and work.proposed.scheme == "origin"


def test_a_budget_of_nothing_proposes_the_trained_model_alone(rope):
    work = Tuning(rope, 1024, "rerope,stair", budget=0.0, screened=1, checked=1, documents=1)
    list(work.run())
    assert all("budget" in row.left_out for row in work.rows if row.correct is None)
    assert work.proposed.scheme == "origin"


def row(scheme, keys, correct=None, nll=None, screening=1.0, checking=0.0):
    return TuneRow(
        scheme, 10, keys, 0.1, 0.0, correct, None if correct is None else 10, 0.0, 1.0, nll, screening, checking
    )


def test_the_rank_puts_keys_before_likelihood_and_checked_before_screened():
    rows = [row("a", 1.0), row("b", 0.5, 9, 2.0), row("c", 0.5, 9, 1.0), row("d", 0.2, 10, 9.0),
            replace(row("e", None), left_out="x")]  # fmt: skip
    assert [one.scheme for one in sorted(rows, key=_rank)] == ["d", "c", "b", "a", "e"]


def test_screening_is_compared_with_the_grid_it_did_not_see():
    rows = [row("origin", 0.0, 0, 5.0, 1, 10), row("a", 1.0, 8, 2.0, 1, 10), row("b", 0.9, 7, 1.0, 1, 10),
            row("c", 0.8, 7, 1.5, 1, 10), row("d", 0.1, 10, 1.0, 1, 10)]  # fmt: skip
    found = against_grid(rows)
    assert (found.best_keys, found.best_nll, found.keys, found.nll) == (1.0, 1.0, 0.8, 2.0)
    assert found.cost == pytest.approx((5 + 40) / 50)
    assert against_grid([*rows, row("e", 0.5)]) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"length": 512}, "more than the window"), ({"length": 2048, "screened": 0}, "screened"),
     ({"length": 2048, "schemes": "magic"}, "unknown scheme")],
)  # fmt: skip
def test_bad_input_is_said(rope, fields, said):
    with pytest.raises(ProbeError, match=said):
        Tuning(rope, **fields)


def test_a_model_without_a_tokenizer_is_refused(tiny_folder):
    with pytest.raises(ProbeError, match="tokenizer"):
        Tuning(load_model(str(tiny_folder)), 256)


def test_the_command_ends_with_what_to_paste(capsys, tmp_path):
    call = ["tune", "--length", "1024", "--scheme", "rerope(N=256)+logn", "--screened", "1", "--checked", "2",
            "--documents", "1", "--quiet", "--out", str(tmp_path / "t.json")]  # fmt: skip
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "use rerope(N=256)+logn" in said and "with m.under('rerope(N=256)+logn'):" in said
    assert main(["tables", str(tmp_path / "t.json")]) == 0
    table = capsys.readouterr().out
    assert "use `rerope(N=256)+logn`" in table and "| `origin` |" in table
    assert main(["tune", "--finalists", "none"]) == 2
    assert "--finalists" in capsys.readouterr().err


def test_finalists_out_of_range_are_refused():
    from probe.commands.tune import _finalists

    assert _finalists("all") is None and _finalists("4") == 4
    with pytest.raises(FieldError):
        _finalists("0")
