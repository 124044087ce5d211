"""What is recorded of attention, against the stock model's own weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from tiny_models import token_ids
from torch import Tensor, nn

from probe.errors import FieldError, ProbeError
from probe.models.load import load_model
from probe.recording.hooks import record
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme

WINDOW, HEADS = 64, [0, 1, 2, 3]
SITES = ["entropy", "first_mass", "far_mass", "score_max", "score_lse"]


def recorded(model: nn.Module, spec: str, tokens: Tensor, **options: object) -> dict[str, Tensor]:
    """[positions, heads] of layer 2 by site."""
    with (
        torch.no_grad(),
        record(model, SITES, [1, 2], HEADS) as seen,
        apply_scheme(model, parse_scheme(spec, WINDOW), **options),
    ):
        model(tokens)
    return {site: seen.values(site, 2)[0] for site in SITES}


def test_origin_is_what_the_stock_models_weights_say(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), token_ids(1, 150)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager(tokens, output_attentions=True).attentions[1][0].double()  # [heads, queries, keys]
    mine = recorded(model, "origin", tokens)
    for t in (1, 63, 64, 149):
        row = weights[:, t, : t + 1]
        entropy = -(row * row.log()).sum(-1) / math.log(t + 1)
        assert torch.allclose(mine["entropy"][t].double(), entropy, atol=1e-4)
        assert torch.allclose(mine["first_mass"][t].double(), row[:, 0], atol=1e-4)
        far = row[:, : max(0, t - WINDOW + 1)].sum(-1)
        assert torch.allclose(mine["far_mass"][t].double(), far, atol=1e-4)
        # The largest weight is exp(largest score - log-sum-exp).
        assert torch.allclose((mine["score_max"] - mine["score_lse"])[t].double(), row.amax(-1).log(), atol=1e-4)
    assert (mine["entropy"][0] == 1).all() and (mine["far_mass"][:WINDOW] == 0).all()


@pytest.mark.parametrize("spec", ["mesa", "stair(N=20,E=7)+logn", "streaming-llm", "star(B=20,L=15)"])
def test_chunks_and_backends_are_watched_alike(spec: str, tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama().double(), token_ids(1, 300)
    parts, whole = recorded(model, spec, tokens, chunk_batch=1), recorded(model, spec, tokens, backend="dense")
    for site in SITES:
        assert parts[site].shape == (300, 4) and torch.allclose(parts[site], whole[site], atol=1e-5)


def test_any_number_watch_and_nobody_is_left(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), token_ids(1, 80)
    with torch.no_grad(), apply_scheme(model, parse_scheme("origin", WINDOW)):
        with record(model, ["entropy"], [1], [0]) as one, record(model, ["entropy", "resid"], [1, 2], [1, 3]) as two:
            model(tokens)
        model(tokens)
    assert one.values("entropy", 1).shape == (1, 80, 1) and two.values("entropy", 2).shape == (1, 80, 2)
    assert two.values("resid", 2).shape == (1, 80, 2)


def test_what_cannot_be_watched_is_refused(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), token_ids(2, 80)
    with (
        pytest.raises(FieldError, match="dims: expected 0 to 3, the heads of site entropy, got 4"),
        record(model, ["resid", "entropy"], [1], [4]),
    ):
        pass
    toy = load_model("construction:3.3(M=6,N=2)").model
    with (
        pytest.raises(FieldError, match="a construction's attention is not watched"),
        record(toy, ["entropy"], [1], [0]),
    ):
        pass
    mask = torch.ones_like(tokens)
    mask[1, :10] = 0
    with (
        torch.no_grad(),
        record(model, ["entropy"], [1], [0]),
        apply_scheme(model, parse_scheme("origin", WINDOW)),
        pytest.raises(ProbeError, match="expected no padding while attention is observed"),
    ):
        model(tokens, attention_mask=mask)
