"""The harness beside the official code: the protocol with real processes, and what it refuses.

The official code is not here. What stands in for its checkout leaves the model as it is, which the harness cannot tell
from code that does nothing on short inputs, as the official one does.
"""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from probe.bench import official
from probe.bench.official import METHOD, OfficialBench, OfficialSettings
from probe.bench.official_driver import Side, our_models
from probe.commands.main import main
from probe.errors import ProbeError
from probe.foreign import Release, save_model
from probe.models.random import parse_shape, random_llama

MODEL = "random:layers=1,width=32,heads=2,window=64,vocab=40"
SHAPE = parse_shape(MODEL)
HARMLESS = "class position_set:\n    train_length = 0\nprint('noise on stdout')\n"


def stand_in(folder: Path, code: str) -> Path:
    (folder / METHOD).parent.mkdir()
    (folder / METHOD).write_text(code)
    return folder


def bench(checkout: Path) -> OfficialBench:
    settings = OfficialSettings(checkout, sys.executable, "stair(N=8,E=4)", (80,), MODEL, repeats=1, steps=2, threads=1)
    return OfficialBench(settings, Release.of(checkout, METHOD, "somewhere", "none", "4.31"), {})


def test_both_sides_answer_and_ratios_are_to_stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        official, "WHAT", ("prefill", "decode")
    )  # memory takes three more processes: it has its own test
    work = bench(stand_in(tmp_path, HARMLESS))
    assert list(work.run()) == ["prefill at 80 tokens", "decode at 80 tokens"]
    sides = ("stock", "stair(N=8,E=4)", "official")
    assert [(row.what, row.scheme) for row in work.rows] == [(what, side) for what in official.WHAT for side in sides]
    for row in work.rows:
        assert row.length == 80 and row.skipped is None
        stock = next(other for other in work.rows if (other.what, other.scheme) == (row.what, "stock"))
        assert row.ratio == row.seconds / stock.seconds
    result = json.loads(json.dumps(work.result(True).to_json(), allow_nan=False))
    assert result["kind"] == "bench" and result["settings"]["what"] == "official" and len(result["rows"]) == 6
    theirs = result["provenance"]["machine"]["theirs"]
    assert theirs["sha256"] == hashlib.sha256(HARMLESS.encode()).hexdigest() and theirs["transformers"] == "4.31"
    assert str(tmp_path) not in json.dumps(result)  # a place on somebody's machine says nothing


def test_the_driver_measures_memory_and_says_what_failed(tmp_path: Path) -> None:
    length, shape = 6000, parse_shape("random:layers=2,width=64,heads=4,window=64,vocab=40")
    save_model(shape, tmp_path, length, seed=0)
    settings = {"folder": str(tmp_path), "scheme": "origin", "window": 64, "steps": 1, "checkout": ""}
    stack = ExitStack()
    with stack:
        side = Side(our_models(settings, stack), settings)
        cache = 2 * 2 * length * 64 * 4  # keys and values, layers, tokens, width, float32
        assert cache < side.answer({"do": "memory", "model": "stock", "length": length})["peak_bytes"] < 20 * cache
        assert side.answer({"do": "logits", "model": "nobody", "length": 4}) == {"error": "KeyError: 'nobody'"}


def test_a_side_that_is_another_model_is_refused() -> None:
    class Said:
        def __init__(self, *logits: float) -> None:
            self.logits = list(logits)

        def ask(self, *_: object) -> dict:
            return {"logits": self.logits}

    official.check_same_model(Said(0.5, -2.0), Said(0.5, -2.00001))
    with pytest.raises(ProbeError, match=r"logits of 16 tokens differ from the stock model's by 0.001"):
        official.check_same_model(Said(0.5, -2.0), Said(0.5, -2.001))


def test_a_measurement_that_fails_is_a_row_with_the_reason() -> None:
    good = [{"seconds": 3.0}, {"seconds": 1.0}, {"seconds": 2.0}]
    rows = official.official_rows(
        "prefill", 80, ("stock", "official"), {"stock": good, "official": [{"error": "AssertionError: no"}]}
    )
    assert [row.seconds for row in rows] == [2.0, None] and rows[1].skipped == "AssertionError: no"
    assert rows[0].fastest == 1.0 and rows[0].slowest == 3.0 and rows[1].ratio is None


def test_the_saved_folder_has_the_old_configuration_and_the_same_weights(tmp_path: Path) -> None:
    save_model(SHAPE, tmp_path, 100, seed=4)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == 10000.0 and "rope_parameters" not in config and config["torch_dtype"] == "float32"
    ids = json.loads((tmp_path / "ids.json").read_text())
    assert len(ids) == 100 and min(ids) >= 0 and max(ids) < 40
    again = random_llama(SHAPE, torch.device("cpu"), torch.float32, 4)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = torch.tensor(ids)[None]
    assert loaded.config.rope_parameters["rope_theta"] == 10000.0
    assert torch.equal(loaded(batch).logits, again(batch).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--checkout", "{empty}"), "expected a checkout of github.com/soacker/Mesa-Extrapolation, found no methods"),
        (("--checkout", "{good}", "--python", "{empty}/python"), "expected a Python interpreter, found no such file"),
        (("--checkout", "{good}"), "the code needs transformers 4.31, found 5."),
        (("--checkout", "{good}", "--lengths", "8"), "--lengths: expected numbers of at least 32 tokens"),
        (("--checkout", "{good}", "--scheme", "nonsense"), "unknown scheme 'nonsense'"),
        (("--checkout", "{good}", "--repeats", "0"), "--repeats: expected at least 1"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, good = tmp_path / "empty", tmp_path / "good"
    empty.mkdir()
    good.mkdir()
    stand_in(good, HARMLESS)
    filled = [option.format(empty=empty, good=good) for option in options]
    assert main(["bench", "official", "--python", sys.executable, "--scheme", "stair", *filled]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
