"""Generated tasks: their lengths, depths and contents are what they say, and answers are marked as RULER marks them."""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from probe.errors import FieldError, ProbeError
from probe.models.embedded import EMBEDDED
from probe.models.load import LoadedModel, load_model
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme
from probe.tasks.haystack import haystack_text, take_haystack
from probe.tasks.measure import UNITS
from probe.tasks.passkey import FILLER, KEY_WORDS, minimum_length, passkey_sample
from probe.tasks.questions import Question, recall
from probe.tasks.ruler import ADJECTIVES, NOUNS, Ask, Generator, Needles
from probe.tasks.scoring import MORE, spread_depths, written_answers
from probe.tasks.table import TASKS, Asked

TEXT = haystack_text("documents")[:60_000]


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Of three makes: the embedded models', Llama 2's kind with space marks, and a unigram one."""
    if kind == "byte-level":
        return PreTrainedTokenizerFast.from_pretrained(EMBEDDED["rope"].folder)
    special = ["<unk>", "<bos>", "<eos>"]
    if kind == "metaspace":
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    else:
        made = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    letters = " ".join(sorted(set(haystack_text("documents")) | set(string.printable)))
    made.train_from_iterator([TEXT, letters * 20], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


KINDS = ("byte-level", "metaspace", "unigram")
GENERATED = {
    name: row.draw.keywords["generator"]  # type: ignore[attr-defined]
    for name, row in TASKS.items()
    if "generator" in getattr(row.draw, "keywords", {})
}
LEAST = {"cwe": 2000, "vt": 900, "lines": 700, "niah-multikey-3": 700}


def ask(kind: str, length: int, unit: str = "tokens", haystack: str = "documents") -> Ask:
    return Ask(tokenizer(kind), UNITS[unit].measure(tokenizer(kind)), length, haystack)


def question(generator: Generator, asked: Ask, seed: int = 0, depth: float = 0.5) -> Question:
    return generator(asked, np.random.default_rng(seed), depth)


def text_of(kind: str, one: Question) -> str:
    return tokenizer(kind).decode(one.prompt, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GENERATED)
@settings(max_examples=3)
@given(more=st.integers(0, 3000), seed=st.integers(0, 2**20), depth=st.floats(0, 1))
def test_prompt_and_answer_have_exactly_the_length(name: str, kind: str, more: int, seed: int, depth: float) -> None:
    length = 4 * LEAST.get(name, 500) + more
    one = question(GENERATED[name], ask(kind, length), seed, depth)
    assert len(one.prompt) + len(one.answer) == length
    assert one.prompt[0] == tokenizer(kind).bos_token_id
    answer = tokenizer(kind).decode(one.answer)
    assert recall(answer, one.references) == 1 or kind == "unigram"  # which normalises some marks away


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in GENERATED if "depths" in TASKS[name].takes])
def test_what_is_asked_for_stands_where_it_should(name: str, kind: str) -> None:
    asked = ask(kind, 4000)
    for depth in (0.0, 0.3, 0.5, 1.0):
        one = question(GENERATED[name], asked, 3, depth)
        assert one.depth is not None and abs(one.depth - depth) < 0.05
        text, wanted = text_of(kind, one), one.references[0]
        found = [match.start() for match in re.finditer(re.escape(wanted), text)]
        assert len(found) == 1, "once, and not in the question"
        # Where it is in the characters of the whole prompt, instruction and question included.
        assert abs(found[0] / len(text) - depth) < 0.15


@pytest.mark.parametrize("name", [name for name in GENERATED if name.startswith("niah")])
def test_needles_are_there_and_the_question_names_their_keys(name: str) -> None:
    one = question(GENERATED[name], ask("byte-level", 6000))
    text = text_of("byte-level", one)
    row: Needles = GENERATED[name]
    hidden = dict(re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", text))
    asked = re.search(r"What (?:is|are all) the special magic \w+ for (.*) mentioned in the provided text\?", text)
    assert asked is not None
    keys = re.split(r", and |, ", asked[1])
    assert len(keys) == row.asked and set(keys) <= set(hidden)
    if row.each == 1:
        assert tuple(hidden[key] for key in keys) == one.references
    else:
        pairs = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", text)
        assert sorted(value for key, value in pairs if key == keys[0]) == sorted(one.references)
        assert len(one.references) == row.each
    if row.haystack != "needles":
        assert len(re.findall("One of the special magic", text)) == row.hidden * row.each
    else:
        assert len(hidden) > 40 and all(sentence not in text[: len(text) // 2] for sentence in FILLER)


def test_the_chain_of_variables_leads_to_its_value() -> None:
    one = question(GENERATED["vt"], ask("byte-level", 2500))
    text = text_of("byte-level", one)
    body = text[text.rindex("Memorize and track") :]
    value = re.search(r"assigned the value (\d+) in", body)
    assert value is not None
    known: dict[str, str] = {}
    for name, is_name, what in re.findall(r"VAR (\w+) = (VAR )?(\w+)", body):
        known[name] = known[what] if is_name else what  # in order: what is referred to was assigned before
    assert {name for name, got in known.items() if got == value[1]} == set(one.references) and len(known) == 5


@pytest.mark.parametrize(("length", "often", "seldom"), [(3000, 6, 1), (6000, 30, 3)])
def test_common_words_are_the_most_common(length: int, often: int, seldom: int) -> None:
    one = question(GENERATED["cwe"], ask("byte-level", length))
    text = text_of("byte-level", one)
    body = text[text.rindex("Below is a numbered list") : text.rindex("\nQuestion")]
    listed = re.findall(r" (\d+)\. ([a-z]+)", body)
    assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
    counts = Counter(word for _, word in listed)
    assert {word for word, _ in counts.most_common(10)} == set(one.references)
    assert set(counts.values()) == {often, seldom}


def test_frequent_words_follow_zipfs_law() -> None:
    one = question(GENERATED["fwe"], ask("byte-level", 6000))
    text = text_of("byte-level", one)
    counts = Counter(re.findall(r"\b[a-z]{6}\b", text[text.index("coded words.") : text.rindex("\nQuestion")]))
    made = [(word, count) for word, count in counts.most_common(4) if word not in "yellow"]
    assert tuple(word for word, _ in made[:3]) == one.references
    # Ranks 2, 3 and 4 of a distribution with exponent 2.
    assert made[0][1] / made[1][1] == pytest.approx(9 / 4, rel=0.06)
    assert made[1][1] / made[2][1] == pytest.approx(16 / 9, rel=0.06)


def test_a_line_is_asked_for_that_is_there() -> None:
    one = question(GENERATED["lines"], ask("byte-level", 3000))
    text = text_of("byte-level", one)
    lines = dict(re.findall(r"line (\S+): REGISTER_CONTENT is <(\d+)>", text))
    wanted = re.search(r"<REGISTER_CONTENT> in line (\S+)\? I need the number", text)
    assert wanted is not None and (lines[wanted[1]],) == one.references and len(lines) > 40


def test_words_are_the_same_text_for_every_tokenizer() -> None:
    for name, generator in GENERATED.items():
        length = LEAST.get(name, 400)
        texts = [text_of(kind, question(generator, ask(kind, length, "words"))) for kind in ("byte-level", "metaspace")]
        plain = [re.sub(r"<\w+>|\s", "", text) for text in texts]
        assert plain[0] == plain[1], name
        keys = [passkey_sample(tokenizer(kind), 200, 0.5, np.random.default_rng(0), unit="words") for kind in KINDS]
        assert len({key.key for key in keys}) == 1
    counted = text_of("byte-level", question(GENERATED["niah-single-1"], ask("byte-level", 400, "words")))
    assert abs(len(counted.replace("<bos>", "").split()) + 1 - 400) <= 2  # the answer is one more


def test_a_word_is_hidden_like_a_number() -> None:
    made = tokenizer("byte-level")
    for seed in range(20):
        sample = passkey_sample(made, 256, 0.4, np.random.default_rng(seed), key="word")
        assert sample.key in KEY_WORDS and made.decode(sample.answer) == f" {sample.key}"
        assert made.decode(sample.prompt[slice(*sample.needle)]).count(sample.key) == 2
        assert len(sample.prompt) + len(sample.answer) == 256
    assert not any(word in "".join(FILLER).lower() for word in KEY_WORDS)
    longest = minimum_length(made, key="word")
    assert all(
        len(passkey_sample(made, longest, 0.0, np.random.default_rng(seed), key="word").prompt) for seed in range(30)
    )


@pytest.mark.parametrize("name", GENERATED)
def test_too_short_a_length_says_how_long_it_must_be(name: str) -> None:
    with pytest.raises(FieldError, match=r"needs at least \d+ .*got 30") as caught:
        question(GENERATED[name], ask("byte-level", 30))
    least = int(re.findall(r"at least (\d+)", str(caught.value))[0])
    assert 30 < least < 4096
    question(GENERATED[name], ask("byte-level", least + 120))


def test_recall_is_counted_by_hand() -> None:
    assert recall("It is 123 and 45.", ("123", "45", "6")) == pytest.approx(2 / 3)
    assert recall("  ABC-def\n", ("abc-DEF",)) == 1
    assert recall("", ("1",)) == 0
    assert recall("12\x0034", ("1234",)) == 0  # what is not printed is cut there


@given(
    said=st.text(alphabet="ab1 \n\x00\x1fZ.", max_size=30),
    references=st.lists(st.text(alphabet="abz1", min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_recall_is_that_of_the_harness(said: str, references: list[str]) -> None:
    theirs = pytest.importorskip("lm_eval.tasks.ruler.common_utils")
    expected = theirs.string_match_all(theirs.postprocess_pred([said]), [references])
    assert recall(said, references) == pytest.approx(expected)


def test_a_haystack_is_cut_where_it_should_be_and_goes_on_from_its_beginning() -> None:
    measure = UNITS["words"].measure(tokenizer("byte-level"))
    units, ends = take_haystack(measure, "noise", 1000, np.random.default_rng(1))
    text = measure.text(units)
    assert len(units) == 1000 and "again. The grass" in text
    assert all(measure.text(units[:end]).endswith(".") for end in ends if end < 1000)


@pytest.mark.parametrize(
    ("spec", "says"),
    [("text:nowhere.txt", "cannot read nowhere.txt"), ("books", "unknown haystack 'books'"), ("text", "unknown")],
)
def test_a_haystack_that_is_not_there_is_refused(spec: str, says: str) -> None:
    with pytest.raises(ProbeError, match=says):
        haystack_text(spec)


def test_a_file_can_be_the_haystack(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Once upon a time. There was a scheme. " * 5)
    one = question(
        GENERATED["niah-single-2"], ask("byte-level", 700, haystack=f"text:{tmp_path / 'mine.txt'}"), depth=0.5
    )
    assert "Once upon a time. There was a scheme." in text_of("byte-level", one)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ProbeError, match="an empty one"):
        haystack_text(f"text:{tmp_path / 'empty.txt'}")


def test_names_are_many_and_none_is_twice() -> None:
    assert len(set(ADJECTIVES)) == len(ADJECTIVES) > 100 and len(set(NOUNS)) == len(NOUNS) > 100


@given(samples=st.integers(1, 40), depths=st.none() | st.integers(1, 9), seed=st.integers(0, 99))
def test_depths_are_spread_evenly_or_dealt(samples: int, depths: int | None, seed: int) -> None:
    found = spread_depths(samples, np.random.default_rng(seed), depths)
    assert len(found) == samples and found == sorted(found) and 0 <= found[0] <= found[-1] <= 1
    if depths is None:
        assert [int(depth * samples) for depth in found] == list(range(samples))
    else:
        counts = Counter(found)
        assert len(counts) == min(samples, depths) and max(counts.values()) - min(counts.values()) <= 1


@pytest.fixture(scope="module")
def rope() -> LoadedModel:
    return load_model("rope", dtype="float64")  # in which no two tokens are nearly as likely


@pytest.mark.parametrize("spec", ["origin", "mesa"])
def test_answers_in_a_batch_are_those_of_one_by_one_and_of_generate(rope: LoadedModel, spec: str) -> None:
    """Prompts of several lengths, padded; against the stock `generate` under the scheme, each alone."""
    scheme = parse_scheme(spec, 512)
    drawn = TASKS["niah-multivalue"].draw(rope, Asked(450, 2, 0, haystack="noise", unit="words"))
    assert len({len(one.prompt) for one in drawn}) > 1
    together = written_answers(rope, scheme, drawn)
    for one, said in zip(drawn, together, strict=True):
        assert written_answers(rope, scheme, [one]) == [said]
        with apply_scheme(rope.model, scheme), torch.no_grad():
            ids = torch.tensor([one.prompt])  # without a mask, `generate` takes a first token that is the pad for one
            made = rope.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(one.answer) + MORE,
                pad_token_id=0,
            )  # fmt: skip
        assert said == rope.tokenizer.decode(made[0, len(one.prompt) :], skip_special_tokens=True)
