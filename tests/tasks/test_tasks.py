"""Inputs, pass keys and likelihoods."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedTokenizerBase

from probe.errors import ProbeError
from probe.models.load import LoadedModel, load_model
from probe.tasks.corpus import documents, is_heldout
from probe.tasks.inputs import make_input
from probe.tasks.nll import nll_per_position
from probe.tasks.passkey import minimum_length, passkey_sample
from probe.training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(text for _, text in list(documents("train"))[:20])


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load_model(str(tiny_folder))


@given(length=st.integers(59, 300), depth=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_a_pass_key_sample_has_its_length_its_depth_and_its_key(
    tokenizer: PreTrainedTokenizerBase, length: int, depth: float, seed: int
) -> None:
    length = max(length, minimum_length(tokenizer))
    sample = passkey_sample(tokenizer, length, depth, np.random.default_rng(seed))
    assert len(sample.prompt) + len(sample.answer) == length
    assert tokenizer.decode(sample.answer).strip() == sample.key and len(sample.key) == 5
    start, stop = sample.needle
    needle = tokenizer.decode(sample.prompt[start:stop])
    assert needle == f" The pass key is {sample.key}. Remember it. {sample.key} is the pass key."
    assert tokenizer.decode(sample.prompt).count(sample.key) == 2
    room = length - minimum_length(tokenizer)
    head = 1 + len(
        tokenizer.encode("There is a pass key hidden in this text. Find it and remember it.", add_special_tokens=False)
    )
    assert abs((start - head) - depth * room) <= 0.5


def test_too_short_a_pass_key_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    least = minimum_length(tokenizer)
    with pytest.raises(ValueError, match=f"at least {least} tokens to hold a pass key, got {least - 1}"):
        passkey_sample(tokenizer, least - 1, 0.5, np.random.default_rng(0))


def test_every_digit_is_a_token_and_the_probe_words_are_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    assert len(encode("90210")) == 5
    assert len(encode(" hello")) == len(encode(" good")) == 1
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    text = "def f(x):\n\treturn 'é' + x  # 42\n"
    assert tokenizer.decode(encode(text)) == text


def test_held_out_files_are_never_trained_on() -> None:
    train, heldout = ({path.split("#")[0] for path, _ in documents(split)} for split in ("train", "heldout"))
    assert train and heldout and not train & heldout
    assert all(is_heldout(path) for path in heldout)


@pytest.mark.parametrize(("spec", "expected"), [("token:5", [1, 5, 5, 5]), ("token:1", [2, 1, 1, 1])])
def test_a_token_is_repeated_after_bos(loaded: LoadedModel, spec: str, expected: list[int]) -> None:
    assert make_input(loaded, spec, 4).tolist() == [expected]


def test_ids_are_taken_as_they_are(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(list(range(3, 90))))
    assert make_input(loaded, f"ids:{path}", 10).tolist() == [list(range(3, 13))]
    assert make_input(loaded, f"ids:{path}", None).shape == (1, 87)
    with pytest.raises(ProbeError, match="has 87 tokens, length asks for 88"):
        make_input(loaded, f"ids:{path}", 88)


@pytest.mark.parametrize(
    ("spec", "length", "says"),
    [
        ("token:97", 9, "token id 97 is outside the vocabulary 0 to 96"),
        ("token:-1", 9, "outside the vocabulary"),
        ("token:x", 9, "expected an integer token id, got 'x'"),
        ("token:5", 1, "expected at least 2 tokens, got 1"),
        ("word:hello", 9, "has no tokenizer; use token:ID or ids:FILE"),
        ("ids:/nonexistent.json", 9, "cannot read /nonexistent.json"),
        ("noise", 9, "unknown input kind 'noise'; known: word:TEXT"),
    ],
)
def test_bad_inputs_are_answered(loaded: LoadedModel, spec: str, length: int, says: str) -> None:
    with pytest.raises(ProbeError) as caught:
        make_input(loaded, spec, length)
    assert says in str(caught.value)


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1, 2.5]", "[true, 1]", '["a"]'])
def test_a_file_that_is_no_list_of_ids_is_refused(loaded: LoadedModel, tmp_path: Path, content: str) -> None:
    path = tmp_path / "ids.json"
    path.write_text(content)
    with pytest.raises(ProbeError, match="expected a JSON list of"):
        make_input(loaded, f"ids:{path}", None)


def test_nll_is_the_stock_models_loss(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama()
    ids = torch.randint(3, 97, (2, 1100), generator=torch.Generator().manual_seed(0))
    losses = nll_per_position(model, ids)
    assert torch.isnan(losses[:, 0]).all() and losses.shape == ids.shape
    with torch.no_grad():
        stock = model(ids, labels=ids).loss
        last = model(ids[:, :701]).logits[:, -2].log_softmax(-1)
    assert losses[:, 1:].mean() == pytest.approx(float(stock), rel=1e-5)
    assert losses[:, 700] == pytest.approx(-last[torch.arange(2), ids[:, 700]], rel=1e-4)
