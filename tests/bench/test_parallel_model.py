"""The cost model of chunk-parallel prefill against counts that know nothing of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from probe.bench.parallel import Machine, foreseen, table
from probe.bench.roofline import cache_bytes, prefill_operations
from probe.errors import ProbeError
from probe.models.random import Shape
from probe.schemes import parse_scheme

SHAPE = Shape(layers=3, width=64, heads=4, kv_heads=2, window=128, vocab=100)
MACHINE = Machine(1e9, 1e6, 1e-3)
MESA = parse_scheme("mesa", SHAPE.window)


@pytest.mark.parametrize("tokens", [300, 1000, 5000])
def test_one_process_does_all_the_operations(tokens: int) -> None:
    alone = foreseen(SHAPE, MESA, tokens, 1, MACHINE)
    head = 2 * SHAPE.width * SHAPE.vocab
    assert alone.seconds * MACHINE.rate == pytest.approx(prefill_operations(SHAPE, MESA, tokens) - head, rel=1e-9)
    assert alone.exchange == 0


def test_shares_shrink_and_what_all_do_stays() -> None:
    alone, four = (foreseen(SHAPE, MESA, 5000, ranks, MACHINE) for ranks in (1, 4))
    chunks = len(MESA.borders_at(5000)) - 1
    assert four.middle == pytest.approx(alone.middle * -(-chunks // 4) / chunks)
    assert (four.first, four.last) == (alone.first, alone.last)
    borders = MESA.borders_at(5000)
    assert four.exchange == pytest.approx(cache_bytes(SHAPE, borders[-1] - borders[0], 2) / 1e6 + 4e-3)
    more = foreseen(SHAPE, MESA, 5000, 10 * chunks, MACHINE)
    assert more.middle == pytest.approx(alone.middle / chunks)  # no chunk is cut


def test_a_slow_network_never_pays_and_a_fast_one_does() -> None:
    slow, fast = Machine(1e12, 1e3, 1.0), Machine(1e9, 1e12, 1e-9)
    assert foreseen(SHAPE, MESA, 5000, 4, slow).seconds > foreseen(SHAPE, MESA, 5000, 1, slow).seconds
    assert foreseen(SHAPE, MESA, 5000, 4, fast).seconds < foreseen(SHAPE, MESA, 5000, 1, fast).seconds
    assert len(table(SHAPE, MESA, [300, 5000], [1, 2], fast)) == 6


def test_a_prompt_that_nobody_can_share_is_refused() -> None:
    for spec, tokens in (("mesa", 100), ("rerope", 5000)):
        with pytest.raises(ProbeError, match="a prompt with middle chunks"):
            foreseen(SHAPE, parse_scheme(spec, SHAPE.window), tokens, 2, MACHINE)


def test_the_table_of_this_machine() -> None:
    """Constants measured with gloo between two processes."""
    command = [sys.executable, "-m", "probe.bench.parallel", "--shape", "random:layers=2,width=64,heads=4,window=128"]
    done = subprocess.run(
        [*command, "--lengths", "4096", "--ranks", "1,2", "--measure"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.count("| 4,096 |") == 2 and "FLOP/s" in done.stdout
