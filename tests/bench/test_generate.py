"""`probe generate` writes what transformers' own greedy generate() writes, under the same scheme."""

import json

import pytest
import torch

from probe.bench.generate import Generation
from probe.commands.main import main
from probe.errors import FieldError
from probe.models.load import load_model
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme


@pytest.fixture(scope="module")
def loaded():
    return load_model("rope")


def test_it_writes_what_generate_writes(loaded):
    work = Generation(loaded, "origin,rerope+logn,mesa", "heldout", 700, 6, 3)
    list(work.run())
    assert [row.scheme for row in work.rows] == ["origin", "rerope+logn", "mesa"]
    for row in work.rows:
        with apply_scheme(loaded.model, parse_scheme(row.scheme, loaded.window)), torch.no_grad():
            made = loaded.model.generate(work.ids, max_new_tokens=6, do_sample=False)
        assert list(row.tokens) == made[0, 700:].tolist()
        assert row.text == loaded.tokenizer.decode(made[0, 700:])
        assert row.prompt == 700 and row.prefill_seconds > 0 and row.peak_bytes > 0
    assert [bool(row.borders) for row in work.rows] == [False, False, True]


def test_it_ends_where_the_model_ends_its_text(loaded, monkeypatch):
    work = Generation(loaded, "origin", "heldout", 600, 8, 3)
    list(work.run())
    (row,) = work.rows
    end = row.tokens[2]
    first = row.tokens.index(end)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [end])
    again = Generation(loaded, "origin", "heldout", 600, 8, 3)
    list(again.run())
    assert again.rows[0].tokens == row.tokens[: first + 1]


@pytest.mark.parametrize("new", [0, 1025])
def test_new_tokens_have_a_range(loaded, new):
    with pytest.raises(FieldError, match="new"):
        Generation(loaded, "origin", "heldout", 600, new)


def test_the_command_reads_a_text_and_writes_its_result(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The grass is green. The sky is blue. " * 20)
    call = ["generate", "--input", f"text:{tmp_path / 'text.txt'}", "--new", "1", "--scheme", "origin", "--quiet"]
    assert main([*call, "--out", str(tmp_path / "made.json")]) == 0
    assert "one token only" in capsys.readouterr().out
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["kind"] == "generate" and made["complete"] and len(made["rows"][0]["tokens"]) == 1
    assert main(["generate", "--scheme", "magic"]) == 2
