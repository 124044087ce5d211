"""Model folders and texts that nobody meant well with: a line each, at once, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.commands.main import main as cli
from probe.errors import ProbeError
from probe.models.plausible import check_plausible

ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model to spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that loading it gives, within seconds; no run is left."""
    capsys.readouterr()
    began, out = time.monotonic(), folder.parent / "runs" / "one"
    command = ["run", "--model", str(folder), "--input", "token:5", "--length", "90", "--scheme", "origin"]
    assert cli([*command, "--quiet", "--out", str(out)]) == 2
    assert time.monotonic() - began < 30 and not out.exists()
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("probe:")]
    assert len(lines) == 1 and "Traceback" not in printed.err
    return lines[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, expected a whole number from 1 to 10,000"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers = '3', expected a whole number"),
        ({"num_attention_heads": -4}, "num_attention_heads = -4, expected a whole number from 1"),
        ({"num_attention_heads": 5}, "expected a config.json that transformers can read"),
        ({"num_key_value_heads": 3}, "its weights are not those that its config.json describes"),
        ({"hidden_size": 0}, "hidden_size = 0, expected"),
        ({"vocab_size": 10**12}, "vocab_size = 1000000000000, expected"),
        (
            {"rope_parameters": ROPE | {"rope_theta": float("nan")}},
            "rope_theta = nan, expected a finite number above 0",
        ),
        ({"rope_parameters": ROPE | {"rope_theta": float("inf")}}, "rope_theta = inf, expected a finite number"),
        ({"rope_parameters": ROPE | {"rope_theta": 0.0}}, "rope_theta = 0.0, expected a finite number above 0"),
        ({"rope_parameters": ROPE | {"rope_theta": "x"}}, "rope_theta = 'x', expected a number above 0"),
        ({"max_position_embeddings": -5}, "states no trained window; give one"),
        ({"model_type": "nonsense"}, "expected a config.json that transformers can read"),
        ({"dtype": "float7"}, "expected a config.json that transformers can read"),
    ],
)
def test_absurd_configurations_are_named(
    change: dict[str, Any], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert says in refused(folder, capsys)


@pytest.mark.parametrize("content", ["", "[1]", "{", '"text"', "null", "\x00\x01", "[" * 100_000])
def test_a_config_that_is_none_is_refused(content: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").write_text(content)
    assert "expected a config.json that transformers can read" in refused(folder, capsys)


def test_code_that_a_config_asks_for_is_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A known architecture with an auto_map runs as that architecture; an unknown one is refused."""
    mark = tmp_path / "it_ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('x')\nclass Model: pass\nclass Config: pass\n")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "evil"}))
    refused(folder, capsys)
    assert not mark.exists()


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it_ran",)


def test_pickled_weights_run_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": _Evil()}, folder / "pytorch_model.bin")
    assert "pickle" in refused(folder, capsys) or "safetensors" in refused(folder, capsys)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("how", ["cut", "empty", "header", "huge header"])
def test_damaged_weights_are_refused(how: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(
        {"cut": raw[: len(raw) // 2], "empty": b"", "header": raw[:8] + b"\xff" * 100 + raw[108:],
         "huge header": (2**63 - 1).to_bytes(8, "little") + raw[8:]}[how]
    )  # fmt: skip
    assert "safetensors" in refused(folder, capsys) or "weights" in refused(folder, capsys)


def test_texts_of_any_characters_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planes = "".join(chr(plane * 0x10000 + at) for plane in range(17) for at in (0x00, 0x41, 0x3042, 0xFFFF))
    text = "\x00\x01\ufeff\u202e" + planes + "\U0010ffff e\u0301 \r\n" * 50
    (tmp_path / "odd.txt").write_text(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "utf-8")
    command = ["run", "--input", f"text:{tmp_path / 'odd.txt'}", "--length", "200", "--scheme", "origin", "--quiet"]
    assert cli([*command, "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "not.txt").write_bytes(b"\xff\xfe\x80")
    assert cli(["run", "--input", f"text:{tmp_path / 'not.txt'}", "--length", "200", "--quiet"]) == 2
    assert "cannot read" in capsys.readouterr().err


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=4,
)  # fmt: skip
_FIELDS = st.sampled_from(
    ["num_hidden_layers", "rope_theta", "vocab_size", "head_dim", "rope_parameters", "text_config"]
)


@settings(max_examples=200)
@given(config=st.dictionaries(_FIELDS, _VALUES, max_size=4))
def test_any_configuration_is_plausible_or_refused_in_a_line(config: dict[str, Any]) -> None:
    try:
        check_plausible(config, "model folder x")
    except ProbeError as error:
        assert str(error).startswith("model folder x: config.json has ") and "\n" not in str(error)


def test_every_shipped_model_is_plausible() -> None:
    from probe.models.embedded import EMBEDDED

    for row in EMBEDDED.values():
        check_plausible(json.loads((row.folder / "config.json").read_text()), row.name)
