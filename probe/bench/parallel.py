"""What chunk-parallel prefill would take on machines that are not at hand: a cost model, and its table.

    python -m probe.bench.parallel --shape llama-3-8b --lengths 131072,1048576,10485760 --ranks 1,2,4,8,16,32,64

Of every call it counts operations (as `probe.bench.roofline` does) at a rate, and of the exchange bytes at a bandwidth
and a latency per message. It leaves out what is small on long prompts (norms, the vocabulary head, the host), and takes
every device for as fast as the rate says, however few tokens it has: it is a lower bound, and says where sharing cannot
pay, not that it will. `--measure` takes the rate from a product of matrices on this machine, and bandwidth and latency
from gloo between two processes on it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from probe.bench.gpu import SHAPES
from probe.bench.roofline import cache_bytes, matrix_weights
from probe.errors import FieldError, unknown
from probe.models.random import PREFIX, Shape, parse_shape
from probe.schemes import Scheme, parse_scheme


@dataclass(frozen=True)
class Machine:
    """Of one process.

    Attributes:
        rate: floating-point operations per second.
        bandwidth: bytes per second that it sends, or receives, of a broadcast.
        latency: seconds of a message.
    """

    rate: float
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Foreseen:
    """Seconds of a prompt, and of what.

    Attributes:
        tokens: of the prompt.
        ranks: processes.
        first: chunk 0, which all read.
        middle: the largest share of the middle chunks.
        exchange: keys and values handed on.
        last: the last chunk, which all read.
    """

    tokens: int
    ranks: int
    first: float
    middle: float
    exchange: float
    last: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.first + self.middle + self.exchange + self.last


def foreseen(shape: Shape, scheme: Scheme, tokens: int, ranks: int, machine: Machine, size: int = 2) -> Foreseen:
    """What a prompt takes.

    Args:
        shape: of the model.
        scheme: one whose prompts are in chunks, as `mesa`.
        tokens: of the prompt, past the window.
        ranks: processes.
        machine: of each of them.
        size: bytes of a number.

    Raises:
        FieldError: a prompt with no middle chunks, which nobody can share.
    """
    borders = scheme.borders_at(tokens)
    if len(borders) < 2:
        raise FieldError("lengths", "a prompt with middle chunks, longer than the window", tokens)
    first, last = borders[0], borders[-1]
    chunks, width = len(borders) - 1, borders[1] - borders[0]
    per_token, per_pair = 2 * matrix_weights(shape), 4 * shape.width * shape.layers

    def took(count: int, pairs: int) -> float:
        return (per_token * count + per_pair * pairs) / machine.rate

    chunk = took(width, width * first + width * (width + 1) // 2)
    rest = tokens - last
    share = -(-chunks // ranks)
    handed = cache_bytes(shape, chunks * width, size) if ranks > 1 else 0
    return Foreseen(
        tokens, ranks, took(first, first * (first + 1) // 2), share * chunk,
        handed / machine.bandwidth + (ranks * machine.latency if ranks > 1 else 0.0),
        took(rest, rest * last + rest * (rest + 1) // 2),
    )  # fmt: skip


def table(shape: Shape, scheme: Scheme, lengths: list[int], counts: list[int], machine: Machine) -> list[str]:
    """Markdown: seconds, and how many times as fast as one process."""
    lines = [
        "| tokens | processes | seconds | times as fast | exchange | last chunk |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for tokens in lengths:
        alone = foreseen(shape, scheme, tokens, 1, machine).seconds
        for count in counts:
            one = foreseen(shape, scheme, tokens, count, machine)
            lines.append(
                f"| {tokens:,} | {count} | {one.seconds:.3g} | {alone / one.seconds:.1f} | "
                f"{one.exchange / one.seconds:.0%} | {one.last / one.seconds:.0%} |"
            )
    return lines


def _gloo() -> tuple[float, float]:
    """(bandwidth, latency) of a broadcast between two processes here."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        __spec__.name,
    ]
    done = subprocess.run([*command, "--pair"], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["bandwidth"], found["latency"]


def _pair() -> None:
    """In each of two processes: time broadcasts of one number and of many."""
    import torch
    from torch import distributed

    from probe.seam.parallel import joined

    def seconds(count: int, repeats: int) -> float:
        sent = torch.zeros(count)
        took = []
        for _ in range(repeats):
            distributed.barrier()
            began = time.perf_counter()
            distributed.broadcast(sent, 0)
            took.append(time.perf_counter() - began)
        return sorted(took)[repeats // 2]

    with joined() as ranks:
        latency, long = seconds(1, 50), seconds(1 << 25, 7)
        if ranks is not None and ranks.rank == 1:
            print(json.dumps({"latency": latency, "bandwidth": 4 * (1 << 25) / (long - latency)}), flush=True)


def _shape(name: str) -> Shape:
    if name.startswith(PREFIX):
        return parse_shape(name)
    if name not in SHAPES:
        raise unknown("shape", name, [*SHAPES, f"{PREFIX}layers=..."])
    return SHAPES[name]


def main() -> None:
    """The table of a shape and a machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3-8b", help=f"{', '.join(SHAPES)} or {PREFIX}layers=...")
    parser.add_argument("--scheme", default="mesa")
    parser.add_argument("--lengths", default="131072,1048576,10485760")
    parser.add_argument("--ranks", default="1,2,4,8,16,32,64")
    parser.add_argument("--rate", type=float, default=4e14, help="operations per second of a device (default: 4e14)")
    parser.add_argument("--bandwidth", type=float, default=4e11, help="bytes per second between them (default: 4e11)")
    parser.add_argument("--latency", type=float, default=2e-5, help="seconds of a message (default: 2e-5)")
    parser.add_argument("--measure", action="store_true", help="take the three from this machine, with gloo")
    parser.add_argument("--out", type=Path, help="write it there too")
    parser.add_argument("--pair", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pair:
        _pair()
        return
    shape = _shape(args.shape)
    machine = Machine(args.rate, args.bandwidth, args.latency)
    if args.measure:
        import torch

        from probe.bench.roofline import matrix_rate

        machine = Machine(matrix_rate(torch.device("cpu"), torch.float32, 2048, 5), *_gloo())
    lengths, counts = ([int(part) for part in text.split(",")] for text in (args.lengths, args.ranks))
    head = (
        f"{args.shape}, {args.scheme}, {machine.rate:.3g} FLOP/s, {machine.bandwidth:.3g} B/s, {machine.latency:.3g} s"
    )
    text = "\n".join([head, "", *table(shape, parse_scheme(args.scheme, shape.window), lengths, counts, machine), ""])
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
