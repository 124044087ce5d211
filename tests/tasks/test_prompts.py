"""A chat template around a task's prompt, intervals, and which options go with which task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from probe.commands.main import main
from probe.errors import ProbeError
from probe.models.load import load_model
from probe.studies.evaluate import Evaluation
from probe.tasks.intervals import wilson
from probe.tasks.passkey import minimum_length, passkey_sample

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>reply: {% endif %}"
)


def chatty() -> PreTrainedTokenizerFast:
    tokenizer = load_model("rope").tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_chat_prompt_is_what_the_template_gives() -> None:
    """Read back, the prompt is the template's rendering of its text, the reply begun, special tokens as such."""
    tokenizer = chatty()
    sample = passkey_sample(tokenizer, 400, 0.4, np.random.default_rng(0), prompt="chat")
    said = tokenizer.decode(sample.prompt)
    inside = said.removeprefix("<bos>user: ").split("<eos>")[0]
    assert inside.startswith("There is a pass key hidden") and inside.endswith("\nWhat is the pass key?")
    asked = [{"role": "user", "content": inside}]
    rendered = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert said == rendered + "The pass key is"
    assert sample.prompt.count(tokenizer.bos_token_id) == 2
    start, stop = sample.needle
    assert tokenizer.decode(sample.prompt[start:stop]).count(sample.key) == 2
    assert len(sample.prompt) + len(sample.answer) == 400
    assert minimum_length(tokenizer, prompt="chat") > minimum_length(tokenizer)


def test_a_tokenizer_without_a_template_says_so() -> None:
    with pytest.raises(ProbeError, match="prompt chat: the model's tokenizer has no chat template; use plain"):
        Evaluation(load_model("rope"), "passkey", "origin", [256], 1, 0, prompt="chat")


def test_wilson_against_its_closed_form() -> None:
    z = 1.959963984540054
    for right, total in ((0, 5), (3, 10), (10, 10)):
        p = right / total
        middle = (p + z * z / (2 * total)) / (1 + z * z / total)
        half = z / (1 + z * z / total) * np.sqrt(p * (1 - p) / total + z * z / (4 * total**2))
        assert wilson(right, total) == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-9)


def test_rows_say_which_sample_was_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "--lengths", "256,1024", "--samples", "5", "--seed", "1", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "eval.json"), "--json"]) == 0
    inside, past = json.loads(capsys.readouterr().out)["rows"]
    for row in (inside, past):
        assert len(row["hits"]) == row["total"] == 5 and sum(hit for _, hit in row["hits"]) == row["correct"]
        assert [int(5 * depth) for depth, _ in row["hits"]] == [0, 1, 2, 3, 4]
        assert row["low"] <= row["accuracy"] == row["correct"] / 5 <= row["high"]
    assert inside["accuracy"] == 1 and past["accuracy"] < 1
    assert main(["tables", str(tmp_path / "eval.json")]) == 0
    assert "| 100% (57% to 100%) |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--input", "documents"), "--input: is for --task nll, got --task passkey; leave it out"),
        (
            ("--task", "nll", "--prompt", "chat"),
            "--prompt: is for --task passkey and 13 others, got --task nll; leave it out",
        ),
        (("--prompt", "chatty"), "unknown prompt 'chatty'; known: plain, chat"),
        (("--task", "nll", "--input", "document:x"), "unknown document 'x'"),
    ],
)
def test_an_option_of_another_task_is_refused(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--samples", "1", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_likelihood_of_the_same_tokens_with_more_context(capsys: pytest.CaptureFixture[str]) -> None:
    """Windows of documents share their end, and more context makes them easier."""
    asked = ["--task", "nll", "--model", "rope", "--input", "documents", "--lengths", "128,448", "--samples", "4"]
    assert main(["eval", *asked, "--tail", "64", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["input"] == "documents" and "prompt" not in found["settings"]
    few, many = (row["each"] for row in found["rows"])
    assert np.mean(many) < np.mean(few) and len(few) == 4
