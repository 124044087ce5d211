"""Two causes of failure, told apart on models whose cause is known."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import weavescope as ws
from probe.commands.main import main
from probe.errors import FieldError
from probe.models.load import LoadedModel, load_model
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme
from probe.studies.causes import (
    COPIES,
    GAP,
    KEYS,
    WHOLE,
    CauseRow,
    Causes,
    agreement,
    crossing,
    failure_between,
    gap_for,
    keys_seen,
    lengths_up_to,
    paired_interval,
    split,
)
from probe.tasks.documents import document_batch
from probe.tasks.nll import nll_per_position

LENGTHS = (640, 2048)


@pytest.fixture(scope="module")
def rope() -> LoadedModel:
    return load_model("rope")


@pytest.fixture(scope="module")
def rows(rope: LoadedModel) -> list[CauseRow]:
    work = Causes(rope, "origin,rerope", samples=3, seed=1, lengths=LENGTHS, length=2048)
    assert work.total == 16
    list(work.run())
    assert len(work.rows) == 16 and work.result(True).settings["measured"] == list(LENGTHS)
    return work.rows


def one(rows: list[CauseRow], scheme: str, cause: str, length: int) -> CauseRow:
    (found,) = [row for row in rows if (row.scheme, row.cause, row.length) == (scheme, cause, length)]
    return found


def test_a_rotary_model_fails_by_distances_and_the_gap_says_so(rows: list[CauseRow]) -> None:
    whole, keys, gap = (one(rows, "origin", cause, 2048) for cause in (WHOLE, KEYS, GAP))
    assert whole.fails and gap.fails and not keys.fails
    assert not any(one(rows, "origin", cause, 640).fails for cause in (WHOLE, KEYS, GAP))
    assert not any(row.fails for row in rows if row.scheme == "rerope")
    origin, rerope = split(rows, 512)
    assert origin.predicted == origin.measured == (640, 2048)
    assert origin.distances is not None and origin.distances > 0.8
    assert (rerope.predicted, rerope.measured, rerope.distances) == (None, None, None)
    assert origin.predicted_at is not None and 640 < origin.predicted_at < 2048
    assert rerope.predicted_at is None and rerope.measured_at is None


@torch.no_grad()
def test_rises_are_those_of_passes_made_by_hand(rope: LoadedModel, rows: list[CauseRow]) -> None:
    """Stock model, its own position_ids for the gap, no scheme anywhere."""
    long, window = (document_batch(rope, length, 3, 1) for length in (2048, 512))
    assert torch.equal(long[:, -511:], window[:, -511:])
    stock, tail = rope.model, slice(-128, None)

    def nll(ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        mask = torch.ones_like(ids)
        logits = stock(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")

    whole = (nll(long)[:, tail] - nll(window)[:, tail]).mean()
    assert one(rows, "origin", WHOLE, 2048).rise == pytest.approx(float(whole), abs=1e-4)
    at, gap = gap_for(512, 2048)
    assert (at, gap) == (256, 1536)
    there = torch.arange(512) + gap * (torch.arange(512) >= at)
    alone = torch.cat((window[:, :1], window[:, at:]), dim=1)
    moved = nll(window, there[None].expand(3, -1))[:, tail] - nll(alone)[:, tail]
    assert one(rows, "origin", GAP, 2048).rise == pytest.approx(float(moved.mean()), abs=1e-4)
    with apply_scheme(stock, parse_scheme("rerope(N=511)", 512)):
        folded = torch.cat([nll_per_position(stock, row) for row in long.split(1)])
    assert one(rows, "origin", KEYS, 2048).rise == pytest.approx(
        float((folded[:, tail] - nll(window)[:, tail]).mean()), abs=1e-4
    )


def test_a_model_without_positions_fails_by_keys_alone() -> None:
    work = Causes(load_model("nope"), "origin", samples=3, seed=1, lengths=LENGTHS, length=2048)
    list(work.run())
    whole, keys, gap, copies = (one(work.rows, "origin", cause, 2048) for cause in (WHOLE, KEYS, GAP, COPIES))
    assert copies.fails and copies.rise == pytest.approx(whole.rise, rel=0.3)
    assert not one(work.rows, "origin", COPIES, 640).fails
    assert whole.fails and not gap.fails and keys.rise == pytest.approx(whole.rise, abs=1e-6)
    (found,) = split(work.rows, 512)
    assert found.distances == pytest.approx(0, abs=1e-6) and found.predicted == found.measured == (640, 2048)


def test_a_prediction_runs_nothing_past_the_window(rope: LoadedModel) -> None:
    seen: list[int] = []
    handle = rope.model.model.embed_tokens.register_forward_hook(lambda _m, ids, _o: seen.append(ids[0].shape[1]))
    work = Causes(rope, "origin", length=100_000, lengths=[100_000], samples=1, measure=0)
    list(work.run())
    handle.remove()
    assert max(seen) == 512 and [row.cause for row in work.rows] == [GAP, COPIES]
    assert split(work.rows, 512)[0].measured is None and work.result(True).settings["measured"] == []


def test_keys_of_a_scheme_that_hides_some(rope: LoadedModel) -> None:
    """A query that never sees more than M keys has no second cause; in Mesa some see all, and others do not."""
    work = Causes(rope, "streaming-llm,mesa", length=1024, lengths=[1024], samples=1, measure=0)
    list(work.run())
    streaming, mesa = (one(work.rows, spec, COPIES, 1024) for spec in ("streaming-llm", "mesa"))
    assert keys_seen(work.schemes[0], 1024) == 512 and streaming.rise == pytest.approx(0, abs=1e-3)
    assert keys_seen(work.schemes[1], 1024) == 1024 and mesa.rise is None
    first, second = split(work.rows, 512)
    assert first.untold is None and second.untold == mesa.untold is not None


def test_a_weave_past_the_window_is_not_folded(rope: LoadedModel) -> None:
    work = Causes(rope, "stair(N=500,E=2)", length=1024, lengths=[1024], samples=1)
    list(work.run())
    keys = one(work.rows, "stair(N=500,E=2)", KEYS, 1024)
    assert keys.rise is None and keys.untold is not None and not keys.fails


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        values = rng.normal(0.3, 1.0, (4, 512))
        mean, low, high = paired_interval(values, seed=trial, resamples=400)
        assert low < mean < high and mean == pytest.approx(values.mean())
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_failure_lasts_to_the_end() -> None:
    def made(*lows: float) -> list[CauseRow]:
        return [CauseRow("s", length, WHOLE, low, low, low) for length, low in zip((600, 700, 800), lows, strict=True)]

    assert failure_between(made(0.3, 0.1, 0.3), "s", [WHOLE], 512) == (700, 800)
    assert failure_between(made(0.3, 0.3, 0.3), "s", [WHOLE], 512) == (512, 600)
    assert failure_between(made(0.3, 0.3, 0.1), "s", [WHOLE], 512) is None


def test_agreement_counts_and_orders_as_scikit_learn_would() -> None:
    """AUROC by its definition: the share of (failing, holding) pairs in the right order, ties a half."""
    rng = np.random.default_rng(0)
    rows, bad, good = [], [], []
    for n in range(40):
        predicted, fails = float(round(rng.normal(0.3, 0.4), 1)), bool(rng.random() < 0.4)
        low = 0.5 if fails else 0.0
        rows.append(CauseRow(f"s{n}", 600, GAP, predicted, predicted - 0.1, predicted + 0.1))
        rows.append(CauseRow(f"s{n}", 600, COPIES, -1.0, -1.0, -1.0))
        rows.append(CauseRow(f"s{n}", 600, WHOLE, low, low, low))
        (bad if fails else good).append(predicted)
    found = agreement(rows, 512)
    right = [(a > b) + 0.5 * (a == b) for a in bad for b in good]
    assert found.auroc == pytest.approx(np.mean(right))
    assert (found.pairs, found.untold, found.failing) == (40, 0, len(bad))
    doubtful = CauseRow("s0", 600, COPIES, untold="why")
    assert agreement([row if row.rise != -1.0 or row.scheme != "s0" else doubtful for row in rows], 512).untold == 1
    assert found.hits == sum(a - 0.1 > 0.2 for a in bad) and found.false_alarms == sum(b - 0.1 > 0.2 for b in good)
    assert found.median_octaves is None or found.median_octaves >= 0
    assert agreement([row for row in rows if row.scheme == "s0"], 512).auroc is None


def test_where_a_rise_crosses_is_read_off_a_line_over_octaves() -> None:
    def at(*rises: float) -> int | None:
        rows = [CauseRow("s", length, GAP, rise) for length, rise in zip((1024, 2048, 4096), rises, strict=True)]
        return crossing(rows, 512)

    assert at(0.0, 0.4, 0.8) == round(1024 * 2**0.5)
    assert at(0.4, 0.5, 0.6) == round(512 * 2**0.5)  # the window itself has no rise
    assert at(0.5, 0.1, 0.3) == round(2048 * 2**0.5)  # for good
    assert at(0.5, 0.5, 0.1) is None
    both = [CauseRow("s", 1024, GAP, -0.3), CauseRow("s", 1024, COPIES, 0.4), CauseRow("s", 2048, COPIES, untold="x")]
    assert crossing(both, 512) == round(512 * 2**0.5)


def test_lengths_lead_up_to_the_one_asked_for() -> None:
    assert lengths_up_to(512, 1024) == (576, 640, 768, 1024)
    assert lengths_up_to(512, 530) == (530,)
    assert gap_for(512, 576) == (64, 64) and gap_for(512, 513) == (1, 1)


def test_the_command_says_it_writes_it_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "causes.json"
    asked = ["causes", "--scheme", "origin,stair(N=500,E=2)", "--lengths", "640,1024", "--measure", "640"]
    assert main([*asked, "--samples", "1", "--quiet", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "distances, predicted" in said and "none up to 640" in said and "a failure is above 0.2" in said
    result = json.loads(out.read_text())
    assert len(result["rows"]) == 2 * (2 * 2 + 2) and result["settings"]["measured"] == [640]
    assert main(["tables", str(out)]) == 0
    assert "| `origin` | 1024 (2M) |" in capsys.readouterr().out
    assert main(["figure", "causes", str(out), str(tmp_path / "pictures")]) == 0
    assert main(["figure", "causes", str(out), str(tmp_path), "--scheme", "rerope"]) == 2
    assert "unknown scheme 'rerope'; known: origin" in capsys.readouterr().err
    assert main(["figure", "causes", str(out), str(tmp_path), "--scheme", "origin"]) == 0
    assert (tmp_path / "causes.svg").read_text().count("<circle") == 2 * 2 + 2
    drawn = ElementTree.parse(tmp_path / "pictures" / "causes.svg").getroot()
    assert len(drawn.findall(".//{*}circle")) == sum(row["rise"] is not None for row in result["rows"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--length", "512"), "--length: expected more than the window of 512 tokens, got 512"),
        (("--lengths", "300,900"), "--lengths: expected some, all above the window of 512"),
        (("--tail", "257"), "--tail: expected 1 to 256, half of the window, got 257"),
        (("--samples", "0"), "--samples: expected at least 1, got 0"),
        (("--length", "1000000"), "--length: expected at most the"),
        (("--scheme", "rerop"), "did you mean rerope?"),
    ],
)
def test_bad_input_is_a_line(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["causes", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_library_gives_the_same_rows(rows: list[CauseRow]) -> None:
    found = ws.load("rope").causes("origin", lengths=[2048], measure=0, samples=3, seed=1)
    assert found.rows[0] == one(rows, "origin", GAP, 2048)


def test_lengths_may_be_told_in_windows(rope):
    work = Causes(rope, lengths=["1.5M", 640], samples=1, measure=0)
    assert work._settings()["lengths"] == [768, 640] and work.length == 768
    with pytest.raises(FieldError, match="above the window of 512"):
        Causes(rope, lengths=["M/2", "2M"], samples=1)
