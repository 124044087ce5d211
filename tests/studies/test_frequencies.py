"""Frequencies at unseen distances, against the stock model with its own cos and sin replaced."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import FieldError, ProbeError
from probe.models.load import load_model, wrap_model
from probe.schemes import parse_scheme
from probe.schemes.cut_out import gap_for_some, without_middle
from probe.seam.apply import apply_scheme
from probe.studies.frequencies import FrequencyStudy, groups_of

AT, GAP, LENGTH = 10, 50, 40


def stock(model, ids, moved):
    """The stock model, whose rotary is told where each frequency puts a token."""
    rotary = model.model.rotary_emb
    plain = torch.arange(LENGTH).double()
    away = plain + GAP * (plain >= AT)
    at = torch.where(torch.tensor(moved), away[:, None], plain[:, None])

    def forward(x, position_ids):
        angles = at * rotary.inv_freq.double()
        both = torch.cat((angles, angles), -1)[None]
        return both.cos().to(x.dtype), both.sin().to(x.dtype)

    kept, rotary.forward = rotary.forward, forward
    try:
        with torch.no_grad():
            return model(ids).logits
    finally:
        rotary.forward = kept


@pytest.mark.parametrize("moved", ["000000", "111111", "100000", "000001", "011010"])
def test_some_frequencies_see_the_gap_as_in_the_stock_model(tiny_llama, moved):
    model = tiny_llama().double()
    loaded = wrap_model(model, None, window=64)
    mask = tuple(one == "1" for one in moved)
    assert len(mask) == len(model.model.rotary_emb.inv_freq)
    ids = torch.randint(0, 97, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    expected = stock(model, ids, mask)
    scheme = gap_for_some(parse_scheme("origin", 64), AT, GAP, mask)
    with apply_scheme(loaded.model, scheme, exact_angles=True), torch.no_grad():
        found = loaded.model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spec", ["origin", "pi", "dynamic-ntk", "yarn", "origin+logn"])
def test_all_of_them_are_the_gap_and_none_is_the_text_as_it_stands(tiny_llama, spec):
    model = tiny_llama()
    scheme = parse_scheme(spec, 64)
    ids = torch.randint(0, 97, (1, LENGTH), generator=torch.Generator().manual_seed(2))

    def logits(made):
        with apply_scheme(model, made), torch.no_grad():
            return model(ids).logits

    torch.testing.assert_close(
        logits(gap_for_some(scheme, AT, GAP, (True,) * 6)), logits(without_middle(scheme, AT, GAP))
    )
    if spec == "origin":
        torch.testing.assert_close(logits(gap_for_some(scheme, AT, GAP, (False,) * 6)), logits(scheme))


@pytest.mark.parametrize("spec", ["rerope", "stair", "mesa", "leaky-rerope"])
def test_a_weave_is_refused(spec):
    with pytest.raises(FieldError, match="leaves distances as they are"):
        gap_for_some(parse_scheme(spec, 64), AT, 100, (True,) * 6)


def test_the_dense_reference_refuses_what_it_cannot_know(tiny_llama):
    model = tiny_llama()
    scheme = gap_for_some(parse_scheme("origin", 64), AT, GAP, (True, False) * 3)
    with apply_scheme(model, scheme, backend="dense"), pytest.raises(ProbeError, match="use pieces"):
        model(torch.zeros(1, 20, dtype=torch.long))


@given(half=st.integers(1, 64), data=st.data())
def test_groups_hold_every_frequency_once(half, data):
    groups = data.draw(st.integers(1, half))
    found = groups_of(half, groups)
    assert [j for low, high in found for j in range(low, high + 1)] == list(range(half))
    sizes = {high - low + 1 for low, high in found}
    assert len(found) == groups and max(sizes) - min(sizes) <= 1


def test_groups_out_of_range_are_refused():
    for groups in (0, 7):
        with pytest.raises(FieldError, match="groups"):
            groups_of(6, groups)


def test_the_embedded_model_fails_by_frequencies_that_do_not_turn_once():
    work = FrequencyStudy(load_model("rope"), length=2048, groups=2, samples=2)
    list(work.run())
    rows = {(row.what, row.first): row for row in work.rows}
    slow = rows["spared", 8]
    assert rows["whole", 0].rise > 0.5 > slow.rise, "with the slow half put back nothing fails"
    assert rows["spared", 0].rise > 0.5, "with the fast half put back it still does"
    inv_freq = 10000.0 ** (-15 / 16)
    assert slow.turns == pytest.approx(512 * inv_freq / (2 * math.pi), rel=1e-6)
    assert len(work.rows) == work.total == 5
    result = work.result(True).to_json()
    assert result["kind"] == "frequencies" and result["settings"]["frequencies"] == 16


def test_a_model_without_rope_is_refused():
    with pytest.raises(FieldError, match="no rotary frequencies"):
        FrequencyStudy(load_model("alibi"), length=1024)


def test_the_command_prints_a_row_per_group(capsys, tmp_path):
    from probe.commands.main import main

    assert main(["frequencies", "--groups", "2", "--samples", "1", "--quiet", "--out", str(tmp_path / "f.json")]) == 0
    said = capsys.readouterr().out
    assert "0 to 7" in said and "8 to 15" in said and "all frequencies under origin" in said
    assert main(["tables", str(tmp_path / "f.json")]) == 0
    assert "| `origin` | 8 to 15 |" in capsys.readouterr().out
    assert main(["frequencies", "--scheme", "rerope", "--quiet"]) == 2
    assert "weaves" in capsys.readouterr().err
