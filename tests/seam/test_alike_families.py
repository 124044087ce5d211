"""Families whose attention is Llama's in all but details: fewer checks than those of the families that have their own,
against the stock models of transformers all the same."""

from __future__ import annotations

import pytest
import torch
from alike_models import ALIKE
from tiny_models import WINDOW, relative, token_ids
from torch import Tensor
from transformers import PreTrainedModel

from probe.recording.hooks import record
from probe.schemes import make_scheme, parse_scheme
from probe.seam.apply import apply_scheme
from probe.seam.families import family_of


def logits(model: PreTrainedModel, spec: str, tokens: Tensor, **options: object) -> Tensor:
    with apply_scheme(model, parse_scheme(spec, WINDOW), exact_angles=True, **options):
        return model(tokens).logits


DECODED = 1e-6
"""Of the largest logit: many of these route to experts, or normalise, in float32 whatever the model's dtype."""
WOVEN = ("rerope(N=20)", "mesa", "self-extend(W=20,G=4)+logn")


@pytest.mark.parametrize("name", ALIKE)
@torch.no_grad()
def test_origin_is_the_stock_model_and_leaves_no_trace(name: str) -> None:
    """At 150 tokens, more than two windows, and past a sliding one of 40."""
    model, tokens = ALIKE[name](), token_ids()
    before = model(tokens).logits
    modules, attributes = list(model.modules()), [set(module.__dict__) for module in model.modules()]
    with apply_scheme(model, make_scheme("origin", WINDOW)):
        inside = model(tokens).logits
    assert relative(inside, before) < 1e-5
    assert torch.equal(model(tokens).logits, before)
    assert list(model.modules()) == modules
    assert [set(module.__dict__) for module in model.modules()] == attributes


@pytest.mark.parametrize("name", ALIKE)
@torch.no_grad()
def test_pieces_are_the_dense_reference(name: str) -> None:
    model, tokens = ALIKE[name]().double(), token_ids(1, 110)
    origin, family = logits(model, "origin", tokens), family_of(model.config)
    rotates = "none" not in family.positions
    local = None not in family.layer_windows(model)  # all its layers: no scheme acts
    for spec in (*WOVEN, "yarn") if rotates else WOVEN:
        dense = logits(model, spec, tokens, backend="dense")
        assert relative(logits(model, spec, tokens), dense) < 1e-10, spec
        if not local and (rotates or spec != "rerope(N=20)"):
            assert relative(dense, origin) > 1e-3, spec


@pytest.mark.parametrize("name", ALIKE)
@torch.no_grad()
def test_cached_decoding_and_generate_are_one_pass(name: str) -> None:
    model, tokens = ALIKE[name]().double(), token_ids(2, 104)
    mask = torch.ones_like(tokens)
    mask[1, :33] = 0
    with apply_scheme(model, parse_scheme("rerope(N=20)", WINDOW), exact_angles=True):
        whole = model(tokens, attention_mask=mask).logits
        cache = model(tokens[:, :100], attention_mask=mask[:, :100], use_cache=True).past_key_values
        steps = [
            model(
                tokens[:, n : n + 1], attention_mask=mask[:, : n + 1], past_key_values=cache, use_cache=True
            ).logits
            for n in range(100, 104)
        ]  # fmt: skip
        assert relative(torch.cat(steps, dim=1), whole[:, 100:]) < DECODED
        assert relative(whole[1, 33:], model(tokens[1:, 33:]).logits[0]) < DECODED
        settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        made = model.generate(tokens[:1], **settings)
        grown: Tensor = tokens[:1]
        for _ in range(4):
            grown = torch.cat([grown, model(grown, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, grown)


@pytest.mark.parametrize("name", ALIKE)
@torch.no_grad()
def test_recorded_sites_add_up_to_the_residual_stream(name: str) -> None:
    model, tokens = ALIKE[name]().double(), token_ids(1, 100)
    width = list(range(model.config.hidden_size))
    with (
        apply_scheme(model, parse_scheme("rerope(N=20)", WINDOW)),
        record(model, ("resid", "attn", "mlp"), (1, 2), width) as seen,
    ):
        model(tokens)
    put = (seen.values("attn", 2) + seen.values("mlp", 2)) * getattr(model.config, "residual_multiplier", 1.0)
    assert relative(seen.values("resid", 2) - seen.values("resid", 1), put) < 1e-5
