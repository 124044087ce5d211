"""Prompts that begin alike are read from where they differ, and nothing comes out differently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.models.load import LoadedModel, load_model
from probe.schemes import parse_scheme
from probe.studies.evaluate import Evaluation
from probe.tasks import table
from probe.tasks.passkey import passkey_sample
from probe.tasks.prefixes import PrefixMemory, common, in_order, saving
from probe.tasks.prompts import PLACEMENTS
from probe.tasks.scoring import passkey_answers, written_answers
from probe.tasks.table import TASKS, Asked

SCHEMES = (
    "origin", "dynamic-ntk", "yarn", "rerope+logn", "leaky-rerope", "stair", "self-extend", "dual-chunk",
    "streaming-llm", "lm-infinite+bottom", "star", "mesa+logn", "mesa(last=paper)",
)  # fmt: skip
ROWS = st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def rope() -> LoadedModel:
    return load_model("rope")


@given(ROWS)
def test_what_is_saved_is_what_a_tree_of_the_rows_need_not_hold(rows: list[list[int]]) -> None:
    nodes = {tuple(row[:depth]) for row in rows for depth in range(1, 5)}
    assert saving(rows) == pytest.approx(1 - len(nodes) / (4 * len(rows)))
    assert sorted(in_order(rows)) == list(range(len(rows)))


def test_rows_of_other_lengths_share_nothing() -> None:
    assert common([1, 2, 3], [1, 2]) == 2
    assert saving([[1, 2, 3], [1, 2]]) == 0 and saving([]) == 0


@pytest.mark.parametrize("spec", SCHEMES)
def test_answers_are_those_of_whole_passes(rope: LoadedModel, spec: str) -> None:
    """In float64, past the window: which keys are found, and the likelihood of each to 1e-9."""
    scheme, asked = parse_scheme(spec, rope.window), Asked(1100, 6, 3, depths=3, haystacks=2)
    drawn = TASKS["passkey"].draw(rope, asked)
    ids = [sample.prompt + sample.answer for sample in drawn]
    ordered = [drawn[number] for number in in_order(ids)]
    memory = PrefixMemory()
    rope.model.double()
    try:
        hits, nats = passkey_answers(rope, scheme, ordered)
        again, near = passkey_answers(rope, scheme, ordered, memory)
    finally:
        rope.model.float()
    assert hits.tolist() == again.tolist()
    torch.testing.assert_close(near, nats, atol=1e-9, rtol=0)
    assert memory.read == round(sum(map(len, ids)) * (1 - saving(ids))) < 0.9 * sum(map(len, ids))


@pytest.mark.parametrize("spec", ["origin", "rerope+logn", "mesa+logn", "dynamic-ntk"])
def test_written_answers_are_the_same(rope: LoadedModel, spec: str) -> None:
    scheme = parse_scheme(spec, rope.window)
    drawn = TASKS["niah-single-2"].draw(rope, Asked(900, 4, 0, depths=4, haystacks=1))
    ordered = [drawn[number] for number in in_order([question.prompt for question in drawn])]
    memory = PrefixMemory()
    assert written_answers(rope, scheme, ordered, memory) == written_answers(rope, scheme, ordered)
    assert memory.read < 0.75 * sum(len(question.prompt) for question in drawn)
    assert written_answers(rope, scheme, ordered[:1], PrefixMemory()) == written_answers(rope, scheme, ordered[:1])


def test_haystacks_deal_samples_to_so_many_texts(rope: LoadedModel) -> None:
    tokenizer = rope.tokenizer_for("a test")
    for task in ("passkey", "niah-single-2"):
        drawn = TASKS[task].draw(rope, Asked(700, 8, 0, haystacks=2))
        texts = {tokenizer.decode(sample.prompt[:60]) for sample in drawn if (sample.depth or 0) > 0.2}
        assert len(texts) == 2
        own = TASKS[task].draw(rope, Asked(700, 8, 0))
        assert len({tokenizer.decode(sample.prompt[:60]) for sample in own if (sample.depth or 0) > 0.2}) > 2
        assert len({tuple(sample.answer) for sample in drawn}) == 8


def test_a_sweep_shares_and_its_rows_do_not_depend_on_it(rope: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row by batches, one by shared beginnings, and one where memory runs out in the middle of sharing."""

    def rows(worth: float) -> list:
        monkeypatch.setattr("probe.studies.evaluate.WORTH", (worth, worth))
        work = Evaluation(rope, "passkey", "origin,mesa+logn", [400, 800], 6, depths=3, haystacks=1)
        for _ in work.run():
            pass
        assert work.share == 1.0
        return work.rows

    seen: list[bool] = []
    real = table.passkey_answers

    def watched(loaded, scheme, batch, memory=None):  # type: ignore[no-untyped-def]
        seen.append(memory is not None)
        if memory is not None and sum(seen) % 4 == 3:
            raise torch.OutOfMemoryError("out of memory")
        return real(loaded, scheme, batch, memory)

    shared, batched = rows(0.1), rows(2.0)
    assert shared == batched
    monkeypatch.setattr(table, "passkey_answers", watched)
    assert rows(0.1) == batched and any(seen) and not all(seen)


@pytest.mark.parametrize("place", PLACEMENTS)
def test_the_question_stands_where_it_is_asked_for(rope: LoadedModel, place: str) -> None:
    tokenizer = rope.tokenizer_for("a test")
    sample = passkey_sample(tokenizer, 600, 0.5, np.random.default_rng(0), question=place)
    assert len(sample.prompt) + len(sample.answer) == 600
    said = tokenizer.decode(sample.prompt)
    before, after = said.split(" Here we go.", 1)[0], said.rsplit(" Here we go.", 1)[1]
    row, asked = PLACEMENTS[place], "What is the pass key?"
    assert (asked in before, asked in after) == (row.before, row.after)
    assert said.endswith(" The pass key is" if row.after else "\nThe pass key is")
    start, stop = sample.needle
    assert tokenizer.decode(sample.prompt[start:stop]).count(sample.key) == 2
