"""Leads: the truth against brute force, positions and intervals on courses that are known, a study taken up again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import weavescope as ws
from probe.commands.main import main
from probe.errors import FieldError, ProbeError
from probe.models.load import LoadedModel, load_model
from probe.models.random import bench_model
from probe.schemes import ORIGIN
from probe.studies.leads import CHOSEN, DIMS, PAIRED, TRUTH, Found, LeadRow, Leads, _filled, lead_rows, lead_summaries
from probe.studies.pieces import PieceStore
from probe.tasks.encoding import first_token
from probe.tasks.inputs import draw_input
from probe.tasks.nll import nll_per_position
from probe.tasks.scoring import windowed_nll
from probe.thresholds.detectors import DETECTORS
from probe.thresholds.measured import NLL_FLOOR

QUICK = ("norm", "hidden", "output_entropy")


@pytest.fixture(scope="module")
def rope() -> LoadedModel:
    return load_model("rope")


@pytest.fixture(scope="module")
def study(rope: LoadedModel) -> Leads:
    work = Leads(rope, "origin,rerope", 960, "heldout", 4, 1, QUICK, resamples=20)
    assert list(work.run()) == ["contexts cut to the window", "origin", "rerope"] and work.total == 3
    return work


def rows(study: Leads, scheme: str) -> dict[tuple[str, str], LeadRow]:
    return {(row.signal, row.detector): row for row in study.rows if row.scheme == scheme}


def test_every_token_is_scored_behind_half_a_window_at_least() -> None:
    """Against a pass of its own for every token past the window."""
    shape = "random:layers=2,width=16,heads=2,window=16,vocab=32"
    loaded = bench_model(shape, device="cpu", dtype="float32", window=None, seed=0)
    ids = torch.randint(0, loaded.model.config.vocab_size, (2, 45), generator=torch.Generator().manual_seed(0))
    head = len(first_token(None, loaded.model.config).ids)
    found = windowed_nll(loaded, ids)
    assert torch.isnan(found[:, 0]).all() and torch.isfinite(found[:, 1:]).all()
    assert torch.equal(found[:, 1:16], nll_per_position(loaded.model, ids[:, :16])[:, 1:])
    for at in range(16, 45):
        end = min(45, 16 + 8 * ((at - 16) // 8 + 1))
        start = end - 16 + head
        assert at - start + head >= 8
        own = nll_per_position(loaded.model, torch.cat((ids[:, :head], ids[:, start : at + 1]), 1))[:, -1]
        assert found[:, at] == pytest.approx(own, abs=1e-5)


def test_what_comes_first_stays_first(rope: LoadedModel) -> None:
    """The head of a text is the head of every context, and costs it as many tokens of its own."""
    ids = draw_input(rope, "documents", 700, 1, 0).ids
    head = first_token(rope.tokenizer, rope.model.config).ids
    cut = torch.cat((ids[:, : len(head)], ids[:, 700 - 512 + len(head) :]), 1)
    assert windowed_nll(rope, ids)[0, -188:] == pytest.approx(nll_per_position(rope.model, cut)[0, -188:], abs=1e-5)


def test_the_truth_is_where_the_paired_rise_lasts(rope: LoadedModel, study: Leads) -> None:
    """Beside the rise itself, taken another way: before it the mean rise is small, after it large; ReRoPE holds."""
    truth = rows(study, ORIGIN)[TRUTH, PAIRED]
    assert truth.position is not None and 512 <= truth.position < 900
    assert truth.low is not None and truth.low <= truth.position and truth.failing == 1.0
    ids = draw_input(rope, "heldout", 960, 4, 1).ids
    rise = (nll_per_position(rope.model, ids).double() - windowed_nll(rope, ids).double()).mean(0)
    assert float(rise[1:512].abs().max()) < 1e-5 and float(rise[truth.position :].mean()) > NLL_FLOOR
    assert float(rise[512 : truth.position].mean()) < float(rise[truth.position :].mean())
    assert rows(study, "rerope")[TRUTH, PAIRED].position is None


def test_every_signal_is_judged_by_every_detector(study: Leads) -> None:
    for scheme in ("origin", "rerope"):
        found = set(rows(study, scheme))
        assert found == {(TRUTH, PAIRED)} | {(signal, detector) for signal in QUICK for detector in DETECTORS} | {
            (DIMS, detector) for detector, row in DETECTORS.items() if not row.joint
        }
    origin = rows(study, ORIGIN)
    assert origin["norm", "range"].no_interval is None
    assert origin["hidden", "range"].no_interval == "only its mean over texts is kept"
    assert all(row.untold is None for row in study.rows)
    # Calibrated on the trained model inside its window, nothing of it fails there but what is cut up anew.
    assert all(row.position is None or row.position >= 512 for (_, name), row in origin.items() if name == "range")
    for row in origin.values():
        if row.lead is not None:
            assert row.lead == origin[TRUTH, PAIRED].position - row.position


def test_one_text_has_no_interval(rope: LoadedModel) -> None:
    work = Leads(rope, "origin", 640, "heldout", 1, 0, ("norm",), ("range",), 5)
    list(work.run())
    assert {row.no_interval for row in work.rows} == {"there is one text"}


def test_an_input_that_cannot_tell_says_so(rope: LoadedModel) -> None:
    """Random tokens are predicted no better than by a guess, so that no likelihood can fail on them."""
    ids = np.random.default_rng(0).integers(3, rope.model.config.vocab_size, 700).tolist()
    work = Leads(rope, "origin", 700, ids, 1, 0, ("norm",), ("range",), 5)
    list(work.run())
    [truth] = [row for row in work.rows if row.signal == TRUTH]
    assert truth.position is None and truth.untold is not None and "no better than" in truth.untold
    assert lead_summaries([work.result(True).to_json()]) == []


def test_intervals_are_quantiles_and_leads_of_the_same_draw() -> None:
    drawn, later = np.arange(100.0), np.arange(100.0) + 7
    found, truth = Found(50.0, drawn), Found(57.0, later)
    assert found.interval() == {"position": 50, "no_interval": None, "low": 2, "high": 97, "failing": 1.0}
    assert found.lead(truth) == {"lead": 7, "lead_low": 7, "lead_high": 7}
    late = Found(57.0, np.where(later > 60, math.inf, later))
    assert late.interval()["high"] is None and late.interval()["failing"] == 0.54
    assert Found(math.inf, drawn).lead(truth) == {}
    assert Found(50.0, None, "why").interval() == {"position": 50, "no_interval": "why"}


def test_blocks_without_a_value_lie_between_their_neighbours() -> None:
    nan = float("nan")
    course = np.array([[1.0, nan, nan], [nan, 4.0, nan], [3.0, nan, nan]])
    assert _filled(course).tolist() == [[1, 4], [2, 4], [3, 4]]
    assert _filled(np.array([nan, 2.0, nan, 6.0])).tolist() == [2, 2, 4, 6]


def test_summaries_count_by_hand() -> None:
    def result(model: str, *made: LeadRow) -> dict[str, object]:
        return {"rows": [ws.Records([row]).to_json()[0] for row in made], "settings": {"model": model, "window": 100}}

    found = lead_summaries([
        result(
            "a",
            LeadRow("s", TRUTH, PAIRED, 200), LeadRow("s", "norm", "range", 100, lead=100, lead_low=-1, lead_high=200),
            LeadRow("t", TRUTH, PAIRED), LeadRow("t", "norm", "range", 120),
            LeadRow("u", TRUTH, PAIRED, untold="why"), LeadRow("u", "norm", "range", 120),
        ),
        result("b", LeadRow("s", TRUTH, PAIRED, 150), LeadRow("s", "norm", "range", 150, lead=0, lead_low=0),
               LeadRow("t", TRUTH, PAIRED, 150), LeadRow("t", "norm", "range")),
    ])  # fmt: skip
    chosen, one = found
    assert (chosen.signal, chosen.pairs, chosen.hits) == (CHOSEN, 4, 2)  # there is but one to choose
    assert (one.pairs, one.failing, one.hits, one.false_alarms, one.early) == (4, 3, 2, 1, 2)
    assert one.lead == 0.5 and one.octaves == 0.5 and one.surely_early == 1


def test_one_that_was_stopped_goes_on_and_other_detectors_cost_no_pass(
    rope: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(detectors: tuple[str, ...]) -> Leads:
        store = PieceStore(tmp_path / "kept")
        return Leads(rope, "origin,rerope", 640, "heldout", 2, 3, ("norm",), detectors, 5, store)

    stopped = work(("range",)).run()
    next(stopped), next(stopped)
    stopped.close()
    whole = work(("range",))
    list(whole.run())
    alone = Leads(rope, "origin,rerope", 640, "heldout", 2, 3, ("norm",), ("range",), 5)
    list(alone.run())
    assert whole.rows == alone.rows

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pass")

    monkeypatch.setattr("probe.studies.leads.collect", refuse)
    again = work(("range", "change"))
    list(again.run())
    assert [row for row in again.rows if row.detector in ("range", PAIRED)] == whole.rows
    assert {row.detector for row in again.rows} == {"range", "change", PAIRED}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"length": 520}, "length: expected at least 576, the window and two run lengths, got 520"),
        ({"resamples": 0}, "resamples: expected at least 1, got 0"),
        ({"signals": ["nonsense"]}, "unknown signal 'nonsense'"),
        ({"detectors": ["nonsense"]}, "unknown detector 'nonsense'"),
    ],
)
def test_bad_settings_are_answered_before_anything_runs(
    rope: LoadedModel, changed: dict[str, object], said: str
) -> None:
    with pytest.raises(ProbeError, match=said):
        Leads(rope, **changed)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "leads.json"
    asked = [
        "leads",
        "--length",
        "640",
        "--input",
        "heldout",
        "--samples",
        "2",
        "--signals",
        "norm",
        "--resamples",
        "5",
    ]
    assert main([*asked, "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "paired likelihood" in said and "all schemes" in said
    made = json.loads(out.read_text())
    assert len(lead_rows(made)) == 1 + len(DETECTORS)
    assert main(["leads", "--read", str(out), str(out)]) == 0
    assert "2 results of rope" in capsys.readouterr().out
    assert main(["leads", "--read", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summaries"][0]["signal"] == "norm"
    assert main(["tables", str(out)]) == 0
    assert "| scheme | likelihood fails at |" in capsys.readouterr().out
    out.write_text(out.read_text().replace('"leads"', '"scan"'))
    assert main(["leads", "--read", str(out)]) == 2
    assert "expected the JSON of probe leads, got that of probe scan" in capsys.readouterr().err
    with pytest.raises(FieldError):
        lead_rows({"rows": [{"nonsense": 1}]})


def test_the_picture_has_a_point_where_it_belongs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        LeadRow("s", TRUTH, PAIRED, 200), LeadRow("s", "norm", "range", 100, lead=100), LeadRow("s", "hidden", "paper"),
        LeadRow("t", TRUTH, PAIRED), LeadRow("t", "norm", "range"), LeadRow("t", "hidden", "paper", 5),
    ]  # fmt: skip
    made = {
        "kind": "leads", "settings": {"model": "m", "window": 100}, "provenance": {}, "complete": True,
        "rows": ws.Records(rows).to_json(),
    }  # fmt: skip
    path = tmp_path / "leads.json"
    path.write_text(json.dumps(made))
    assert main(["figure", "leads", str(path), str(tmp_path / "drawn")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "drawn" / "leads.svg")
    drawn = ElementTree.parse(tmp_path / "drawn" / "leads.svg")
    points = [node for node in drawn.iter() if node.tag.endswith("circle") and len(node)]
    assert [(float(node.get("cx")), float(node.get("cy"))) for node in points] == [(0.0, 0.0), (440.0, 440.0)]
    assert points[0].get("fill") != "none" and points[1].get("fill") == "none"
    assert "1 of 1 failures, 0 false alarms, median lead +1.00" in points[0][0].text
    path.write_text(json.dumps(made | {"rows": made["rows"][:3]}))
    assert main(["figure", "leads", str(path), str(tmp_path / "drawn")]) == 2
    assert "in which something fails and something holds" in capsys.readouterr().err


def test_what_is_chosen_has_no_say_in_its_own_judgement() -> None:
    """Right on two models and wrong on the third, where the other signal is right: each model is judged by what the
    other two say.
    """

    def result(model: str, good: str, bad: str) -> dict[str, object]:
        rows = [
            LeadRow("s", TRUTH, PAIRED, 200), LeadRow("s", good, "range", 200, lead=0), LeadRow("s", bad, "range"),
            LeadRow("t", TRUTH, PAIRED), LeadRow("t", good, "range"), LeadRow("t", bad, "range", 5),
        ]  # fmt: skip
        return {"rows": ws.Records(rows).to_json(), "settings": {"model": model, "window": 100}}

    three = [result("a", "norm", "hidden"), result("b", "norm", "hidden"), result("c", "hidden", "norm")]
    chosen = lead_summaries(three)[0]
    assert (chosen.signal, chosen.pairs, chosen.failing) == (CHOSEN, 6, 3)
    # On c the others choose norm, which is wrong there twice; on a and b the two others are of two minds.
    assert chosen.hits <= 2 and chosen.false_alarms >= 1
    assert lead_summaries([result("a", "norm", "hidden")])[0].signal != CHOSEN
