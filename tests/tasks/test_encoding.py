"""What a tokenizer gives in running text, for tokenizers of every make; and the one rule for what comes first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from probe.errors import ProbeError
from probe.models.load import LoadedModel, load_model
from probe.tasks import encoding
from probe.tasks.encoding import encode, encode_inside, encode_prefix, first_token, repeated_unit
from probe.tasks.inputs import draw_input, make_input
from probe.tasks.passkey import BEGUN, FILLER, NEEDLE, QUESTION, TASK, passkey_sample

TEXTS = [TASK, *FILLER, NEEDLE.format(key="12345"), QUESTION, " hello" * 50, " good" * 50, *"0123456789", "a.b, c!"] * 3


def trained(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of 300 tokens in the mould of a family."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    alphabet: list[str] = []
    if name == "byte-level":
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif name == "llama-2":  # Llama 2's tokenizer.json: no pre-tokenizer, a space mark before every text
        bpe.pre_tokenizer = pre_tokenizers.Metaspace()  # for training alone: no merge of it crosses words
        bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    elif name == "metaspace":
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif name == "words":
        bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    if name == "llama-2":
        bpe.pre_tokenizer = None
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


KINDS = ("byte-level", "llama-2", "metaspace", "words")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["hello", "good"])
def test_a_repeated_word_is_what_running_text_repeats(kind: str, word: str) -> None:
    """Of the unit repeated, and of the word repeated in a text, the middle is the same."""
    tokenizer = trained(kind)
    unit = repeated_unit(tokenizer, word, "word:" + word)
    running = encode(tokenizer, f" {word}" * 40)
    middle = running[len(running) // 2 :][: 5 * len(unit)]
    repeated = unit * 12
    assert any(repeated[at : at + len(middle)] == middle for at in range(len(unit)))
    assert len(set(repeated)) == len(set(middle))


def test_a_space_mark_at_the_beginning_is_no_part_of_the_unit() -> None:
    tokenizer = trained("llama-2")
    assert encode(tokenizer, " hello")[0] != encode(tokenizer, " hello hello")[-1]  # what was repeated before
    unit = repeated_unit(tokenizer, "hello", "word:hello")
    assert tokenizer.convert_ids_to_tokens(unit) == ["▁hello"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_pass_key_are_those_of_the_whole_text(kind: str) -> None:
    """A prompt that is put together of pieces has the ids of the text that it spells."""
    tokenizer = trained(kind)
    sample = passkey_sample(tokenizer, 400, 0.0, np.random.default_rng(0))
    text = TASK + NEEDLE.format(key=sample.key)
    head = len(first_token(tokenizer, None).ids) + len(encode(tokenizer, text))
    assert sample.prompt[:head] == [1, *encode(tokenizer, text)]
    end = FILLER[0] + QUESTION + BEGUN
    tail = encode(tokenizer, "." + end)[-len(encode_inside(tokenizer, QUESTION + BEGUN)) :]
    assert sample.prompt[-len(tail) :] == tail


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 7, 100, 700])
def test_the_beginning_of_a_long_text_is_that_of_its_whole_encoding(kind: str, tokens: int) -> None:
    tokenizer = trained(kind)
    text = "".join(FILLER[n % len(FILLER)] + f" {n * 7919}" for n in range(4000))
    assert encode_prefix(tokenizer, text, tokens) == encode(tokenizer, text)[:tokens]
    assert encode_prefix(tokenizer, text[:60], 10**6) == encode(tokenizer, text[:60])


def test_what_a_text_spells_is_no_special_token() -> None:
    tokenizer = trained("byte-level")
    assert 1 in tokenizer.encode("a <bos> b", add_special_tokens=False)
    assert not {0, 1, 2} & set(encode(tokenizer, "a <bos> b <eos>"))
    assert tokenizer.decode(encode(tokenizer, "a <bos> b")) == "a <bos> b"


def test_what_comes_first_is_what_the_tokenizer_puts_there() -> None:
    tokenizer, config = trained("byte-level"), SimpleNamespace(bos_token_id=2)
    assert (first_token(tokenizer, config).ids, first_token(tokenizer, config).source) == ((1,), "tokenizer")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()  # has a bos, and does not put it: as Qwen2
    assert first_token(tokenizer, config).ids == () and "puts none" in first_token(tokenizer, config).source
    assert first_token(None, config).ids == (2,) and first_token(None, config).source == "config"
    assert first_token(None, SimpleNamespace(bos_token_id=None)).ids == ()


@pytest.fixture(scope="module")
def loaded(tiny_llama: Callable[..., torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny model with a tokenizer that puts nothing first, though its config has a bos."""
    folder = tmp_path_factory.mktemp("no-bos")
    tokenizer = trained("byte-level")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tiny_llama(vocab_size=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder))


