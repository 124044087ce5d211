"""`probe bench`: rows, ratios, what is timed, and bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probe.bench.rows import BenchRow, warnings
from probe.bench.run import Bench, BenchSettings, gives
from probe.bench.timing import Timing, interleaved
from probe.bench.work import STEPS, attention, decode, decode_work, prefill
from probe.commands.main import main
from probe.errors import ProbeError
from probe.models.load import LoadedModel
from probe.models.random import Shape, bench_model, parse_shape, random_ids, sharing_weights
from probe.schemes import PRESETS, make_scheme, parse_scheme
from probe.seam.apply import apply_scheme

COLUMNS = (
    "what", "scheme", "length", "seconds", "fastest", "slowest", "repeats", "peak_bytes", "least_bytes", "most_bytes",
    "ratio",
)  # fmt: skip
TINY = "random:layers=2,width=32,heads=4,kv_heads=2,window=32,vocab=50"


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return bench_model(TINY, device="cpu", dtype="float32", window=None, seed=0)


@pytest.mark.parametrize("what", ["attention", "prefill", "decode"])
def test_rows_are_complete_and_ratios_are_to_the_stock_row_of_the_same_length(what: str) -> None:
    bench = Bench.load(BenchSettings(what, "origin,rerope(N=8)", (40, 80), TINY, repeats=3, threads=1))
    list(bench.run())
    result = bench.result(True).to_json()
    json.dumps(result, allow_nan=False)
    assert [(row["scheme"], row["length"]) for row in result["rows"]] == [
        (scheme, length) for length in (40, 80) for scheme in ("stock", "origin", "rerope(N=8)")
    ]
    assert result["kind"] == "bench" and result["settings"]["what"] == what and result["settings"]["window"] == 32
    machine = result["provenance"]["machine"]
    assert machine["threads"] == 1 and {"load_before", "load_after", "cpu", "cores"} <= set(machine)
    assert result["provenance"]["versions"]["torch"] == torch.__version__
    for row in result["rows"]:
        assert tuple(row) == COLUMNS and row["what"] == what and row["peak_bytes"] is None
        stock = next(
            other for other in result["rows"] if (other["scheme"], other["length"]) == ("stock", row["length"])
        )
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"] and row["repeats"] == 3
        assert row["ratio"] == row["seconds"] / stock["seconds"]


def test_repeats_are_interleaved_after_one_warm_up_each() -> None:
    order: list[str] = []
    works = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = interleaved(works, 2, torch.device("cpu"))
    assert order == ["a", "b", "a", "b", "a", "b"] and set(timings) == {"a", "b"}
    parts = interleaved({"steps": lambda: [3.0, 1.0, 2.0]}, 2, torch.device("cpu"))["steps"]
    assert parts == Timing(2.0, 2.0, 2.0, 2)


def test_unsteady_rows_are_named() -> None:
    steady = BenchRow("prefill", "stock", 40, 1.0, 1.0, 1.3, 3)
    busy = BenchRow("prefill", "origin", 40, 1.0, 1.0, 1.5, 3)
    memory = BenchRow("prefill", "stock", 40, repeats=3, peak_bytes=10, least_bytes=1, most_bytes=10)
    (line,) = warnings([steady, busy, memory])
    assert "prefill of origin at 40 tokens" in line and "1.5 times the fastest" in line


@pytest.mark.parametrize("model", [TINY, "random:layers=1,width=32,heads=2"])
def test_the_timed_attention_is_the_models_own(model: str) -> None:
    loaded = bench_model(model, device="cpu", dtype="float32", window=None, seed=0)
    config = loaded.model.config
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q, k, v = (torch.randn(1, count, 50, dim) for count in (heads, kv_heads, kv_heads))
    stock = attention(loaded, sharing_weights(loaded.model), True, q, k, v)
    # From the definition: RoPE of base 10000 as complex numbers, softmax over the past, in float64.
    angles = torch.arange(50).double()[:, None] * 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)

    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(x[..., : dim // 2].double(), x[..., dim // 2 :].double())
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((pairs.real, pairs.imag), -1)

    groups = heads // kv_heads
    scores = turned(q) @ turned(k).repeat_interleave(groups, 1).transpose(-1, -2) / dim**0.5
    scores = scores.masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ v.double().repeat_interleave(groups, 1)).transpose(1, 2)
    torch.testing.assert_close(stock.double(), expected, rtol=0, atol=1e-5)
    for name, same in (("origin", True), ("rerope", False)):
        clone = sharing_weights(loaded.model)
        with apply_scheme(clone, make_scheme(name, 32)):
            out = attention(loaded, clone, False, q, k, v)
        assert torch.allclose(out, stock, atol=1e-5) == same


def test_decoding_is_greedy_on_the_cache(tiny: LoadedModel) -> None:
    ids = random_ids(tiny, 20, 3)
    after, seconds = decode(tiny.model, prefill(tiny.model, ids), 5)
    assert len(seconds) == 5 and after.past_key_values.get_seq_length() == 25
    for _ in range(5):
        ids = torch.cat((ids, tiny.model(ids).logits[:, -1:].argmax(-1)), 1)
    torch.testing.assert_close(after.logits[:, -1], tiny.model(ids).logits[:, -1], rtol=0, atol=1e-5)
    assert len(decode_work(tiny, tiny.model, True, 20, 0)() or []) == STEPS


def test_a_second_model_object_shares_the_weights_and_nothing_else(tiny: LoadedModel) -> None:
    clone, ids = sharing_weights(tiny.model), random_ids(tiny, 100, 0)
    pairs = zip(clone.parameters(), tiny.model.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    before = tiny.model(ids).logits
    with apply_scheme(clone, make_scheme("rerope", 32)):
        assert torch.equal(tiny.model(ids).logits, before)
        assert not torch.allclose(clone(ids).logits, before, atol=1e-4)


def test_random_weights_have_the_shape_and_follow_the_seed() -> None:
    assert parse_shape(TINY) == Shape(layers=2, width=32, heads=4, kv_heads=2, window=32, vocab=50)
    first, again, other = (
        bench_model(TINY, device="cpu", dtype="bfloat16", window=None, seed=seed).model for seed in (1, 1, 2)
    )
    assert first.dtype == torch.bfloat16 and first.config.max_position_embeddings == 32
    assert first.config.rope_parameters["rope_theta"] == 10000.0
    weight = [model.model.layers[1].mlp.up_proj.weight for model in (first, again, other)]
    assert torch.equal(weight[0], weight[1]) and not torch.equal(weight[0], weight[2])
    assert bench_model(TINY, device="cpu", dtype="float32", window=77, seed=0).window == 77


def test_schemes_are_text_or_objects() -> None:
    mine = replace(make_scheme("rerope", 32, N=8), spec="mine")
    bench = Bench.load(BenchSettings("prefill", [mine, "origin"], (40,), TINY, repeats=1, threads=1))
    list(bench.run())
    assert [row.scheme for row in bench.rows] == ["stock", "mine", "origin"]
    assert bench.result(True).settings["schemes"] == "mine,origin"
    # A process of its own would make the scheme again from its text, and this one has none that gives it.
    bench = Bench.load(BenchSettings("memory", mine, (40,), TINY, repeats=1, threads=1))
    del bench.schemes["stock"]
    with pytest.raises(ProbeError, match="schemes: mine has no text that gives it"):
        list(bench.run())


@pytest.mark.parametrize("name", PRESETS)
def test_the_text_of_every_preset_gives_it(name: str) -> None:
    scheme = make_scheme(name, 512)
    assert gives(scheme.spec, scheme, 512, 1500)
    other = parse_scheme(f"{name}+logn", 512)
    assert gives(other.spec, other, 512, 1500) and not gives(scheme.spec, other, 512, 1500)


BAD = [
    (("sleep",), "unknown benchmark 'sleep'; known: attention, prefill, decode, memory"),
    (("prefill", "--scheme", "nonsense"), "unknown scheme 'nonsense'"),
    (("prefill", "--lengths", "1,64"), "--lengths: expected numbers of at least 2 tokens, got 1"),
    (("prefill", "--lengths", "many"), "--lengths: expected numbers"),
    (("prefill", "--model", "random:layer=3"), "unknown key of --model random: 'layer'; known: layers, width"),
    (("prefill", "--model", "random:layers=two"), "layers: expected a whole number, got 'two'"),
    (("prefill", "--model", "random:width=30,heads=4"), "width: expected a multiple of 2*heads = 8, got 30"),
    (("prefill", "--model", "random:heads=4,kv_heads=3"), "kv_heads: expected a divisor of heads = 4, got 3"),
    (("prefill", "--model", "construction:3.3(M=6,N=2)"), "a construction has no cache to time"),
    (("prefill", "--backend", "dense", "--lengths", "9000"), "the backend dense takes at most 8192 tokens, got 9000"),
    (("prefill", "--repeats", "0"), "--repeats: expected at least 1, got 0"),
    (("prefill", "--dtype", "int4"), "unknown dtype 'int4'"),
    (("prefill", "--out", "/nowhere/at/all.json"), "there is no folder /nowhere/at"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    model = () if "--model" in arguments else ("--model", TINY)
    assert main(["bench", *arguments, *model, "--threads", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err and torch.get_num_threads() == threads


def test_the_command_prints_one_object_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    arguments = ("--model", TINY, "--lengths", "40", "--scheme", "stair(N=8,E=4)", "--repeats", "1", "--threads", "1")
    assert main(["bench", "prefill", *arguments, "--json", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(out.read_text()) and result["complete"]
    assert [row["scheme"] for row in result["rows"]] == ["stock", "stair(N=8,E=4)"]
    assert result["settings"]["schemes"] == "stair(N=8,E=4)" and result["settings"]["seed"] == 0


def test_pickled_weights_are_benched_only_where_that_is_asked_for(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    torch.save(load_file(tiny_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    call = ["bench", "memory", "--model", str(tmp_path), "--lengths", "16", "--scheme", "origin", "--threads", "1"]
    assert main([*call, "--repeats", "1"]) == 2 and "need --allow-pickle" in capsys.readouterr().err
    assert main([*call, "--repeats", "1", "--allow-pickle", "--json"]) == 0  # in processes of their own, too
    assert json.loads(capsys.readouterr().out)["settings"]["allow_pickle"]


def test_an_interrupt_keeps_the_finished_rows(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "probe", "bench", "prefill", "--model", TINY, "--scheme", "origin"]
    command += ["--lengths", "16,30000", "--threads", "1", "--repeats", "1", "--json", "--out", str(out)]
    # A suite started in the background ignores SIGINT, and its children would too.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listening
    ) as process:
        assert process.stderr is not None
        while "30000" not in process.stderr.readline():
            assert process.poll() is None
        while not out.exists():  # a kill that cannot be caught would leave this
            assert process.poll() is None
        assert [row["length"] for row in json.loads(out.read_text())["rows"]] == [16, 16]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "not all rows" in err
    result = json.loads(out)
    assert not result["complete"] and [row["length"] for row in result["rows"]] == [16, 16]


def test_out_of_memory_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench.load(BenchSettings("prefill", "origin", (40,), TINY, threads=1))

    def greedy(*_: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(bench, "_one_length", greedy)
    with pytest.raises(ProbeError, match="40 tokens do not fit the memory"):
        list(bench.run())
