"""The trainer: what a step sees depends on (seed, step) alone, and a resumed run is the unbroken one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from probe.models import embedded
from probe.models.embedded import MODELS
from probe.training import train
from probe.training.mixture import Mixture

RECIPE = train.Recipe(steps=6, tokens_per_batch=256, warmup=2, checkpoint_every=3)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A work folder with a small corpus; trained models go to a folder of the test's own."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS["rope"].folder)
    monkeypatch.setattr(embedded, "FOLDER", tmp_path / "weights")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    tokenizer.save_pretrained(corpus / "tokenizer")
    np.save(corpus / "corpus.npy", np.random.default_rng(0).integers(2, 1024, 20_000).astype(np.int16))
    yield tmp_path


def mixture(work: Path) -> Mixture:
    tokenizer, tokens = train.prepare_corpus(work / "corpus")
    return Mixture(tokenizer, tokens, 512, 100, seed=0, tokens_per_batch=2048)


def test_a_batch_depends_on_seed_and_step_alone(work: Path) -> None:
    one, two = mixture(work), mixture(work)
    for step in (0, 90, 40):
        a, b = one.batch(step), two.batch(step)
        assert torch.equal(a.ids, b.ids) and torch.equal(a.weights, b.weights)
    other = replace(one, seed=1).batch(90).ids
    assert other.shape != one.batch(90).ids.shape or not torch.equal(other, one.batch(90).ids)


def test_lengths_grow_to_the_window_and_never_past_it(work: Path) -> None:
    drawn = mixture(work)
    lengths = [drawn.batch(step).ids.shape[1] for step in range(100)]
    assert max(lengths) == 512 and max(lengths[:5]) < 150
    assert sum(length == 512 for length in lengths[40:]) > 40


def test_answers_weigh_and_random_digits_do_not(work: Path) -> None:
    drawn = mixture(work)
    batch = drawn.batch(0)
    assert batch.weights.max() == 8.0 and batch.weights.min() == 0.0
    assert batch.ids.shape == batch.weights.shape and batch.ids.max() < 1024


def test_a_resumed_run_is_the_unbroken_one(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = MODELS["rope"]
    unbroken = train.train(row, RECIPE, work, "cpu").state_dict()
    (work / "rope.pt").unlink()

    real_step, calls = train._step, []

    def dies_at_the_fifth(*arguments: object) -> float:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real_step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "_step", dies_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        train.train(row, RECIPE, work, "cpu")
    monkeypatch.setattr(train, "_step", real_step)
    resumed = train.train(row, RECIPE, work, "cpu").state_dict()
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    assert (work / "weights" / "rope" / "training.json").exists()


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    recipe = train.Recipe(steps=100, warmup=10, cooldown=0.2)
    rates = [train.schedule(recipe, step) for step in range(101)]
    assert rates[0] == 0.1 and rates[50] == 1.0 and rates[90] == pytest.approx(0.5) and rates[100] == 0.0


def test_muon_gets_the_hidden_matrices_and_nothing_else() -> None:
    from transformers import AutoModelForCausalLM

    for row in MODELS.values():
        model = AutoModelForCausalLM.from_config(row.config(1024, 0, 1))
        muon, adam = train.optimizers(model, RECIPE)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
        other = {names[id(p)] for group in adam.param_groups for p in group["params"]}
        assert not hidden & other and hidden | other == set(names.values())
        assert not any("embed" in name or "wte" in name or "norm" in name for name in hidden)
