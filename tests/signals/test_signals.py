"""Signals against the stock model's own hidden states, attentions and logits, position by position."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import nn

from probe.errors import FieldError
from probe.models.load import wrap_model
from probe.schemes import parse_scheme
from probe.signals.collect import OUTPUT, BlockMeans, collect, positional_values, sample_period
from probe.signals.reference import fit_layer, fit_reference
from probe.signals.scores import MOST, aggregated, auroc, inside_of
from probe.signals.table import SIGNALS, PositionalSignal

WINDOW, BLOCK = 64, 8
NAMES = [name for name, row in SIGNALS.items() if not isinstance(row, PositionalSignal)]


def token_ids(samples: int, length: int) -> torch.Tensor:
    ids = torch.randint(3, 20, (samples, length), generator=torch.Generator().manual_seed(5))
    ids[:, 0] = 1
    return ids


@pytest.fixture(scope="module")
def collected(tiny_llama: Callable[..., nn.Module]):
    """A random model's texts of two windows, collected and as the stock model gives them."""
    loaded, ids = wrap_model(tiny_llama(), None, window=WINDOW), token_ids(2, 128)
    reference = fit_reference(loaded, ids[:, :WINDOW], 8)
    found = collect(loaded, parse_scheme("origin", WINDOW), ids, NAMES, BLOCK, reference)
    eager = copy.deepcopy(loaded.model)
    eager.set_attn_implementation("eager")
    hidden: dict[int, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _module, _inputs, out, n=n: hidden.update({n: out[0] if isinstance(out, tuple) else out})
        )
        for n, layer in enumerate(eager.model.layers)
    ]
    with torch.no_grad():
        out = eager(ids, output_attentions=True)
    for hook in hooks:
        hook.remove()
    return found, ids, out, hidden, reference


def blocks(values: torch.Tensor) -> torch.Tensor:
    """[positions] -> the mean of every block, of those that are there."""
    return torch.stack([part.double().nanmean() for part in values.split(BLOCK)])


def close(mine: np.ndarray, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(mine).double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_hidden_norm_and_distance(collected) -> None:
    found, _, _, hidden, _ = collected
    for layer in (0, 2):
        mean = hidden[layer].mean(0)
        close(found.values["hidden"][0, layer, 7], blocks(mean[:, 7]))
        own = hidden[layer][1]
        close(found.values["norm"][1, layer, 0], blocks((own**2).mean(-1).sqrt()))
        rows = torch.cat([text[8:WINDOW] for text in hidden[layer]]).double()
        fitted = LedoitWolf().fit(rows.numpy())
        far = torch.from_numpy(fitted.mahalanobis(own.double().numpy()) / own.shape[-1]).sqrt()
        close(found.values["distance"][1, layer, 0], blocks(far))
    assert found.values["hidden"].shape == (1, 3, 48, 16) and found.values["norm"].shape == (2, 3, 1, 16)


def test_attention(collected) -> None:
    found, _, out, _, _ = collected
    weights = out.attentions[1][1, 2].double()  # [queries, keys] of layer 2, text 2, head 3
    mine = {name: values[1, 1, 2] for name, values in found.values.items() if values.shape[2] == 4}
    seen = torch.arange(1, 129).double()
    entropy = torch.special.entr(weights).sum(-1) / seen.log().clamp(min=1e-9)
    entropy[0] = 1.0
    close(mine["entropy"], blocks(entropy))
    close(mine["first_mass"], blocks(weights[:, 0]))
    far = torch.stack([weights[t, : max(0, t - WINDOW + 1)].sum() for t in range(128)])
    close(mine["far_mass"], blocks(far))
    close(mine["score_max"] - mine["score_lse"], blocks(weights.amax(-1).log()))
    least = torch.stack([weights[t, : t + 1].min() for t in range(128)])
    close(mine["score_range"], blocks(weights.amax(-1).log() - least.log()))


def test_induction_is_attention_on_what_followed_the_same_token(collected) -> None:
    found, ids, out, _, _ = collected
    weights, text = out.attentions[0][0, 1].double(), ids[0].tolist()
    expected = []
    for t in range(128):
        after = [i for i in range(1, t + 1) if text[i - 1] == text[t]]
        expected.append(float(weights[t, after].sum()) if after else math.nan)
    assert sum(map(math.isnan, expected)) > 5
    close(found.values["induction"][0, 0, 1], blocks(torch.tensor(expected)))


def test_output(collected) -> None:
    found, ids, out, _, _ = collected
    log = out.logits[0, :-1].double().log_softmax(-1)
    close(found.values["output_entropy"][0, OUTPUT, 0], blocks(torch.special.entr(log.exp()).sum(-1)))
    top = log.topk(2, -1).values
    close(found.values["output_margin"][0, OUTPUT, 0], blocks(top[:, 0] - top[:, 1]))
    nll = -log.gather(-1, ids[0, 1:, None])[:, 0]
    close(found.values["nll"][0, OUTPUT, 0], blocks(nll))
    close(found.nll[0, 1:], nll)


@pytest.mark.parametrize("spec", ["mesa", "streaming-llm", "stair"])
def test_a_late_start_changes_nothing_but_what_is_left_out(spec: str, tiny_llama: Callable[..., nn.Module]) -> None:
    loaded, ids = wrap_model(tiny_llama(), None, window=WINDOW), token_ids(1, 300)
    reference = fit_reference(loaded, ids[:, :WINDOW], 8)
    scheme, names = parse_scheme(spec, WINDOW), ["entropy", "norm", "induction"]
    whole = collect(loaded, scheme, ids, names, BLOCK, reference)
    late = collect(loaded, scheme, ids, names, BLOCK, reference, attention_from=280)
    for name in names:
        first = 0 if name == "norm" else 35
        np.testing.assert_allclose(
            late.values[name][..., first:], whole.values[name][..., first:], rtol=1e-4, atol=1e-5, equal_nan=True
        )
    assert np.isnan(late.values["entropy"][..., :30]).all() and np.isfinite(whole.values["entropy"]).all()


def test_a_sample_of_queries_is_a_mean_over_fewer(tiny_llama: Callable[..., nn.Module]) -> None:
    """Over the first 16 of every 32 positions: blocks of 8 have the values of all queries, or none."""
    loaded, ids = wrap_model(tiny_llama(), None, window=WINDOW), token_ids(1, 300)
    scheme, names = parse_scheme("rerope", WINDOW), ["entropy", "induction", "norm"]
    whole = collect(loaded, scheme, ids, names, BLOCK, ())
    some = collect(loaded, scheme, ids, names, BLOCK, (), attention_from=160, most_queries=70)
    assert sample_period(140, 70) == 32 and sample_period(70, 70) is None and sample_period(9, None) is None
    np.testing.assert_allclose(some.values["norm"], whole.values["norm"], rtol=1e-5)
    known = np.isfinite(some.values["entropy"]).all((0, 1, 2))
    assert known.tolist() == [at * BLOCK >= 160 and (at * BLOCK - 160) % 32 < 16 for at in range(len(known))]
    for name in ("entropy", "induction"):
        mine, theirs = some.values[name][..., known], whole.values[name][..., known]
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_reference_needs_texts_of_the_window(tiny_llama: Callable[..., nn.Module]) -> None:
    loaded = wrap_model(tiny_llama(), None, window=WINDOW)
    for length in (5, 65):
        with pytest.raises(FieldError, match=f"length: expected 10 to the window of 64, got {length}"):
            fit_reference(loaded, token_ids(1, length), 8)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 17), st.integers(0, 2**32 - 1))
