"""Shipped documents: whole, long enough, and their windows end where the length does not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe.errors import ProbeError
from probe.models.load import LoadedModel, load_model
from probe.tasks.documents import DOCUMENTS, END_SHARE, document_batch, document_tokens
from probe.tasks.inputs import draw_input, unigram_nats


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("rope")


def test_every_document_is_one_long_text_with_its_licence() -> None:
    for row in DOCUMENTS.values():
        text = row.text()
        assert 170_000 < len(text) < 220_000 and "\N{REPLACEMENT CHARACTER}" not in text
        assert "public domain" in row.help and "npm" in row.help
    assert DOCUMENTS["moby-dick-1"].text().startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael.")


def test_windows_of_all_lengths_are_of_the_same_last_tokens(loaded: LoadedModel) -> None:
    long, short = (document_batch(loaded, length, 7, seed=3) for length in (2048, 300))
    assert torch.equal(long[:, -250:], short[:, -250:])
    assert not torch.equal(long[0], long[5])  # the same document once more, elsewhere
    for row, name in zip(long, DOCUMENTS, strict=False):
        stream = document_tokens(loaded.tokenizer, name)
        ends = [n for n in range(2047, len(stream) + 1) if torch.equal(stream[n - 2047 : n], row[1:])]
        assert ends and ends[0] >= (1 - END_SHARE) * len(stream) - 1


def test_first_comes_what_the_tokenizer_puts_first(loaded: LoadedModel) -> None:
    assert document_batch(loaded, 64, 1, 0)[0, 0] == loaded.tokenizer.bos_token_id


def test_one_document_by_its_name(loaded: LoadedModel) -> None:
    drawn = draw_input(loaded, "document:sotu-1946", 512, samples=2, seed=1)
    assert drawn.ids.shape == (2, 512) and not torch.equal(drawn.ids[0], drawn.ids[1])
    said = loaded.tokenizer.decode(drawn.ids[0][1:])
    assert said in DOCUMENTS["sotu-1946"].text()
    notes = draw_input(loaded, "documents", 512, samples=2).record().notes
    assert notes["documents"] == ["moby-dick-1", "sotu-1981"]


@pytest.mark.parametrize(
    ("spec", "length", "said"),
    [
        ("document:mobydick", 100, "unknown document 'mobydick'; known: moby-dick-1"),
        ("document:sotu-1946", 200_000, "at most the .* tokens that document sotu-1946 has, got 200000"),
        ("document", 100, "unknown input kind"),
    ],
)
def test_what_is_not_there_is_said(loaded: LoadedModel, spec: str, length: int, said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        draw_input(loaded, spec, length)


def test_a_unigram_guess_is_the_entropy_of_the_tokens() -> None:
    ids = torch.tensor([[3, 3, 3, 5], [5, 5, 3, 5]])
    assert unigram_nats(ids) == pytest.approx(np.log(2))
    assert unigram_nats(torch.arange(64)[None]) == pytest.approx(np.log(64))


def test_a_repeated_word_has_no_unigram_guess_and_text_has_one(loaded: LoadedModel) -> None:
    assert draw_input(loaded, "word:hello", 64).record().unigram is None
    guess = draw_input(loaded, "documents", 512).record().unigram
    assert guess is not None and 3 < guess < np.log(512)
