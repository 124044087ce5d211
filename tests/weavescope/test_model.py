"""The object with verbs, on a tiny real model and on the embedded one."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import weavescope as ws

LENGTH = 160


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> ws.Model:
    return ws.load(str(tiny_folder), device="cpu")


@pytest.fixture(scope="module")
def rope() -> ws.Model:
    return ws.load("rope", device="cpu", dtype="float32")


def ids(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(0))


def test_the_model_is_the_stock_model_and_a_context_leaves_no_trace(tiny: ws.Model, tiny_folder: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    with torch.no_grad():
        expected = stock(ids()).logits
    assert torch.equal(tiny(ids()).logits, expected)
    with tiny.under("origin") as same:
        assert same is tiny and torch.allclose(tiny(ids()).logits, expected, atol=1e-5)
    with tiny.under("rerope(N=8)"):
        assert not torch.allclose(tiny(ids()).logits, expected, atol=1e-2)
    assert torch.equal(tiny(ids()).logits, expected)


def test_generate_takes_a_text_or_ids(rope: ws.Model) -> None:
    text = "The grass is green. The sky is blue. " * 4
    prompt = rope.encode(text)
    made = rope.generate(prompt, max_new_tokens=6)
    assert torch.equal(made, rope.hf.generate(prompt, max_new_tokens=6, do_sample=False))
    assert rope.generate(text, max_new_tokens=6) == rope.tokenizer.decode(
        made[0, prompt.shape[1] :], skip_special_tokens=True
    )


def test_generating_from_a_text_without_a_tokenizer_is_answered(tiny: ws.Model) -> None:
    with pytest.raises(ws.ProbeError, match="has no tokenizer; give token ids"):
        tiny.generate("hello")


def test_a_run_that_nobody_named_goes_with_its_object_and_can_be_saved(tiny: ws.Model, tmp_path: Path) -> None:
    run = tiny.probe("origin,rerope", layers=[2], dims=range(3), input="token:5", length=LENGTH)
    assert [(one.scheme, one.layer, one.dim) for one in run.thresholds] == [
        (scheme, 2, dim) for scheme in ("origin", "rerope") for dim in range(3)
    ]
    saved = run.save(tmp_path / "kept")
    temporary = run.path
    values = run.series("rerope", "resid", 2, 1)
    del run
    gc.collect()
    assert not temporary.exists()
    opened = ws.open_run(tmp_path / "kept")
    assert np.array_equal(opened.series("rerope", "resid", 2, 1), values) and opened.thresholds == saved.thresholds
    assert [run.path for run in ws.list_runs(tmp_path)] == [saved.path]
    with pytest.raises(ws.ProbeError, match="a run is there already"):
        saved.save(tmp_path / "kept")


def test_a_scheme_of_ones_own_is_probed_like_any_other(tiny: ws.Model) -> None:
    mine = ws.Scheme("mine", window=64, weave=ws.parts.Clamp(16))
    run = tiny.probe(["origin", mine, "rerope(N=16)"], input="token:5", length=LENGTH)
    assert list(dict.fromkeys(run.thresholds.column("scheme"))) == ["origin", "mine", "rerope(N=16)"]
    assert np.array_equal(run.trace["mine/resid.1"], run.trace["rerope(N=16)/resid.1"])


@pytest.mark.parametrize("name", ["alibi", "construction:3.3(M=6,N=2)"])
def test_every_model_has_defaults_that_fit_it(name: str) -> None:
    """Without a word on schemes or input: what fits is resolved in one place."""
    model = ws.load(name, device="cpu", length=64)
    run = model.probe(length=64)
    assert run.info.shown[0] == "origin" and len(run.info.shown) > 1


def test_all_layers_and_dims_by_a_word(tiny: ws.Model) -> None:
    run = tiny.probe("origin", layers="all", dims="all", input="token:5", length=80)
    assert run.info.layers == (1, 2, 3) and run.info.dims == tuple(range(48))


def test_results_show_themselves_as_tables(tiny: ws.Model) -> None:
    run = tiny.probe("origin,rerope", input="token:5", length=LENGTH)
    frame = run.thresholds.to_pandas()
    assert list(frame["scheme"].unique()) == ["origin", "rerope"] and str(frame["layer"].dtype) == "Int64"
    for shown in (run, run.thresholds, run.result()):
        assert "<table" in shown._repr_html_()
    assert run.figure().data and run.result().to_json()["settings"]["model"] == tiny.name
    again = run.judge("paper", margin=1.0)
    assert {one.detector for one in again} == {"paper"} and len(again) == len(run.thresholds)


def test_bad_settings_are_answered_in_the_words_of_python(tiny: ws.Model) -> None:
    for bad, said in (
        ({"layers": [9]}, r"layers: expected 1 to 3 \(layer 1 is the first\), got 9"),
        ({"dims": []}, "dims: expected at least one, got none"),
        ({"length": 1}, "length: expected at least 2"),
        ({"burn_in": 63}, "burn_in: expected at most 62"),
        (
            {"detector": "rang"},
            "unknown detector 'rang'; known: range, paper, change, multivariate; did you mean range",
        ),
        ({"chunk_batch": 0}, "expected auto or an integer >= 1, got 0"),
    ):
        with pytest.raises(ws.ProbeError, match=said):
            tiny.probe("origin", **({"input": "token:5", "length": LENGTH} | bad))
