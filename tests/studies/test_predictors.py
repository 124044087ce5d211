"""Scores judged on models that chose nothing, against brute force, scikit-learn and scans made up to be known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

import weavescope as ws
from probe.commands.main import main
from probe.errors import FieldError, ProbeError
from probe.provenance import Provenance
from probe.results import Records, write
from probe.studies.predictors import (
    CONTROL,
    INSIDE,
    LONG,
    Scanned,
    Study,
    best_threshold,
    binned,
    failure_length,
    score_names,
    summaries,
)
from probe.studies.scan import ScanResult, ScanRow

LENGTHS = (160, 256, 512)


def scan(model: str, seed: int = 0, window: int = 128) -> Scanned:
    """A model that fails past 1.5 windows under every second scheme; "good.mean" says so, "bad.mean" says nothing."""
    rng, rows = np.random.default_rng(seed), []
    for n in range(6):
        for length in LENGTHS:
            rise = math.log2(length / window) - 0.4 if n % 2 else 0.0
            noise = float(rng.normal(0, 0.01))
            inside = {"nll.mean": rise, "good.mean": 3 * rise + noise + 1, "bad.mean": float(rng.normal())}
            long = {"first dims.mean": float(rng.normal()), "far.mean": rise + noise}
            rows.append(ScanRow(f"s{n}", length, rise, rise - 0.05, rise + 0.05, inside, long, 1.0, 2.0))
    return Scanned(model, window, "documents", rows)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study([scan(name, seed) for seed, name in enumerate("abcd")])


def test_what_foretells_is_chosen_and_holds_on_the_model_that_had_no_say(study: Study) -> None:
    rows = [row for row in study.rows() if row.score == "chosen inside"]
    assert [row.model for row in rows] == list("abcd")
    for row in rows:
        assert row.chosen == "good.mean" and row.auroc == 1.0 and (row.hits, row.false_alarms) == (row.failing, 0)
        assert row.failing == 6 and row.pairs == 18 and row.untold == 0
        assert row.brier is not None and row.brier < 0.05
        assert row.schemes == 3 and row.octaves is not None and row.octaves < 0.3


def test_a_models_own_labels_never_reach_its_row(study: Study) -> None:
    first = study.scans[0]
    flipped = Scanned(
        first.model, first.window, first.input, [replace(row, low=-1.0 if row.fails else 1.0) for row in first.rows]
    )
    other = Study([flipped, *study.scans[1:]])
    for kind, name in ((INSIDE, "good.mean"), (LONG, "far.mean")):
        before, after = study.row(kind, name, first), other.row(kind, name, flipped)
        assert before.threshold == after.threshold and (after.auroc, before.auroc) == (0.0, 1.0)
    assert other.choose(INSIDE, "a") == study.choose(INSIDE, "a") == "good.mean"


def test_controls_do_no_better_than_chance(study: Study) -> None:
    found = {(one.kind, one.score): one for one in summaries(list(study.rows()))}
    assert found[CONTROL, "labels permuted"].auroc == pytest.approx(0.5, abs=0.03)
    always = found[CONTROL, "fails at M"]
    assert (always.auroc, always.hits, always.false_alarms) == (0.5, 1.0, 1.0)
    twice = found[CONTROL, "fails at 2M"]
    assert twice.hits == 1.0 and twice.false_alarms == pytest.approx(6 / 12)
    assert (CONTROL, "first dims.mean") in found and (LONG, "far.mean") in found
    assert found[INSIDE, "good.mean"].worst == 1.0


def test_the_truth_is_never_chosen(study: Study) -> None:
    assert (INSIDE, "nll.mean") in score_names(study.scans)
    assert not any(row.chosen == "nll.mean" for row in study.rows())


def test_a_score_that_is_missing_counts_as_untold(study: Study) -> None:
    first = study.scans[0]
    rows = [replace(row, inside={"bad.mean": 0.0}) if row.scheme == "s1" else row for row in first.rows]
    found = Study([Scanned("a", 128, "documents", rows), *study.scans[1:]]).row(
        INSIDE, "good.mean", Scanned("a", 128, "documents", rows)
    )
    assert (found.pairs, found.untold, found.failing) == (15, 3, 4)


def test_scores_of_a_scan_are_scikit_learns(study: Study) -> None:
    for kind, name in ((INSIDE, "bad.mean"), (LONG, "first dims.mean")):
        row = study.row(kind, name, study.scans[1])
        rows = study.scans[1].rows
        scores = [(one.inside if kind == INSIDE else one.long)[name] for one in rows]
        fails = [one.fails for one in rows]
        assert row.auroc == pytest.approx(roc_auc_score(fails, scores))
        assert row.auprc == pytest.approx(average_precision_score(fails, scores))


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=30))
def test_the_threshold_has_the_largest_share_of_hits_less_false_alarms(pairs: list[tuple[int, bool]]) -> None:
    scores, fails = np.array([score for score, _ in pairs], float), np.array([bad for _, bad in pairs])
    found = best_threshold(scores, fails)
    if fails.all() or not fails.any():
        assert found is None
        return

    def worth(cut: float) -> float:
        over = scores >= cut
        return float(over[fails].mean() - over[~fails].mean())

    best = max(map(worth, scores))
    assert (found is None) == (best <= 0)  # no cut is better than none
    if found is not None:
        assert worth(found) == pytest.approx(best)


@given(st.floats(0.05, 3), st.floats(-1, 1), st.floats(0.1, 0.9))
def test_the_failure_length_of_a_line_over_the_logarithm_is_exact(slope: float, base: float, share: float) -> None:
    floor = base + slope * 3 * share  # reached at 8 windows to the power of the share
    points = [(length, base + slope * math.log2(length / 100)) for length in (125, 200, 400, 800)]
    assume(all(abs(score - floor) > 1e-6 for _, score in points))
    found = failure_length(points, floor, 100, base)
    assert found == pytest.approx(100 * 8**share, rel=1e-6)


def test_a_failure_length_is_where_it_fails_for_good() -> None:
    points = [(200, 1.0), (300, 0.0), (400, 1.0)]
    assert failure_length(points, 0.5, 100, 0.0) == pytest.approx(math.sqrt(300 * 400))
    assert failure_length(points[:2], 0.5, 100, 0.0) is None and failure_length([], 0.5, 100, 0.0) is None
    assert failure_length([(400, 1.0)], 0.5, 100, None) == pytest.approx(200)  # halfway, where nobody knows


def test_one_model_judges_nobody() -> None:
    with pytest.raises(FieldError, match="scans of at least two models"):
        Study([scan("a"), scan("a", 1)])


def written(folder: Path, one: Scanned) -> Path:
    settings = {"model": one.model, "window": one.window, "input": one.input, "floor": 0.2}
    path = folder / f"{one.model}.json"
    write(ScanResult("scan", settings, Provenance.now(), Records(one.rows)), path)
    return path


def test_the_command(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(written(tmp_path, one)) for one in study.scans]
    out = tmp_path / "study.json"
    assert main(["study", *files, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 models, inputs documents, 72 pairs of scheme and length, 24 of them fail")
    assert "chosen inside" in said and "labels permuted" in said
    assert main(["tables", str(out)]) == 0
    assert "| chosen inside | inside | 1.000 |" in capsys.readouterr().out
    assert main(["study", files[0], "--json"]) == 2
    assert capsys.readouterr().err.startswith("probe: error: FILE: expected scans of at least two models")
    assert main(["study", *files, str(out)]) == 2
    assert f"{out}: expected the JSON of probe scan" in capsys.readouterr().err
    assert ws.study(files).rows == ws.study([Path(file) for file in files]).rows
    with pytest.raises(ProbeError, match="expected a JSON file"):
        ws.study([tmp_path / "nowhere.json"])
    assert json.loads(out.read_text())["settings"]["models"] == list("abcd")


def test_the_picture_has_a_point_per_pair_where_it_belongs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def one(rise: float, **inside: float) -> ScanRow:
        return ScanRow("origin", 200, rise, rise, rise, inside, {}, 1.0, 1.0)

    rows = [one(1.0, causes=1.0, distances=0.2), one(0.0, causes=0.0, distances=0.0), one(0.5, distances=0.0)]
    path = written(tmp_path, Scanned("m", 100, "documents", rows))
    assert main(["figure", "study", str(path), str(tmp_path / "drawn")]) == 0
    drawn = tmp_path / "drawn" / "study.svg"
    assert capsys.readouterr().out.strip() == str(drawn)
    points = [node for node in ElementTree.parse(drawn).iter() if node.tag.endswith("circle") and len(node)]
    at = [(float(node.get("cx")), float(node.get("cy")), node.get("fill")) for node in points]
    # From -0.5 to 1 over 460 pixels, the y axis upwards.
    assert at[0][:2] == pytest.approx((460, 0), abs=0.1) and at[1][:2] == pytest.approx((153.3, 306.7), abs=0.1)
    assert at[2][:2] == pytest.approx((153.3, 153.3), abs=0.1)
    assert at[2][2] == "none" and at[0][2] != "none"  # the number of its keys could not be told
    assert "predicted 1.00, measured 1.00" in points[0][0].text
    (tmp_path / "other.json").write_text(json.dumps(json.loads(path.read_text()) | {"rows": []}))
    assert main(["figure", "study", str(tmp_path / "other.json"), str(tmp_path)]) == 2
    assert "expected the JSON of probe scan, with at least one pair" in capsys.readouterr().err


def test_bins_of_probability_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(400)
    fails = rng.random(400) < said
    edges = tuple(np.linspace(0, 1, 6))
    rows = list(binned("s", INSIDE, said, fails, edges))
    share, mean = calibration_curve(fails, said, n_bins=5)
    assert [row.share for row in rows] == pytest.approx(share) and [row.said for row in rows] == pytest.approx(mean)
    assert sum(row.pairs for row in rows) == 400 and all(row.share_low < row.share < row.share_high for row in rows)
    assert list(binned("s", INSIDE, np.array([1.0, 0.0]), np.array([True, False]), edges))[1].pairs == 1


def test_probabilities_come_from_the_other_models(study: Study, tmp_path: Path) -> None:
    """Flipped labels of one model leave what is said of it, and turn what failed of it."""
    first = study.scans[0]
    flipped = replace(first, rows=[replace(row, low=-1.0 if row.fails else 1.0) for row in first.rows])
    alone = Study([first, *study.scans[1:]]).result().calibration
    other = Study([flipped, *study.scans[1:]]).result().calibration
    name = "chosen inside"
    assert sum(row.pairs for row in alone if row.score == name) == 72
    assert sum(row.failing for row in other if row.score == name) == 24 - 6 + 12
    high = [row for row in alone if row.score == name and row.low >= 0.8]
    assert sum(row.failing for row in high) > 0.8 * sum(row.pairs for row in high)
    path = tmp_path / "study.json"
    write(study.result(), path)
    assert main(["figure", "study", str(path), str(tmp_path / "drawn")]) == 0
    drawn = ElementTree.parse(tmp_path / "drawn" / "calibration.svg")
    points = [node for node in drawn.iter() if node.tag.endswith("circle") and len(node)]
    assert len(points) == len(study.result().calibration)


def keyed(name: str, seed: int) -> Scanned:
    """Pass keys are lost where the length is more than twice the window, whatever the likelihood does."""
    one = scan(name, seed)
    rows = [
        replace(row, keys_found=0 if row.length > 256 else 9, keys_asked=10, keys_inside=10,
                inside=dict(row.inside) | {"key.nats": float(row.length)})
        for row in one.rows
    ]  # fmt: skip
    return replace(one, rows=rows)


def test_pass_keys_are_a_truth_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans = [keyed(name, seed) for seed, name in enumerate("abc")]
    rows = {row.model: row for row in Study([one.about("keys") for one in scans]).rows() if row.score == "key.nats"}
    assert {row.auroc for row in rows.values()} == {1.0} and {row.failing for row in rows.values()} == {6}
    # Lost at four windows and kept at two: half is lost between them.
    assert rows["a"].schemes == 6 and rows["a"].octaves is not None and rows["a"].octaves < 0.6
    files = [str(written(tmp_path, one)) for one in scans]
    assert main(["study", *files, "--truth", "keys"]) == 0
    assert "18 of them fail by pass keys" in capsys.readouterr().out
    assert main(["study", *files, "--truth", "nonsense"]) == 2
    assert "unknown truth 'nonsense'; known: text, keys" in capsys.readouterr().err
    plain = [str(written(tmp_path, scan(name))) for name in "xy"]
    assert main(["study", *plain, "--truth", "keys"]) == 2
    assert "--truth keys: no scan there has it" in capsys.readouterr().err
    assert ws.study(files, truth="keys").settings["truth"] == "keys"


def test_keys_that_the_model_never_found_cannot_be_lost() -> None:
    row = ScanRow("s", 512, 0.0, 0.0, 0.0, {}, {}, 1.0, 1.0, keys_found=0, keys_asked=10, keys_inside=4)
    assert row.loses_keys is None and replace(row, keys_inside=5).loses_keys
    assert replace(row, keys_found=4, keys_inside=8).loses_keys is False
    assert replace(row, keys_found=None, keys_asked=None, keys_inside=None).keys_kept is None
