"""Peak memory: a known allocation is seen, whatever came before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from probe.bench import rss
from probe.bench.memory import MemoryRequest, fresh_process
from probe.bench.rows import bench_row
from probe.bench.run import Bench, BenchSettings
from probe.errors import ProbeError

MODEL = "random:layers=2,width=64,heads=4,window=32,vocab=50"
ALLOCATE = """
import json, sys
from importlib import util
spec = util.spec_from_file_location("rss", sys.argv[1])
rss = util.module_from_spec(spec); spec.loader.exec_module(rss)
def held(megabytes):
    return b"x" * (megabytes * 1_000_000)
large = held(int(sys.argv[2])); del large
memory = rss.PeakMemory()
block = held(64); seen = memory.read(); del block
print(json.dumps({"seen": seen, "after": memory.read(), "method": memory.method}))
"""


def allocate(before: int) -> dict:
    command = [sys.executable, "-c", ALLOCATE, rss.__file__, str(before)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


def test_a_block_of_64_megabytes_is_seen_and_not_forgotten() -> None:
    result = allocate(1)
    assert result["seen"] == pytest.approx(64e6, rel=0.1)
    assert result["after"] == pytest.approx(64e6, rel=0.1)


def test_what_was_freed_before_does_not_hide_it() -> None:
    result = allocate(300)
    if result["method"] != "VmHWM":
        pytest.skip("this kernel does not let the high-water mark be reset")
    assert result["seen"] == pytest.approx(64e6, rel=0.1)


def test_a_memory_row_holds_the_cache_and_its_ratio_is_of_bytes() -> None:
    length = 6000
    bench = Bench.load(BenchSettings("memory", "origin", (length,), MODEL, repeats=2, threads=1))
    del bench.schemes["stock"]  # every repeat is a process: two are enough
    list(bench.run())
    (origin,) = bench.rows
    cache = 2 * 2 * length * 64 * 4  # keys and values, layers, tokens, width, float32
    assert origin.seconds is None and cache < origin.peak_bytes < 20 * cache
    assert bench.machine["peak_method"] in ("VmHWM", "ru_maxrss")
    assert origin.repeats == 2 and origin.least_bytes <= origin.peak_bytes <= origin.most_bytes
    stock = bench_row("memory", "stock", length, None, [origin.peak_bytes // 2], None)
    assert stock.ratio == 1
    assert bench_row("memory", "origin", length, None, [300], stock).ratio == 300 / stock.peak_bytes


def test_a_row_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho first >&2\necho no such model >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    with pytest.raises(ProbeError, match=r"memory of stock at 40 tokens: no such model"):
        fresh_process(MemoryRequest("memory", "stock", 40, MODEL))
