"""The embedded models: ordinary folders of the size they may have, and their acceptance numbers on a small sample."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probe.models.embedded import EMBEDDED, MODELS, STUDIED
from probe.models.load import load_model
from probe.training.acceptance import KEY_LENGTHS, card, nll_numbers, passkey_numbers, slope_per_window, verdicts

TRAINED = [name for name, row in MODELS.items() if (row.folder / "config.json").exists()]


def test_all_are_there() -> None:
    assert list(MODELS) == TRAINED and all(row.here for row in STUDIED.values())
    assert len(STUDIED) >= 8 and not set(MODELS) & set(STUDIED)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_folder_is_an_ordinary_small_one(name: str) -> None:
    folder = EMBEDDED[name].folder
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert len(tokenizer) == model.config.vocab_size == 1024
    assert tokenizer.encode("x")[0] == model.config.bos_token_id
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.py"))


@pytest.mark.parametrize("name", TRAINED)
def test_the_pass_key_is_found_all_over_the_window(name: str) -> None:
    rows = passkey_numbers(load_model(name), samples=20, seed=7)
    inside = [row for row in rows if row["length"] in KEY_LENGTHS]
    assert sum(row["accuracy"] for row in inside) / len(inside) >= 0.95


def test_rope_predicts_text_in_its_window_and_fails_past_it() -> None:
    numbers = nll_numbers(load_model("rope"), samples=8, seed=7)
    assert numbers["second_half"]["mean"] < 3.2
    assert abs(numbers["slope_per_window"]["mean"]) < 0.8
    assert list(numbers["rise"].values())[-1]["mean"] > 0.3


@pytest.mark.parametrize("name", STUDIED)
def test_those_of_the_study_predict_text_in_their_window(name: str) -> None:
    """A guess by how often each token comes has about 5 nats."""
    loaded = load_model(name)
    assert loaded.model.dtype == torch.float32 and loaded.window == STUDIED[name].window
    assert nll_numbers(loaded, samples=4, seed=7)["second_half"]["mean"] < 3.6


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_card_says_what_was_measured(name: str) -> None:
    folder = EMBEDDED[name].folder
    numbers, training = (json.loads((folder / file).read_text()) for file in ("acceptance.json", "training.json"))
    assert (folder / "README.md").read_text() == card(EMBEDDED[name], numbers, training)
    assert numbers["holds"] == verdicts(numbers["passkey"], numbers["nll"], name == "rope")
    assert all(numbers["holds"].values()) or name in STUDIED


def test_slope_is_in_nats_per_window() -> None:
    line = 0.01 * torch.arange(100.0).repeat(3, 1)
    assert torch.allclose(slope_per_window(line, 20, 80, 50), torch.full((3,), 0.5, dtype=torch.float64))
