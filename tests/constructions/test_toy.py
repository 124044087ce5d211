"""The loader: what a recorder hooks, and where it finds M and the horizon."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import constructions
from constructions import ConstructionError


def record(model, length: int, site: str) -> np.ndarray:
    """The output of a submodule, [T, d], on <bos> and one word repeated, as the probe's input is."""
    caught = []
    handle = model.get_submodule(site).register_forward_hook(lambda *call: caught.append(call[-1]))
    meta = model.metadata
    model(torch.tensor([[meta.bos, *[meta.ordinary[0]] * (length - 1)]]))
    handle.remove()
    return caught[0][0].numpy()


@pytest.mark.parametrize(
    ("theorem", "parameters", "first_failure"),
    [
        ("3.1", {"M": 20}, 20),
        ("3.2", {"M": 20, "H": -2.0}, 20),
        ("3.3", {"M": 8, "N": 2, "recovery": "exact", "length": 80}, 50),
        ("3.3", {"M": 6, "N": 2, "length": 600}, 521),
        ("4.1", {"M": 32, "N": 2, "E": 4, "length": 200}, 147),
    ],
)
def test_a_hook_on_the_layer_finds_m_or_the_horizon_to_the_position(theorem, parameters, first_failure):
    model = constructions.load(theorem, **parameters)
    meta = model.metadata
    stream = record(model, meta.default_length, f"layers.{meta.layer}")
    above = stream[:, meta.dim] > meta.H + 1e-9
    assert int(np.argmin(above)) == first_failure
    assert stream.shape == (meta.default_length, meta.width)
    wrote = record(model, meta.default_length, f"layers.{meta.layer}.attn")
    assert np.array_equal(wrote[:, meta.proof_dim], stream[:, meta.dim])


def test_hooks_see_attention_and_mlp_add_up_to_the_layer():
    model = constructions.load("4.1", M=10)
    before, attn, mlp, after = (
        record(model, 30, site) for site in ("layers.0", "layers.1.attn", "layers.1.mlp", "layers.1")
    )
    assert after == pytest.approx(before + attn + mlp, abs=1e-10)


def test_metadata_names_the_tokens_and_the_window():
    meta = constructions.load("3.3", M=12, N=3, H=0.75).metadata
    assert (meta.theorem, meta.M, meta.H, meta.bos, meta.layers, meta.layer) == ("3.3", 12, 0.75, 0, 2, 1)
    assert meta.bos not in meta.ordinary
    assert meta.default_length > 2 * meta.M


def test_weights_need_no_gradient_and_the_dtype_is_as_asked():
    model = constructions.load("3.2", dtype="float32", M=10)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "parameters", "message"),
    [
        (("5.1",), {}, "theorem: expected"),
        (("3.1",), {"Q": 1}, "parameters: expected M, H"),
        (("3.2", "float16"), {}, "dtype: expected"),
        (("3.2",), {"M": 1000}, "past the precision of float64"),
        (("3.3",), {"recovery": "magic"}, "recovery: expected"),
        (("3.2",), {"M": 8.0}, "M: expected an integer"),
        (("3.2",), {"M": True}, "M: expected an integer"),
        (("3.2", "mpmath"), {"M": 8}, "dtype: expected"),
    ],
)
def test_bad_requests_are_construction_errors(arguments, parameters, message):
    with pytest.raises(ConstructionError, match=message):
        constructions.load(*arguments, **parameters)


def test_the_weave_functions_import_without_the_theorems():
    import subprocess
    import sys

    code = "import sys, constructions.weave; assert not {'torch', 'sympy', 'mpmath'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_shapes_in_signatures_are_checked():
    model = constructions.load("3.1", M=4)
    with pytest.raises(TypeCheckError):
        model(torch.zeros(5, dtype=torch.int64))  # no batch dimension
