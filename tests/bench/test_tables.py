"""Results as Markdown and as SVG."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from probe.bench import tables
from probe.bench.growth import growths
from probe.commands.main import main

ROWS = [
    {"what": "prefill", "scheme": "stock", "length": 4096, "seconds": 2.4567, "fastest": 2.4, "slowest": 2.52,
     "repeats": 5, "peak_bytes": None, "ratio": 1.0},
    {"what": "prefill", "scheme": "rerope", "length": 4096, "seconds": 0.01234, "fastest": 0.012, "slowest": 0.013,
     "repeats": 5, "peak_bytes": 1_180_000_000, "ratio": 0.005},
]  # fmt: skip
RESULT = {
    "kind": "bench", "complete": True, "rows": ROWS,
    "settings": {"model": "rope", "window": 512, "seed": 0, "dtype": "float32"},
    "provenance": {
        "machine": {"cpu": "A CPU", "device": "cpu", "cores": 2, "threads": 1, "load_before": 0.5},
        "versions": {"torch": "2.13", "transformers": "5.1"},
    },
}  # fmt: skip
GPU = {
    "kind": "bench", "complete": True, "settings": {}, "provenance": {},
    "rows": [
        {"kind": "rates", "dtype": "bfloat16", "matrix": 7.88e14, "bandwidth": 4.3e12},
        {"kind": "check", "scheme": "origin", "largest_difference": 2.4e-7, "largest": 0.6},
        *(
            {"kind": "speed", "model": "llama", "scheme": scheme, "length": length,
             "prefill_seconds": length / 1e4 * cost, "decode_seconds": 0.02, "tokens_per_second": 50.0,
             "peak_bytes": 1000 * length, "matrix_share": 0.5}
            for scheme, cost in (("stock", 1.0), ("rerope", 2.0)) for length in (4096, 8192)
        ),
        {"kind": "speed", "model": "llama", "scheme": "origin", "length": 8192, "skipped": "out of memory"},
    ]
}  # fmt: skip


def test_a_result_is_a_caption_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT))
    assert main(["tables", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rope, window 512, float32, A CPU, 1 of 2 cores, torch 2.13, transformers 5.1, load 0.5, seed 0"
    assert lines[2] == "| measured | tokens | scheme | time | largest/least | peak memory | of stock |"
    assert lines[3] == "| --- | ---: | --- | ---: | --- | ---: | ---: |"
    assert lines[4] == "| prefill | 4096 | stock | 2.46 s | 1.05 in 5 |  | 1.00 |"
    assert lines[5] == "| prefill | 4096 | rerope | 12.3 ms | 1.08 in 5 | 1.18 GB | 0.01 |"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON file"),
        ("[]", "expected a JSON object"),
        ('{"rows": []}', 'expected a result with "kind", "settings", "provenance" and "rows"'),
        (json.dumps(RESULT | {"rows": []}), 'expected a benchmark result with "rows", got none'),
        (
            json.dumps(RESULT | {"kind": "soup"}),
            "unknown kind of result 'soup'; known: audit, bench, causes, eval, frequencies, leads, patch, peers, "
            "positional, precision, scan, study, tune",
        ),
    ],
)
def test_what_is_no_result_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(text)
    assert main(["tables", str(tmp_path / "x.json")]) == 2
    err = capsys.readouterr().err
    assert message in err and str(tmp_path / "x.json") in err and err.count("\n") == 1
    assert main(["bench", "figure", str(tmp_path / "x.json"), str(tmp_path)]) == 2


def test_gpu_rows_are_a_table_for_each_kind_and_model() -> None:
    text = tables.markdown(GPU)
    assert "788 TFLOP/s" in text and "4.3 TB/s" in text and "| origin | 2.4e-07 | 0.6 |" in text
    assert "| 8192 | origin |" in text and "| out of memory |" in text and "**llama**" in text
    assert text.index("| 4096 | rerope") < text.index("| 8192 | stock")


def test_the_figure_has_a_line_per_scheme_and_panel(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(GPU))
    assert main(["bench", "figure", str(tmp_path / "gpu.json"), str(tmp_path / "figures")]) == 0
    root = ET.parse(tmp_path / "figures" / "llama.svg").getroot()
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * 3  # stock and rerope, three panels; what was left out draws nothing
    first, second = ([tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in lines[:2])
    assert all(x > 0 and 0 < y < 400 for x, y in first + second)
    # Logarithmic: twice the time is the same way up everywhere, and more is higher.
    steps = {round(a[1] - b[1], 1) for a, b in zip(first, second, strict=True)}
    assert min(steps) > 0 and max(steps) - min(steps) < 0.15  # written to a tenth


def test_growth_is_the_exponent_of_a_power_law() -> None:
    """Made of known exponents; the interval of noisy ones holds the truth."""
    rng = np.random.default_rng(0)
    lengths = [1024 * 2**n for n in range(6)]
    rows = [
        {
            "what": "prefill",
            "scheme": scheme,
            "length": length,
            "seconds": 1e-6 * length**power * noise,
            "peak_bytes": None,
        }
        for scheme, power, wobble in (("a", 2.0, 0.0), ("b", 1.0, 0.1))
        for length in lengths
        for noise in [float(np.exp(wobble * rng.standard_normal()))]
    ] + [
        {"what": "memory", "scheme": "a", "length": length, "seconds": None, "peak_bytes": 7 * length}
        for length in lengths
    ]
    found = {(one.what, one.scheme): one for one in growths(rows)}
    assert found["prefill time", "a"].exponent == pytest.approx(2) and found["memory", "a"].exponent == pytest.approx(1)
    noisy = found["prefill time", "b"]
    assert noisy.low < 1 < noisy.high and noisy.high - noisy.low < 0.5
    assert (noisy.shortest, noisy.longest) == (1024, 32768)
    assert growths(rows[:2]) == [] and tables.growth_table(rows[:2]) == ""
    assert "| prefill time | a | 1024 to 32768 | 2.00 (2.00 to 2.00) |" in tables.growth_table(rows)
