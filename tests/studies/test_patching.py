"""Hidden states put back, against the stock model's own layers called by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import weavescope as ws
from probe.commands.main import main
from probe.errors import ProbeError
from probe.models.load import LoadedModel, load_model, wrap_model
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme
from probe.studies.patching import (
    ALL,
    FOLDED,
    NOTHING,
    PATCHES,
    LayerKnown,
    Patching,
    PatchRow,
    edited,
    ranges,
    recovered,
)

WINDOW = 64


@pytest.fixture
def tiny(tiny_llama: Callable[..., nn.Module]) -> LoadedModel:
    return wrap_model(tiny_llama(), None, window=WINDOW)


def ids_for(samples: int, length: int, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(3, 97, (samples, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 1
    return ids


def by_hand(model: nn.Module, ids: torch.Tensor, change: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Logits of a stock Llama whose layers are called one after another, their outputs changed."""
    inner = model.model
    hidden = inner.embed_tokens(ids)
    at = torch.arange(ids.shape[1])[None]
    rotary = inner.rotary_emb(hidden, at)
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    for n, layer in enumerate(inner.layers, 1):
        out = layer(hidden, attention_mask=mask, position_ids=at, position_embeddings=rotary)
        hidden = change(n, out[0] if isinstance(out, tuple) else out)
    return model.lm_head(inner.norm(hidden))


def known_of(width: int) -> LayerKnown:
    made = torch.Generator().manual_seed(4)
    low, high = -torch.rand(width, generator=made), torch.rand(width, generator=made)
    return LayerKnown(low, high, torch.randn(20, width, generator=made), torch.randn(width, generator=made), 8, 7)


@torch.no_grad()
@pytest.mark.parametrize("layers", [(2,), (1, 2, 3)])
@pytest.mark.parametrize("name", ["clamp", "positional", "random"])
def test_a_patch_is_what_the_layers_give_by_hand(name: str, layers: tuple[int, ...], tiny: LoadedModel) -> None:
    ids, known = ids_for(1, 140), known_of(48)
    added = {}

    def change(n: int, hidden: torch.Tensor) -> torch.Tensor:
        if n not in layers:
            return hidden
        new = hidden.clone()
        for t in range(WINDOW, 140):
            drift = known.means[t // 8] - known.end
            if name == "clamp":
                new[0, t] = torch.clamp(hidden[0, t], known.low, known.high)
            elif name == "positional":
                new[0, t] = hidden[0, t] - drift
            else:
                direction = torch.randn(48, generator=torch.Generator().manual_seed(7))
                new[0, t] = hidden[0, t] + drift.norm() * direction / direction.norm()
        added[n] = (new - hidden)[0, WINDOW:].square().sum(), hidden[0, WINDOW:].square().sum()
        return new

    expected = by_hand(tiny.model, ids, change)
    edits = {layer: PATCHES[name].of(known) for layer in layers}
    with edited(tiny, edits, WINDOW) as seen, apply_scheme(tiny.model, parse_scheme("origin", WINDOW)):
        found = tiny.model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    more, there = (sum(float(pair[n]) for pair in added.values()) for n in (0, 1))
    assert seen.share == pytest.approx((more / there) ** 0.5, rel=1e-3)
    torch.testing.assert_close(tiny.model(ids).logits, by_hand(tiny.model, ids, lambda _, hidden: hidden), **CLOSE)


CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@torch.no_grad()
@pytest.mark.parametrize("spec", ["mesa", "origin"])
def test_pieces_of_a_chunked_prefill_are_changed_where_they_lie(spec: str, tiny: LoadedModel) -> None:
    """An edit that writes each position's number: none is missed, none comes twice, none lies inside the window."""
    told: list[int] = []

    def edit(hidden: torch.Tensor, start: int) -> torch.Tensor:
        told.extend(range(start, start + hidden.shape[1]))
        return hidden

    scheme = parse_scheme(spec, WINDOW)
    with edited(tiny, {1: edit}, WINDOW), apply_scheme(tiny.model, scheme, chunk_batch=1):
        tiny.model(ids_for(1, 300))
    assert told == list(range(WINDOW, 300))


@torch.no_grad()
def test_ranges_are_those_of_the_stock_models_hidden_states(tiny: LoadedModel) -> None:
    ids = ids_for(3, WINDOW)
    hidden = tiny.model(ids, output_hidden_states=True).hidden_states[1][:, 8:].flatten(0, 1)
    low, high = ranges(tiny, ids, 8)[0]
    torch.testing.assert_close(low, hidden.amin(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(high, hidden.amax(0), rtol=1e-4, atol=1e-5)


def test_what_breaks_rope_is_its_distances_and_not_its_hidden_states() -> None:
    """The finding itself, on the shipped model: a patch that does nothing is no failure of the patch (see above)."""
    work = Patching(load_model("rope"), length=2048, samples=3, seed=1, layers=[])
    list(work.run())
    back = {row.patch: recovered(row, work.rows) for row in work.rows}
    assert work.total == len(work.rows) == 5 and all(row.layer == ALL for row in work.rows)
    assert back[NOTHING] == 0 and back[FOLDED] is not None and back[FOLDED] > 0.7
    assert back["clamp"] is not None and abs(back["clamp"]) < 0.2
    assert back["random"] is not None and back["random"] < 0


def test_nothing_is_recovered_where_nothing_failed() -> None:
    whole = PatchRow("origin", 100, NOTHING, ALL, 0.1, 0.0, 0.2)
    assert recovered(PatchRow("origin", 100, "clamp", 1, 0.05, 0.0, 0.1), [whole]) is None
    failed = PatchRow("origin", 100, NOTHING, ALL, 1.0, 0.5, 1.5)
    assert recovered(PatchRow("origin", 100, "clamp", 1, 0.25, 0.0, 0.1), [failed]) == 0.75
    assert recovered(PatchRow("origin", 100, FOLDED, ALL, untold="why"), [failed]) is None
    assert recovered(PatchRow("pi", 100, "clamp", 1, 0.25, 0.0, 0.1), [failed]) is None


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"length": 64}, "length: expected more than the window of 64 tokens, got 64"),
        ({"tail": 33}, "tail: expected 1 to 32"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"patches": ["clamps"]}, "unknown patch 'clamps'"),
        ({"samples": 3}, "input: expected at least 6 texts, for samples 3 and as many others, got 4"),
        ({"layers": [4]}, r"layers: expected 1 to 3 \(layer 1 is the first\), got 4"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(chosen: dict, said: str, tiny: LoadedModel) -> None:
    with pytest.raises(ProbeError, match=said):
        Patching(tiny, **({"input": ids_for(4, 128), "samples": 2, "length": 128} | chosen))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "patch.json"
    call = ["patch", "--length", "640", "--samples", "1", "--layer", "2", "--patch", "clamp", "--quiet"]
    assert main([*call, "--scheme", "origin,stair", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "nothing fails" in said and "distances folded" in said
    assert main(["tables", str(out)]) == 0
    assert "| origin | clamp | 2 |" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["rows"]) == 8
    for option, value, message in (
        ("--layer", "x", "--layer: expected numbers as 1,3, all or none, got 'x'"),
        ("--layer", "5", "--layer: expected 1 to 4"),
        ("--patch", "nothing", "unknown patch 'nothing'"),
    ):
        assert main([*call, option, value]) == 2
        assert message in capsys.readouterr().err


def test_in_python() -> None:
    found = ws.load("rope").patch(length=640, samples=1, layers=[], patches=["random"])
    assert [row.patch for row in found.rows] == [NOTHING, FOLDED, "random"]
    assert "clamp" in ws.choices("patch").column("name")
