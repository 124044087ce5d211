"""A scan: its truths are those of `probe causes`, and one that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import weavescope as ws
from probe.commands.main import main
from probe.errors import FieldError, ProbeError
from probe.models.load import LoadedModel, load_model, wrap_model
from probe.schemes import parse_scheme
from probe.schemes.cut_out import largest_position
from probe.studies.causes import COPIES, GAP, WHOLE, Causes
from probe.studies.pieces import PieceStore
from probe.studies.scan import Scan, ScanRow, rank_units

QUICK = ("norm", "hidden")


@pytest.fixture(scope="module")
def rope() -> LoadedModel:
    return load_model("rope")


@pytest.fixture(scope="module")
def scanned(rope: LoadedModel) -> Scan:
    work = Scan(rope, "origin,rerope,mesa", [640, 1536], samples=2, seed=1)
    assert [line.split()[0] for line in work.run()] == ["origin", "rerope", "mesa"] * 2 and work.total == 6
    return work


def row(work: Scan, scheme: str, length: int) -> ScanRow:
    (found,) = [row for row in work.rows if (row.scheme, row.length) == (scheme, length)]
    return found


def test_truth_and_predictions_are_those_of_causes(rope: LoadedModel, scanned: Scan) -> None:
    """Measured there by another path: no hooks, no blocks."""
    other = Causes(rope, "origin,rerope,mesa", samples=2, seed=1, lengths=[640, 1536], length=1536)
    list(other.run())
    for one in scanned.rows:
        theirs = {row.cause: row for row in other.rows if (row.scheme, row.length) == (one.scheme, one.length)}
        assert one.rise == pytest.approx(theirs[WHOLE].rise, abs=2e-4)
        assert (one.low, one.high) == pytest.approx((theirs[WHOLE].low, theirs[WHOLE].high), abs=2e-4)
        assert one.inside["distances"] == pytest.approx(theirs[GAP].rise, abs=2e-4)
        keys = theirs[COPIES].rise
        if keys is None:
            assert "keys" not in one.inside and "causes" not in one.inside
        else:
            assert one.inside["keys"] == pytest.approx(keys, abs=2e-4)
            assert one.inside["causes"] == max(one.inside["keys"], one.inside["distances"])
    assert row(scanned, "mesa", 640).inside.get("causes") is None


def test_every_signal_is_there_and_more_departs_where_the_model_fails(scanned: Scan) -> None:
    origin, rerope = row(scanned, "origin", 1536), row(scanned, "rerope", 1536)
    names = {name.split(".")[0] for name in origin.long if " " not in name}
    assert names == {choice.name for choice in ws.choices("signal")}
    assert origin.fails and not rerope.fails
    for scores in ("inside", "long"):
        mine, other = getattr(origin, scores), getattr(rerope, scores)
        assert mine["output_entropy.mean"] > other["output_entropy.mean"]
    assert origin.long["far_mass.mean"] == 100.0  # there is none inside the window
    controls = ("first dims.mean", "random dims.mean", "rotated dims.mean", "paper's rule.share")
    assert all(name in row.long for name in controls for row in scanned.rows)
    assert not any(name.startswith("shuffled entropy") for name in origin.long)


def test_theory_is_the_largest_position_in_octaves_past_the_window(rope: LoadedModel, scanned: Scan) -> None:
    assert row(scanned, "origin", 1536).inside["theory"] == pytest.approx(np.log2(1535 / 511))
    weave = parse_scheme("rerope", 512).weave_at(1536)
    expected = np.log2(largest_position(weave, 1536) / 511)
    assert row(scanned, "rerope", 1536).inside["theory"] == pytest.approx(expected) and expected < 0
    squeezed = Scan(rope, "pi", [1024], samples=1, signals=QUICK)
    list(squeezed.run())
    assert squeezed.rows[0].inside["theory"] == pytest.approx(np.log2(1023 * 0.5 / 511), abs=1e-3)


def test_units_are_ranked_by_how_well_they_tell(scanned: Scan) -> None:
    found = scanned.result(True)
    counts = {signal: sum(one.signal == signal for one in found.units) for signal in ("hidden", "entropy", "nll")}
    assert counts == {"hidden": 3, "entropy": 3, "nll": 1}
    assert found.units[0].auroc == max(one.auroc for one in found.units) > 0.5
    best = next(one for one in found.units if one.signal == "entropy")
    far = [scanned.units[row.scheme, row.length]["entropy"][best.layer - 1, best.unit] for row in scanned.rows]
    fails = [row.fails for row in scanned.rows]
    assert best.auroc == pytest.approx(roc_auc_score(fails, far)) and any(fails)
    assert {one.layer for one in found.units if one.signal == "nll"} == {0}
    assert found.to_json()["units"][0] == {**vars(found.units[0])}
    assert rank_units([], {}) == ()


def ids_for(samples: int, length: int) -> torch.Tensor:
    ids = torch.randint(3, 97, (samples, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 1
    return ids


def tiny_scan(model: nn.Module, store: PieceStore | None = None, **changed: object) -> Scan:
    loaded = wrap_model(model, None, window=64)
    chosen = {"schemes": "origin,rerope", "lengths": [80, 128], "input": ids_for(2, 128), "signals": QUICK}
    return Scan(loaded, store=store or PieceStore(), **(chosen | changed))  # type: ignore[arg-type]


def without_seconds(work: Scan) -> list[dict]:
    return [{key: value for key, value in vars(row).items() if "seconds" not in key} for row in work.rows]


def test_one_that_was_stopped_goes_on_and_measures_nothing_twice(
    tiny_llama: Callable[..., nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    whole = tiny_scan(model)
    list(whole.run())
    keep = tmp_path / "kept"
    stopped = tiny_scan(model, PieceStore(keep))
    for n, _ in enumerate(stopped.run()):
        if n == 1:
            break
    files = sorted(keep.glob("*.safetensors"))
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:100])  # killed while the disk was full
    again = tiny_scan(model, PieceStore(keep))
    real, calls = PieceStore.keep, []
    monkeypatch.setattr(PieceStore, "keep", lambda self, key, *rest: (calls.append(key), real(self, key, *rest)))
    list(again.run())
    assert len(calls) == 3  # the damaged one, and the two that were not reached
    assert without_seconds(again) == without_seconds(whole)
    for key, units in whole.units.items():
        for signal, values in units.items():
            np.testing.assert_array_equal(again.units[key][signal], values)
    assert again.result(True).units == whole.result(True).units


def test_a_folder_of_something_else_is_refused(tiny_llama: Callable[..., nn.Module], tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    list(tiny_scan(tiny_llama(), PieceStore(keep), lengths=[80]).run())
    with pytest.raises(FieldError, match=r"what is there was made with something else: .*tail 16 then, 8 now"):
        list(tiny_scan(tiny_llama(), PieceStore(keep), lengths=[80], tail=8).run())
    same = json.loads((keep / "made_with.json").read_text())
    with PieceStore(keep).opened(same), pytest.raises(FieldError, match="another process is at work there"):
        list(tiny_scan(tiny_llama(), PieceStore(keep), lengths=[80]).run())
    (keep / "made_with.json").write_text("{")
    with pytest.raises(FieldError, match="cannot be read; delete it"):
        list(tiny_scan(tiny_llama(), PieceStore(keep), lengths=[80]).run())
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("kept")
    with pytest.raises(FieldError, match="not empty and holds nothing of this kind"):
        list(tiny_scan(tiny_llama(), PieceStore(other)).run())
    assert (other / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"lengths": [64]}, r"lengths: expected some, all above the window of 64, got \[64\]"),
        ({"lengths": []}, "lengths: expected some"),
        ({"tail": 33}, "tail: expected 1 to 32, half of the window, got 33"),
        ({"signals": ("norms",)}, "unknown signal 'norms'"),
        ({"schemes": "rerope(N=0)"}, "N"),
        ({"lengths": [80, 200]}, "asks for 200"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    chosen: dict, said: str, tiny_llama: Callable[..., nn.Module]
) -> None:
    with pytest.raises(ProbeError, match=said):
        tiny_scan(tiny_llama(), **chosen)


def test_the_default_schemes_are_those_that_fit() -> None:
    with_rotary = [one.spec for one in Scan(load_model("rope"), samples=1, lengths=[1024]).schemes]
    without = [one.spec for one in Scan(load_model("nope"), samples=1, lengths=[1024]).schemes]
    assert {"origin", "pi", "mesa+logn", "rerope"} <= set(with_rotary) and with_rotary[0] == "origin"
    assert "pi" not in without and "origin+logn" in without


def test_an_input_that_ends_at_the_window_has_no_side_to_drift_to(tiny_llama: Callable[..., nn.Module]) -> None:
    work = tiny_scan(tiny_llama(), lengths=[66, 80])
    list(work.run())
    assert ["paper's rule.share" in one.long for one in work.rows] == [False, False, True, True]


@pytest.mark.parametrize(("window", "expected"), [(64, [80, 96, 128, 256]), (8192, [10240, 12288, 16384])])
def test_default_lengths_are_those_that_a_run_goes_to(
    window: int, expected: list[int], tiny_llama: Callable[..., nn.Module]
) -> None:
    loaded = wrap_model(tiny_llama(), None, window=window)
    assert Scan(loaded, "origin", input=ids_for(1, 2 * 8192), signals=QUICK).lengths == expected


def test_other_texts_or_another_precision_are_something_else(
    tiny_llama: Callable[..., nn.Module], tmp_path: Path
) -> None:
    keep = tmp_path / "kept"
    list(tiny_scan(tiny_llama(), PieceStore(keep), lengths=[80]).run())
    with pytest.raises(FieldError, match=r"^keep .*sha256 .* then, .* now"):
        list(tiny_scan(tiny_llama(), PieceStore(keep), lengths=[80], input=ids_for(2, 128).flip(0)).run())
    with pytest.raises(FieldError, match=r"dtype torch\.float32 then, torch\.float64 now"):
        list(tiny_scan(tiny_llama().double(), PieceStore(keep), lengths=[80]).run())


def test_a_positional_signal_alone_is_what_it_is_among_all(tiny_llama: Callable[..., nn.Module]) -> None:
    alone, among = (
        tiny_scan(tiny_llama(), signals=names) for names in (["positional_norm"], ["positional_norm", *QUICK])
    )
    list(alone.run())
    list(among.run())
    for one, other in zip(alone.rows, among.rows, strict=True):
        assert {name.split(".")[0] for name in one.long if " " not in name} == {"positional_norm"}
        assert one.long["positional_norm.mean"] == other.long["positional_norm.mean"]
        assert one.inside["positional_norm.max"] == other.inside["positional_norm.max"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scan.json.gz"
    call = ["scan", "--scheme", "origin,rerope", "--lengths", "640", "--samples", "1", "--signals", "norm", "--quiet"]
    assert main([*call, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no pairs fail, so that no score can tell them apart" in said and "rise, predicted" in said
    assert out.read_bytes()[:2] == b"\x1f\x8b"
    assert main(["tables", str(out)]) == 0
    assert "| `rerope` | 640 (1.25M) |" in capsys.readouterr().out
    assert main([*call, "--signals", "norm,nothing"]) == 2
    assert "unknown signal 'nothing'" in capsys.readouterr().err
    assert main(["signals"]) == 0
    assert "positional_similarity" in capsys.readouterr().out
    assert main(["signals", "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)["signals"]} >= {"hidden", "nll"}
    out.write_bytes(out.read_bytes()[:50])
    assert main(["tables", str(out)]) == 2
    assert "expected a JSON file" in capsys.readouterr().err


def test_in_python(tmp_path: Path) -> None:
    found = ws.load("rope").scan("origin", lengths=[640], samples=1, signals=["norm"], keep=tmp_path / "kept")
    assert found.kind == "scan" and found.rows[0].length == 640 and found.settings["signals"] == ["norm"]


def test_pass_keys_of_a_pair_are_those_of_eval(rope: LoadedModel, tmp_path: Path) -> None:
    """Counted there by another path; and the short prompts are of no other length."""
    work = Scan(
        rope, "origin,rerope", [1024], samples=1, signals=("norm",), keys=6, store=PieceStore(tmp_path / "kept")
    )
    list(work.run())
    for one in work.rows:
        found = ws.load("rope").evaluate("passkey", one.scheme, lengths=[1024], samples=6)
        assert one.keys_found == found.rows[0].correct and one.keys_asked == 6
        assert one.keys_inside is not None and one.keys_inside >= 5 and one.loses_keys is (one.scheme == "origin")
        assert one.inside["key.nats"] == max(one.inside["key moved.nats"], one.inside["key among.nats"])
    assert row(work, "origin", 1024).inside["key.nats"] > row(work, "rerope", 1024).inside["key.nats"]
    again = Scan(
        rope, "origin,rerope", [1024], samples=1, signals=("norm",), keys=6, store=PieceStore(tmp_path / "kept")
    )
    list(again.run())
    assert again.rows == work.rows
    with pytest.raises(FieldError, match="keys: expected at least 0, got -1"):
        Scan(rope, "origin", [1024], keys=-1)


@pytest.mark.parametrize("model", ["alibi-256", "nope-256", "rope-b1e3"])
def test_every_scheme_that_fits_a_model_is_scanned_by_default(model: str) -> None:
    """`nope` among them, which fits models without rotary frequencies too."""
    work = Scan(load_model(model), None, [288], samples=1, signals=("norm",))
    list(work.run())
    assert len(work.rows) == work.total == len(work.schemes) and "nope" in {row.scheme for row in work.rows}


def test_lengths_may_be_told_in_windows(capsys):
    call = ["scan", "--model", "rope-b1e3", "--scheme", "origin", "--lengths", "1.5M", "--samples", "1",
            "--signals", "nll", "--quiet", "--json"]  # fmt: skip
    assert main(call) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["lengths"] == [384]
    assert main(["scan", "--model", "rope-b1e3", "--lengths", "M"]) == 2
    assert "above the window of 256, got [256]" in capsys.readouterr().err