@pytest.mark.parametrize("spec", ["heldout", "text"])
def test_every_input_follows_the_one_rule_and_says_so(spec: str, loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The grass is green. " * 40)
    drawn = draw_input(loaded, f"text:{tmp_path / 'text.txt'}" if spec == "text" else spec, 64)
    assert int(drawn.ids[0, 0]) != 1 and "puts none" in drawn.record().notes["first"]
    assert drawn.record().length == 64 and len(drawn.record().sha256) == 64


@pytest.mark.parametrize("spec", ["word:hello", "token:5"])
def test_a_repeated_word_has_a_first_token_that_differs(spec: str, loaded: LoadedModel) -> None:
    """Without one every hidden state is the first one's: equal keys give the same whatever the weights."""
    drawn = draw_input(loaded, spec, 64)
    assert int(drawn.ids[0, 0]) == 1 and "alike at every position" in drawn.record().notes["first"]
    states = []
    for ids in (drawn.ids, torch.tensor([[5] * 64])):
        with torch.no_grad():
            states.append(loaded.model(ids, output_hidden_states=True).hidden_states[-1][0, 1:])
    assert (states[0] - states[0][:1]).abs().max() > 1e-2 and (states[1] - states[1][:1]).abs().max() < 1e-4
    with pytest.raises(ProbeError, match="all its tokens are alike"):
        make_input(loaded, [5] * 64)


def test_ids_are_an_input(loaded: LoadedModel) -> None:
    given = [[5, 6, 7, 8], [9, 10, 11, 12]]
    for ids in (given, torch.tensor(given), torch.tensor(given).numpy()):
        assert make_input(loaded, ids).tolist() == given
    assert make_input(loaded, [5, 6, 7], 2).tolist() == [[5, 6]]
    for bad, said in (
        ([[1, 2], [3]], "input: expected token ids of one sequence, or of several of equal length, got list"),
        (torch.rand(3), r"input: expected whole numbers \[length\] or \[samples, length\], got torch.float32 \(1, 3\)"),
        ([5, 600], "token id 600 is outside the vocabulary 0 to 511"),
        ([5], "length: expected at least 2 tokens, got 1"),
    ):
        with pytest.raises(ProbeError, match=said):
            make_input(loaded, bad)
    with pytest.raises(ProbeError, match="has 3 tokens, length asks for 4; give more ids"):
        make_input(loaded, [5, 6, 7], 4)


def test_an_empty_file_is_said_to_be_empty(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ProbeError, match=r"input text:.*: expected a file with some text, got an empty one"):
        make_input(loaded, f"text:{tmp_path / 'empty.txt'}")


def test_a_short_input_of_a_long_file_encodes_little_of_it(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(FILLER[n % len(FILLER)] + f" {n}" for n in range(20_000)))
    whole, seen = make_input(loaded, f"text:{path}"), []

    def counted(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
        seen.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr(encoding, "encode", counted)
    assert torch.equal(make_input(loaded, f"text:{path}", 128), whole[:, :128])
    assert sum(seen) < 10_000 < path.stat().st_size / 20


def test_a_kind_that_is_not_there_lists_those_that_are(loaded: LoadedModel) -> None:
    for spec in ("words:hello", "heldout:3", "word"):
        with pytest.raises(ProbeError, match=r"unknown input kind .*; known: word:TEXT, token:ID, ids:FILE, text:FILE"):
            make_input(loaded, spec, 64)
    assert json.dumps(draw_input(loaded, "word:hello", 64).record().notes["unit"])
