"""Likelihoods are of the logits that the model itself gives, whatever it does to them behind its head."""

from __future__ import annotations

import pytest
import torch
from alike_models import ALIKE
from tiny_models import TINY, token_ids
from transformers import PreTrainedModel

from probe.tasks.nll import logits_of, nll_per_position

SCALED = {
    "cohere": {"logit_scale": 0.3}, "cohere2": {"logit_scale": 3.0}, "granite": {"logits_scaling": 8.0},
    "gemma2": {"final_logit_softcapping": 2.0}, "gemma3_text": {"final_logit_softcapping": 2.0},
}  # fmt: skip


def same(model: PreTrainedModel) -> None:
    ids = token_ids(1, 50)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        assert torch.allclose(logits_of(model, hidden), logits, atol=1e-5)
    right = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="none")
    assert torch.allclose(nll_per_position(model, ids)[0, 1:], right, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_every_familys_likelihood_is_its_own(name: str) -> None:
    same(TINY[name]())


@pytest.mark.parametrize("name", ALIKE)
def test_so_is_that_of_the_families_alike(name: str) -> None:
    same(ALIKE[name]())


@pytest.mark.parametrize("name", SCALED)
def test_scales_and_caps_are_applied(name: str) -> None:
    same(TINY[name](**SCALED[name]))


@pytest.mark.parametrize("name", [name for name in ("hyperclovax", "granitemoe") if name in ALIKE])
def test_a_scaling_multiplies_in_one_family_and_divides_in_another(name: str) -> None:
    model = ALIKE[name]()
    model.config.logits_scaling = 8.0
    if hasattr(model, "logits_scaling"):
        model.logits_scaling = 8.0
    same(model)
