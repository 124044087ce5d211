"""Processes that share a prompt's chunks, really started by torchrun, end with what one process has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import ProbeError
from probe.seam.cache import BufferedLayer
from probe.seam.parallel import joined, shares
from tests.seam.parallel_case import results

CASE = Path(__file__).with_name("parallel_case.py")


def torchrun(count: int, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *command],
        capture_output=True, text=True, timeout=300, check=False, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 3])
def test_shared_prompts_are_those_of_one_process(tmp_path: Path, count: int) -> None:
    """In float64: logits, cached keys of the last layer and greedy tokens, on every process."""
    done = torchrun(count, str(CASE), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    alone = results(None)
    for rank in range(count):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert bool(shared.pop("refused")) and set(shared) == set(alone)
        for name, value in alone.items():
            torch.testing.assert_close(shared[name], value, atol=1e-10, rtol=0, msg=f"{name} on {rank}")


@given(st.lists(st.integers(0, 9999), min_size=2, max_size=40, unique=True), st.integers(1, 12))
def test_shares_are_whole_chunks_and_all_of_them(borders: list[int], count: int) -> None:
    borders.sort()
    dealt = shares(borders, count)
    assert len(dealt) == count and dealt[0][0] == borders[0] and dealt[-1][1] == borders[-1]
    assert all(a[1] == b[0] for a, b in pairwise(dealt))
    assert {edge for share in dealt for edge in share} <= set(borders)
    sizes = [sum(start <= border < stop for border in borders) for start, stop in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_room_behind_keys_is_zeros_and_nothing_before_it_moves() -> None:
    layer = BufferedLayer(expected=6)
    with pytest.raises(ProbeError, match="expected some keys before room is made"):
        layer.widen(4)
    keys = torch.randn(1, 2, 3, 4)
    layer.update(keys, keys + 1)
    layer.widen(2)
    assert layer.get_seq_length() == 3
    layer.widen(2000)
    assert layer.get_seq_length() == 2000 and not bool(layer.keys[:, :, 3:].any())
    torch.testing.assert_close(layer.keys[:, :, :3], keys)
    torch.testing.assert_close(layer.values[:, :, :3], keys + 1)


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ProbeError, match="the processes did not find each other"), joined():
        pass


def test_the_command_under_torchrun_says_it_once(tmp_path: Path) -> None:
    command = [
        "-m",
        "probe",
        "generate",
        "--input",
        "heldout",
        "--length",
        "1500",
        "--scheme",
        "mesa",
        "--new",
        "5",
        "--quiet",
    ]
    alone = subprocess.run(
        [sys.executable, *command, "--json"], capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path
    )
    shared = torchrun(2, *command, "--json", cwd=tmp_path)
    assert shared.returncode == 0, shared.stderr[-2000:]
    one, two = json.loads(alone.stdout), json.loads(shared.stdout)
    assert one["rows"][0]["text"] == two["rows"][0]["text"]
    assert (one["settings"]["processes"], two["settings"]["processes"]) == (1, 2)
