"""The GPU script: its plan, its budget, its arithmetic, and the whole of it on CPU with tiny shapes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pretend_cuda import pretend_cuda
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from probe.bench import figure, gpu
from probe.bench.gpu import BLOCKS, Item, expected_seconds, time_limit, why_not, work_list
from probe.bench.roofline import decode_bytes, matrix_weights, prefill_operations, visible_pairs
from probe.commands.main import main
from probe.models.random import Shape, random_llama
from probe.schemes import make_scheme

SHAPE = Shape(layers=2, width=32, heads=4, kv_heads=2, window=32, vocab=50)
# What a bare GPU machine may lack.
WITHOUT = "import runpy, sys\nfor name in ('pandas', 'plotly', 'pyarrow', 'streamlit'): sys.modules[name] = None\n"
SMOKE = WITHOUT + "sys.argv[0] = 'probe'\nrunpy.run_module('probe', run_name='__main__')"


def test_smoke(tmp_path: Path) -> None:
    arguments = ["bench", "gpu", "--smoke", "--out", str(tmp_path), "--scheme", "stock,origin,stair(N=8,E=4)"]
    done = subprocess.run(
        [sys.executable, "-c", SMOKE, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    ratios = ("prefill_ratio", "decode_ratio")
    without = [{key: None if key in ratios else value for key, value in row.items()} for row in result["rows"]]
    assert result["complete"] and lines == without
    assert result["settings"]["what"] == "gpu" and result["provenance"]["machine"]["device"] == "cpu"
    checks = {row["scheme"]: row for row in lines if row["kind"] == "check"}
    assert set(checks) == {"origin", "stair(N=8,E=4)"}
    assert all(row["largest_difference"] < 1e-5 < row["largest"] for row in checks.values())
    speeds = [row for row in result["rows"] if row["kind"] == "speed"]
    assert not [row for row in speeds if row["skipped"]]
    assert {(row["model"], row["scheme"], row["length"]) for row in speeds} == {
        *(("llama-2-7b", scheme, length) for scheme in ("stock", *checks) for length in (64, 128)),
        *(("llama-3-8b", "stock", length) for length in (64, 128)),
    }
    rates = lines[0]
    for row in speeds:
        assert row["matrix_share"] == pytest.approx(row["operations"] / row["prefill_seconds"] / rates["matrix"])
        assert row["bandwidth_share"] == pytest.approx(
            row["bytes_per_step"] / row["decode_seconds"] / rates["bandwidth"]
        )
        if row["scheme"] == "stock":
            assert row["prefill_ratio"] == row["decode_ratio"] == 1
    assert main(["tables", str(tmp_path / "gpu.json"), str(tmp_path / "gpu.jsonl")]) == 0
    assert len(figure.write(result, tmp_path / "figures")) == 2


def test_operations_are_what_torch_counts() -> None:
    model, length = random_llama(SHAPE, torch.device("cpu"), torch.float32, 0), 24
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.long), logits_to_keep=1)
    every_pair = 4 * length**2 * SHAPE.width * SHAPE.layers  # eager attention visits the masked half too
    causal = 4 * length * (length + 1) // 2 * SHAPE.width * SHAPE.layers
    more = counter.get_total_flops() - every_pair + causal - prefill_operations(SHAPE, None, length)
    # Some versions of transformers make the rotary's angles by a matrix product.
    assert more in (0, SHAPE.width // SHAPE.heads * length)


def test_bytes_of_a_step_are_weights_and_the_visible_cache() -> None:
    model = random_llama(SHAPE, torch.device("cpu"), torch.float32, 0)
    matrices = sum(parameter.numel() for parameter in model.model.layers.parameters() if parameter.ndim == 2)
    assert matrix_weights(SHAPE) == matrices
    weights = 2 * (matrices + model.lm_head.weight.numel())
    with torch.no_grad():
        cache = model(torch.zeros(1, 41, dtype=torch.long), use_cache=True).past_key_values
    held = sum(2 * (layer.keys.numel() + layer.values.numel()) for layer in cache.layers)
    assert decode_bytes(SHAPE, None, 41, 40, 2) == weights + held
    few = make_scheme("streaming-llm", 32, x=4, y=12)
    assert decode_bytes(SHAPE, few, 41, 40, 2) == weights + held * 16 // 41


@given(
    spec=st.sampled_from(["origin", "streaming-llm", "lm-infinite", "star"]),
    length=st.integers(2, 150),
    share=st.floats(0, 0.99),
)
def test_visible_pairs_are_counted_by_the_definition(spec: str, length: int, share: float) -> None:
    scheme, first = make_scheme(spec, 32), int(share * length)
    t, i = torch.arange(first, length)[:, None], torch.arange(length)[None]
    assert visible_pairs(scheme, first, length, length) == int(scheme.visibility_at(length).sees(t, i).sum())
    assert visible_pairs(None, first, length, length) == int((i <= t).sum())


@given(power=st.floats(1, 1.75), scale=st.floats(1e-3, 10), times=st.integers(2, 8))
def test_expected_time_is_not_less_than_a_power_law_gives(power: float, scale: float, times: int) -> None:
    taken = {length: scale * length**power for length in (4, 8)}
    expected, right = expected_seconds(8 * times, taken), scale * (8.0 * times) ** power
    assert expected == pytest.approx(right * times**0.25)
    assert expected_seconds(4, taken) is None
    assert expected_seconds(8, {4: 3.0}) == 12.0


def test_what_does_not_fit_is_left_out_with_a_reason() -> None:
    def item(length: int, scheme: str = "stair") -> Item:
        return Item("m", scheme, length)

    assert why_not(item(8), {}, {}, 100) is None
    assert why_not(item(8), {}, {}, 0) == "the time budget is spent"
    taken = {item(4): 10.0, item(4, "mesa"): 1.0}
    assert why_not(item(8), taken, {}, 100) is None
    assert why_not(item(8), taken, {}, 39) == "expected to take 40 s, 39 s allowed"
    assert why_not(item(8), taken, {}, 100, longest=30) == "expected to take 40 s, 30 s allowed"
    assert why_not(item(8, "mesa"), taken, {}, 39) is None
    failed = {item(4): "out of memory"}
    assert why_not(item(8), {}, failed, 100) == "as 4 tokens: out of memory"
    assert why_not(item(2), {}, failed, 100) is None


def test_the_work_list_begins_with_every_scheme_at_the_shortest_length() -> None:
    items = work_list(BLOCKS, gpu.SCHEMES)
    assert len(items) == len(set(items)) and [item.scheme for item in items[: len(gpu.SCHEMES)]] == list(gpu.SCHEMES)
    longest = {name: max(item.length for item in items if item.shape == name) for name in gpu.SHAPES}
    assert longest == {"llama-2-7b": 128 * 1024, "llama-3-8b": 512 * 1024}
    assert {item.scheme for item in items if item.shape == "llama-3-8b"} == {"stock", "mesa"}


def test_the_shapes_are_the_published_ones() -> None:
    seven, eight = (gpu.SHAPES[name] for name in ("llama-2-7b", "llama-3-8b"))
    norms = 65 * 4096
    assert matrix_weights(seven) + 2 * 32000 * 4096 + norms == 6_738_415_616
    assert matrix_weights(eight) + 2 * 128256 * 4096 + norms == 8_030_261_248


def test_a_row_is_given_up_in_time() -> None:
    with pytest.raises(gpu.OutOfTimeError, match="took more than 0 s"), time_limit(0.05):
        while True:
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--smoke", "--scheme", "nonsense"), "unknown scheme 'nonsense'"),
        (("--smoke", "--minutes", "0"), "--minutes: expected more than 0"),
        (("--device", "cpu"), "expected a CUDA device, found none"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "gpu", *arguments, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("smaller", [Shape(layers=2, width=64, heads=4, kv_heads=2, window=32, vocab=97)])
def test_the_whole_script_on_a_pretended_gpu(smaller: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its branches for CUDA, in bfloat16; the shapes are tiny and the clock and the device's own functions made up."""
    with pretend_cuda() as counts:
        for name, made in {
            "synchronize": lambda *_: None, "empty_cache": lambda: None, "is_available": lambda: True,
            "get_device_name": lambda *_: "pretended",
            "reset_peak_memory_stats": lambda *_: counts.reset(), "memory_allocated": lambda *_: counts.live,
            "max_memory_allocated": lambda *_: counts.peak,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, made)
        monkeypatch.setattr(gpu, "FUSED", [SDPBackend.MATH])  # the stock model's call is torch's own
        monkeypatch.setattr(gpu, "SHAPES", dict.fromkeys(gpu.SHAPES, smaller))
        monkeypatch.setattr(gpu, "BLOCKS", (gpu.Block("llama-3-8b", gpu.SCHEMES, (72,)),))
        monkeypatch.setattr(gpu, "QUICK", 0.0)
        rates = gpu.RatesRow(dtype="bfloat16", matrix=1e12, bandwidth=1e12)
        monkeypatch.setattr(gpu, "measure_rates", lambda *_: rates)
        assert main(["bench", "gpu", "--out", str(tmp_path), "--scheme", "stock,mesa", "--quiet"]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["complete"] and result["settings"]["dtype"] == "bfloat16"
    assert result["provenance"]["machine"]["device"] == "pretended"
    assert not [row for row in result["rows"] if row.get("skipped")]
    assert all(row["largest_difference"] < 1e-4 for row in result["rows"] if row["kind"] == "check")
    assert all(row["peak_bytes"] > 0 for row in result["rows"] if row["kind"] == "speed")