def test_blocks_are_means_however_they_come(sizes: list[int], size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(sum(sizes), 3)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    made = BlockMeans(size, sum(sizes))
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        undo = made.mark()
        made.add(torch.from_numpy(part) + 1)  # a call that fails
        undo()
        made.add(torch.from_numpy(part))
    with np.errstate(invalid="ignore"):
        parts = [values[at : at + size].astype(float) for at in range(0, len(values), size)]
        expected = [np.where(np.isfinite(p).any(0), np.nansum(p, 0) / np.isfinite(p).sum(0), np.nan) for p in parts]
    np.testing.assert_allclose(made.means().numpy().T, expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_the_positional_part_is_found_again(seed: int) -> None:
    """Parts inside the window, and the same three times as far from their mean."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(2, 16, 20)).astype(np.float32)
    offset = rng.normal(size=(2, 16, 1)).astype(np.float32)
    centre = known.mean(-1, keepdims=True)
    beyond = centre + 3 * (known - centre)
    found = positional_values(np.concatenate([known, beyond], -1) + offset, known + offset)
    norm, direction, similarity = (found[f"positional_{name}"][0, :, 0] for name in ("norm", "direction", "similarity"))
    np.testing.assert_allclose(norm[:, 20:], 3 * norm[:, :20], rtol=1e-3)
    np.testing.assert_allclose(np.square(norm[:, :20]).mean(-1), 1, rtol=1e-3)
    np.testing.assert_allclose(direction[:, [19, 39]], 1, rtol=1e-4)
    np.testing.assert_allclose(similarity[:, 20:], 1, rtol=1e-4)
    assert (similarity[:, :20] < 0.9999).all()  # of a part inside the window, with any other


def test_departures_are_robust_standard_deviations_of_blocks_inside() -> None:
    values = np.zeros((2, 1, 2, 12), np.float32)
    values[:, 0, 0, :10] = np.arange(20).reshape(2, 10)
    values[:, 0, 1] = 5.0
    inside = inside_of(values[..., :10], 0)
    assert inside.median[0, 0] == 9.5 and inside.scale[0, 0] == pytest.approx(1.4826 * 5)
    values[..., 10:] = [[[[39.5], [6.0]]]]
    far = inside.departures(values, slice(-2, None))
    assert far[0, 0] == pytest.approx(30 / (1.4826 * 5)) and far[0, 1] == MOST
    assert aggregated(far) == {"mean": pytest.approx((far[0, 0] + MOST) / 2), "max": MOST, "share": 1.0}
    assert aggregated(np.full((1, 3), np.nan)) == {}
    assert np.isnan(inside.departures(np.full((1, 1, 2, 3), np.nan, np.float32), slice(None))).all()


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_scikit_learns(pairs: list[tuple[int, bool]]) -> None:
    scores, fails = np.array([score for score, _ in pairs], float), np.array([bad for _, bad in pairs])
    found = auroc(np.stack([scores, -scores], 1), fails)
    if fails.all() or not fails.any():
        assert found is None
    else:
        assert found is not None
        assert found == pytest.approx([roc_auc_score(fails, scores), roc_auc_score(fails, -scores)])


def test_a_layer_is_fitted_with_shrinkage() -> None:
    rows = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 21) + 7
    mine, theirs = fit_layer(rows), LedoitWolf().fit(rows.double().numpy())
    expected = np.sqrt(theirs.mahalanobis(rows.double().numpy()) / 20)
    np.testing.assert_allclose(mine.distance(rows[None])[0, :, 0], expected, rtol=1e-4)
