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
from probe.studies.tune import TuneRow, Tuning, _group, _ordered, _spread, _step, against_grid, candidates
from probe.tasks.documents import document_batch
from probe.tasks.scoring import draw_passkeys, heldout_nll, passkey_hits


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
    assert len(lines) == work.total == 3 * 4  # four candidates are few: all are screened with every prompt at once
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


def test_what_a_third_of_the_prompts_says_decides_who_gets_all(rope):
    """The best by the third, the rest as they were; what is checked in full is what is proposed."""
    schemes = "origin,rerope,rerope+logn,dynamic-ntk,stair+logn,pi"
    work = Tuning(rope, 1024, schemes, screened=6, checked=8, documents=4, finalists=1)
    steps = work.run()
    lines = [next(steps) for _ in range(6)]
    best = sorted(work.rows, key=lambda row: (-row.keys, round(row.answer / 0.05), row.rise))[:2]
    lines += list(steps)
    tried = {row.scheme: row for row in work.rows}
    assert {row.screened for row in tried.values()} == {2, 6}
    going_on = [row.scheme for row in tried.values() if row.screened == 6]
    assert len(going_on) == 2 and set(going_on) == {row.scheme for row in best}
    begun = {row.scheme: row for row in tried.values() if row.correct is not None}
    assert len(begun) == 2 and "origin" in begun and {row.first_total for row in begun.values()} == {2}
    best = work.proposed
    assert (best.total, best.texts) == (8, 4) and best.first_correct <= best.correct
    assert lines[-1] == f"{best.scheme} checked"
    alone = Tuning(rope, 1024, best.scheme, screened=6, checked=8, documents=4, finalists=None)
    list(alone.run())
    same = next(row for row in alone.rows if row.scheme == best.scheme)
    assert (same.correct, same.total) == (best.correct, best.total)
    assert same.nll == pytest.approx(best.nll, abs=1e-5) and same.keys == best.keys


def test_a_check_in_two_parts_is_the_check_in_one(rope):
    """Keys and texts of both parts are those that the length draws, each once."""
    work = Tuning(rope, 1024, "rerope", screened=1, checked=9, documents=3, finalists=1)
    list(work.run())
    row = work.proposed
    keys = draw_passkeys(rope, 1024, 9, work.seed + 1)
    scheme = parse_scheme(row.scheme, 512)
    assert row.correct == int(passkey_hits(rope, scheme, keys).sum()) and row.total == 9
    texts = document_batch(rope, 1024, 3, work.seed + 1)
    assert row.nll == pytest.approx(float(heldout_nll(rope, scheme, texts)[:, -128:].double().mean()), abs=1e-5)


@given(st.integers(1, 50), st.sampled_from([3, 4]))
def test_a_part_is_one_in_so_many_and_never_none(count, share):
    found = list(_spread(count, share))
    assert found and max(found) < count and abs(len(found) - count / share) <= 1


def test_nothing_longer_than_the_window_runs_while_screening(rope, monkeypatch):
    seen = []
    forward = rope.model.forward

    def watched(input_ids=None, **more):
        seen.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **more)

    monkeypatch.setattr(rope.model, "forward", watched)
    work = Tuning(rope, 4096, "rerope+logn", screened=2, checked=1, documents=1)
    steps = work.run()
    assert next(steps).endswith("tried") and next(steps).endswith("tried")
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


def row(scheme, keys, correct=None, nll=None, screening=1.0, checking=0.0, first=None, first_nll=None):
    """Ten keys, of them two first, which take a fifth of the time."""
    total = None if correct is None else 10
    return TuneRow(
        scheme, 10, 6, keys, 0.1, 0.0, correct, total, 0.0, 1.0, nll, 0 if correct is None else 4,
        first, None if first is None else 2, nll if first_nll is None else first_nll,
        screening, checking / 5, checking,
    )  # fmt: skip


def test_the_rank_puts_keys_before_likelihood_and_checked_before_screened():
    rows = [row("a", 1.0), row("b", 0.5, 9, 2.0), row("c", 0.5, 9, 1.0), row("d", 0.2, 10, 9.0),
            replace(row("e", None), left_out="x"), replace(row("f", 1.0), screened=2)]  # fmt: skip
    assert [one.scheme for one in _ordered(rows)] == ["d", "c", "b", "a", "f", "e"]


def test_likelihoods_are_compared_on_the_same_texts():
    """One that was asked for more texts, harder ones, is not the worse for it."""
    whole = row("whole", 1.0, 10, 5.0, first=2, first_nll=4.0)
    begun = replace(row("begun", 1.0, 2, 4.5, first=2), total=2, texts=1)
    assert [one.scheme for one in _ordered([begun, whole])] == ["whole", "begun"]
    assert [one.scheme for one in _ordered([replace(begun, total=2, texts=4), whole])] == ["begun", "whole"]


def test_of_equals_the_first_named_wins():
    rows = [replace(row(name, 1.0, 10, 4.001 - at * 1e-4), answer=0.1 - at * 1e-6) for at, name in enumerate("abc")]
    assert _ordered(rows)[0].scheme == "a"


def test_screening_is_compared_with_the_grid_it_did_not_see():
    rows = [row("origin", 0.0, 0, 5.0, 1, 10, 0), row("a", 1.0, 8, 2.0, 1, 10, 1), row("b", 0.9, 7, 1.0, 1, 10, 2),
            row("c", 0.8, 7, 1.5, 1, 10, 1), row("d", 0.1, 10, 1.0, 1, 10, 2)]  # fmt: skip
    found = against_grid(rows)
    # b leads by its first two keys and is checked in full; a, of whom 1 of 2 is known, stays behind its 7 of 10
    assert (found.best_keys, found.best_nll, found.keys, found.nll) == (1.0, 1.0, 0.7, 1.0)
    assert found.cost == pytest.approx((5 + 4 * 2 + 8) / 50)
    # where a's first two are found too and b falls behind it, a is checked as well
    rows[1] = row("a", 1.0, 8, 2.0, 1, 10, 2)
    found = against_grid(rows)
    assert (found.keys, found.nll) == (0.8, 2.0)
    assert found.cost == pytest.approx((5 + 4 * 2 + 8 + 8) / 50)
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
