"""The weave functions on worked examples, and as ints, arrays and tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from constructions.errata import alibi_slopes
from constructions.horizon import is_subadditive
from constructions.table import Table, subadditive_closure
from constructions.weave import Clamp, Grouped, Leaky, Linear, Stair


def test_figure_1_has_n_equal_3_and_not_4():
    distances = np.arange(9, -1, -1)
    assert Stair(3, 2).of(distances).tolist() == [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]
    assert Stair(4, 2).of(distances).tolist() != [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]


def test_self_extend_at_t_10_i_5_g_2_differs_from_floor_of_the_distance():
    assert Grouped(2, 2)(10, 5) - (2 - 1) == 3
    assert (10 - 5) // 2 == 2


@pytest.mark.parametrize("weave", [Linear(), Clamp(3), Leaky(3, 2.5), Stair(3, 4), Grouped(4, 2)], ids=repr)
def test_ints_arrays_and_tensors_agree(weave):
    t, i = np.arange(30)[:, None], np.arange(30)[None, :]
    arrays = np.asarray(weave(t, i), dtype=float)
    tensors = weave(torch.arange(30)[:, None], torch.arange(30)[None, :]).double().numpy()
    for query in range(30):
        for key in range(query + 1):
            assert weave(query, key) == pytest.approx(arrays[query, key]) == pytest.approx(tensors[query, key])


@pytest.mark.parametrize(
    "weave", [Linear(), Clamp(3), Leaky(3, 2.5), Leaky(0, 4.0), Stair(3, 4), Stair(0, 5)], ids=repr
)
def test_every_weave_by_distance_is_subadditive(weave):
    assert weave.subadditive
    assert is_subadditive(weave, 60)


def test_table_agrees_with_the_weave_it_tabulates():
    stair = Stair(2, 3)
    table = Table(tuple(stair.of(d) for d in range(40)))
    d = np.arange(40)
    assert (table.of(d) == stair.of(d)).all()
    assert (table.of(torch.arange(40)).numpy() == stair.of(d)).all()


def test_subadditive_closure_is_below_its_values_and_keeps_what_is_subadditive():
    assert subadditive_closure([0, 5, 1, 9]).values == (0, 5, 1, 6)
    stair = tuple(float(Stair(2, 3).of(d)) for d in range(30))
    assert subadditive_closure(stair).values == stair


def test_alibi_slopes_of_8_and_16_heads():
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(16)[:2] == pytest.approx([2**-0.5, 0.5])
    assert alibi_slopes(16)[-1] == 1 / 256
