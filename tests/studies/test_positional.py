"""The share of position: against sums of squares by hand, and on vectors whose parts are known."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import weavescope as ws
from probe.commands.main import main
from probe.errors import FieldError, ProbeError
from probe.models.load import LoadedModel, load_model
from probe.recording.hooks import record
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme
from probe.studies.pieces import PieceStore
from probe.studies.positional import INSIDE, PAST, Positional, PositionalRow, share_interval, shares
from probe.tasks.inputs import draw_input

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def nope() -> LoadedModel:
    return load_model("nope-256")


@given(seed=seeds, position=st.floats(0, 3), text=st.floats(0, 3))
def test_known_parts_are_found(seed: int, position: float, text: float) -> None:
    """Of many dimensions: each part's own variance over that of all."""
    rng = np.random.default_rng(seed)
    vectors = (
        position * rng.normal(size=(1, 40, 200)) + text * rng.normal(size=(12, 1, 200)) + rng.normal(size=(12, 40, 200))
    )
    whole = position**2 + text**2 + 1
    found = shares(vectors)
    assert found == pytest.approx((position**2 / whole, text**2 / whole), abs=0.06)


@given(seed=seeds)
def test_chance_leaves_nothing(seed: int) -> None:
    """Three texts: the mean over them has a third of the variance by chance alone, and none of it counts."""
    vectors = np.random.default_rng(seed).normal(size=(3, 50, 100))
    assert np.square(vectors.mean(0)).mean() > 0.3
    share, low, high, text = share_interval(vectors)
    assert abs(share) < 0.05 and abs(text) < 0.05 and low <= share <= high


def test_sums_of_squares_are_those_by_hand() -> None:
    vectors = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 2.0]])[..., None]
    grand, by_position, by_text = 3.0, [2.0, 3.0, 4.0], [3.0, 3.0]
    total = sum((value - grand) ** 2 for row in vectors[..., 0] for value in row)
    position = 2 * sum((value - grand) ** 2 for value in by_position)
    rest = (total - position) / 2
    assert shares(vectors)[0] == pytest.approx((position - 2 * rest) / (total + rest))
    assert shares(vectors)[1] == pytest.approx(
        (3 * sum((value - grand) ** 2 for value in by_text) - rest) / (total + rest)
    )


def test_rows_are_of_the_vectors_that_a_recording_has(nope: LoadedModel) -> None:
    """Mesa too, which runs in parts."""
    work = Positional(nope, "origin,mesa", 600, "heldout", 4, 1)
    assert list(work.run()) == ["origin", "mesa"] and work.total == 2
    ids = draw_input(nope, "heldout", 600, 4, 1).ids
    for spec in ("origin", "mesa"):
        each = []
        for row in ids.split(1):
            with apply_scheme(nope.model, parse_scheme(spec, 256)):
                with record(nope.model, ["resid"], [2], range(nope.model.config.hidden_size)) as found:
                    nope.model.base_model(input_ids=row, use_cache=False)
                each.append(found.values("resid", 2)[0].double().numpy())
        for where in (INSIDE, PAST):
            expected = share_interval(np.stack(each)[:, work.positions[where]])
            [row] = [one for one in work.rows if (one.scheme, one.layer, one.where) == (spec, 2, where)]
            assert (row.share, row.low, row.high, row.text) == pytest.approx(expected, abs=1e-5)
    assert work.positions[INSIDE][0] == 32 and work.positions[INSIDE][-1] == 255
    assert work.positions[PAST][0] == 256 and work.positions[PAST][-1] == 599 and len(work.positions[PAST]) == 64


def test_nope_keeps_positions_in_its_hidden_states_and_rope_does_not() -> None:
    def largest(loaded: LoadedModel) -> PositionalRow:
        work = Positional(loaded, "origin", loaded.window + 64, "heldout", 6, 0)
        list(work.run())
        return max((row for row in work.rows if row.where == INSIDE), key=lambda row: row.share)

    assert largest(load_model("nope")).low > 0.1 and largest(load_model("rope-b1e4")).share < 0.05


def test_one_that_was_stopped_goes_on(nope: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(schemes: str) -> Positional:
        return Positional(nope, schemes, 300, "heldout", 3, 0, PieceStore(tmp_path / "kept"))

    first = work("origin")
    list(first.run())
    monkeypatch.setattr(Positional, "_vectors", lambda *_: pytest.fail("a pass"))
    again = work("origin")
    list(again.run())
    assert again.rows == first.rows


def test_bad_settings_are_answered(nope: LoadedModel) -> None:
    with pytest.raises(FieldError, match="length: expected at least 264, the window and 8 more, got 260"):
        Positional(nope, length=260)
    with pytest.raises(FieldError, match="samples: expected at least 3"):
        Positional(nope, length=300, samples=2)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "share.json"
    asked = ["positional", "--model", "nope-256", "--length", "300", "--input", "heldout", "--samples", "3", "--quiet"]
    assert main([*asked, "--out", str(out)]) == 0
    assert "position, past M" in capsys.readouterr().out
    made = json.loads(out.read_text())
    layers = ws.load("nope-256").layers
    assert len(made["rows"]) == 2 * layers
    assert main(["tables", str(out)]) == 0
    assert "| `origin` | 1 |" in capsys.readouterr().out
    assert main(["figure", "positional", str(out), str(tmp_path / "drawn")]) == 0
    drawn = ElementTree.parse(tmp_path / "drawn" / "share.svg")
    assert sum(1 for node in drawn.iter() if node.tag.endswith("circle")) == 2 * layers
    out.write_text(json.dumps(made | {"rows": [{"nonsense": 1}]}))
    assert main(["tables", str(out)]) == 2
    with pytest.raises(ProbeError, match="expected the JSON of probe positional"):
        from probe.figures.positional import positional_svg

        positional_svg({"rows": [], "settings": {}})
