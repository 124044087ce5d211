"""Time to first token, decoding speed and peak memory on one GPU, within a time budget.

    python -m probe.bench.gpu --out DIR [--minutes 9] [--schemes stock,mesa,...] [--smoke]

Llamas of the shapes of Llama-2-7B and Llama-3-8B with random bfloat16 weights (no download), each length and scheme once in
an ordered list, the most telling first. What would not fit the time or the memory is left out, and its row says so. Rows are appended to
DIR/gpu.jsonl as they come, so that a killed run keeps them; DIR/gpu.json holds them all at the end, with the machine, and
`python -m probe.bench.figure DIR/gpu.json DIR` draws them. `--smoke` is the same on tiny shapes, on CPU, in seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from probe.bench.memory import STOCK
from probe.bench.roofline import bandwidth, decode_bytes, matrix_rate, prefill_operations
from probe.bench.rss import PeakMemory
from probe.bench.timing import machine, synchronize
from probe.bench.work import decode, prefill
from probe.errors import ProbeError, exit_code, stoppable
from probe.models.load import pick_device
from probe.models.random import Shape, random_llama, sharing_weights
from probe.schemes import Scheme, parse_schemes
from probe.schemes.parse import split_specs
from probe.seam.apply import apply_scheme

SCHEMES = (
    STOCK, "mesa", "origin", "rerope", "stair", "self-extend", "leaky-rerope", "dynamic-ntk", "streaming-llm", "lm-infinite",
)  # fmt: skip
SHAPES = {
    "llama-2-7b": Shape(layers=32, width=4096, heads=32, window=4096, vocab=32000, mlp=11008),
    "llama-3-8b": Shape(
        layers=32, width=4096, heads=32, kv_heads=8, window=8192, vocab=128256, mlp=14336, rope=500000.0
    ),
}
TINY = Shape(layers=2, width=64, heads=4, kv_heads=2, window=32, vocab=97)
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
"""The stock model's kernels: flash, and never the T x T matrix that torch would fall back to."""
QUICK = 2.0
"""Seconds of a prefill below which it is repeated."""
LONGEST_ITEM = 180.0
"""Seconds after which a row is given up."""
K = 1024


@dataclass(frozen=True)
class Block:
    """A part of the work list: every scheme at the first length, then at the next."""

    shape: str
    schemes: tuple[str, ...]
    lengths: tuple[int, ...]


BLOCKS = (
    Block("llama-2-7b", SCHEMES, (4 * K, 8 * K, 16 * K)),
    Block("llama-3-8b", (STOCK, "mesa"), (8 * K, 32 * K, 128 * K)),
    Block("llama-3-8b", ("mesa",), (256 * K, 512 * K)),
    Block("llama-2-7b", SCHEMES, (32 * K, 64 * K, 128 * K)),
    Block("llama-3-8b", (STOCK,), (256 * K, 512 * K)),
)
"""The work list, most telling first: a run that is cut short should still have a figure to show."""


@dataclass(frozen=True)
class Item:
    """One row to be measured."""

    shape: str
    scheme: str
    length: int


class OutOfTimeError(Exception):
    """The time of a row is over."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` inside after so many seconds, at the next line of Python."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def work_list(blocks: Sequence[Block], schemes: Sequence[str]) -> list[Item]:
    """The items of the blocks in order, for the schemes that were asked for."""
    return [
        Item(block.shape, scheme, length)
        for block in blocks
        for length in block.lengths
        for scheme in schemes
        if scheme in block.schemes
    ]


def why_not(
    item: Item, taken: dict[Item, float], failed: dict[Item, str], left: float, longest: float = LONGEST_ITEM
) -> str | None:
    """Why an item is left out, from what shorter ones of its kind took; None to go on.

    Args:
        item: what would be next.
        taken: seconds of the finished items, everything included.
        failed: items that were not measured, with the reason.
        left: seconds left of the budget.
        longest: seconds that one item may take.
    """
    kin = [other for other in (*taken, *failed) if (other.shape, other.scheme) == (item.shape, item.scheme)]
    lost = [other for other in kin if other in failed and other.length <= item.length]
    if lost:
        return f"as {lost[0].length} tokens: {failed[lost[0]]}"
    if left <= 0:
        return "the time budget is spent"
    expected = expected_seconds(item.length, {other.length: taken[other] for other in kin if other in taken})
    allowed = min(left, longest)
    if expected is None or expected <= allowed:
        return None
    return f"expected to take {expected:.0f} s, {allowed:.0f} s allowed"


def expected_seconds(length: int, taken: dict[int, float]) -> float | None:
    """What a length will take, from the two longest that are shorter: a power of the length, at most its square.

    A little is added to the power that the two show, since attention's share grows. With one to go by it is the square; with
    none, None.
    """
    shorter = sorted(other for other in taken if other < length)
    if not shorter:
        return None
    last, power = shorter[-1], 2.0
    if len(shorter) > 1:
        grown = math.log(taken[last] / taken[shorter[-2]]) / math.log(last / shorter[-2])
        power = min(2.0, max(1.0, grown + 0.25))
    return taken[last] * math.pow(length / last, power)


class Log:
    """The rows: kept, and appended to a file at once."""

    def __init__(self, path: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self.path = path
        path.write_text("", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, on disk too.

        Raises:
            ValueError: a number in it is not finite; nothing is kept then.
        """
        line = json.dumps(row, allow_nan=False)
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Rates:
    """What the machine reaches: operations per second in a matrix product, bytes per second in a copy."""

    matrix: float
    bandwidth: float


class Runner:
    """Measures items, with one model on the device at a time."""

    def __init__(self, device: torch.device, dtype: torch.dtype, shapes: dict[str, Shape], rates: Rates) -> None:
        self.device, self.dtype, self.shapes, self.rates = device, dtype, shapes, rates
        self.at: str | None = None
        self.model: PreTrainedModel | None = None

    def load(self, name: str) -> PreTrainedModel:
        """The model of that shape, made on the device in place of the last one."""
        if self.model is None or self.at != name:
            self.model = None
            self.clean()
            self.model, self.at = random_llama(self.shapes[name], self.device, self.dtype, 0), name
        return self.model

    def clean(self) -> None:
        """Give memory back that nothing uses."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def ids(self, item: Item, length: int) -> torch.Tensor:
        """Random token ids on the device."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.shapes[item.shape].vocab, (1, length), generator=generator).to(self.device)

    @contextmanager
    def applied(self, item: Item) -> Iterator[tuple[PreTrainedModel, Scheme | None]]:
        """The model as the item wants it."""
        model = sharing_weights(self.load(item.shape))
        with ExitStack() as stack:
            if item.scheme == STOCK:
                stack.enter_context(sdpa_kernel(FUSED) if self.device.type == "cuda" else nullcontext())
                yield model, None
                return
            scheme = parse_schemes(item.scheme, self.shapes[item.shape].window)[0]
            stack.enter_context(apply_scheme(model, scheme))
            yield model, scheme

    def peak(self) -> Callable[[], int]:
        """Start counting memory; the function returned says the peak since, in bytes above now."""
        if self.device.type != "cuda":
            return PeakMemory().read
        self.clean()
        synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        return lambda: int(torch.cuda.max_memory_allocated(self.device)) - before

    def measure(self, item: Item) -> dict[str, Any]:
        """The row of one item."""
        with self.applied(item) as (model, scheme):
            decode(model, prefill(model, self.ids(item, min(item.length, 2 * K))), 2)  # kernels are chosen and loaded
            peak = self.peak()
            ids = self.ids(item, item.length)
            after, first = self.first_token(model, ids)
            seconds = [first]
            while first < QUICK and len(seconds) < 4:
                after = None  # its cache goes before another is made
                after, again = self.first_token(model, ids)
                seconds.append(again)
            after, steps = decode(model, after, 18)
            if not bool(torch.isfinite(after.logits).all()):
                raise ProbeError("the logits are NaN or infinite")
            row = self.row(item, scheme, seconds[1:] or seconds, steps[2:])
            del after
            return row | {"peak_bytes": peak()}

    def first_token(self, model: PreTrainedModel, ids: torch.Tensor) -> tuple[Any, float]:
        """The output, and the seconds from token ids on the device to the last position's logits, with the cache filled."""
        synchronize(self.device)
        began = time.perf_counter()
        after = prefill(model, ids)
        synchronize(self.device)
        return after, time.perf_counter() - began

    def row(self, item: Item, scheme: Scheme | None, seconds: list[float], steps: list[float]) -> dict[str, Any]:
        """Medians, and the share of the machine's rates that they come to."""
        shape, first, step = self.shapes[item.shape], statistics.median(seconds), statistics.median(steps)
        operations = prefill_operations(shape, scheme, item.length)
        read = decode_bytes(shape, scheme, item.length + len(steps), item.length, self.dtype.itemsize)
        return {
            "kind": "speed", "model": item.shape, "scheme": item.scheme, "length": item.length,
            "prefill_seconds": first, "repeats": len(seconds), "fastest": min(seconds), "slowest": max(seconds),
            "decode_seconds": step, "tokens_per_second": 1 / step, "steps": len(steps), "operations": operations, "bytes_per_step": read,
            "matrix_share": operations / first / self.rates.matrix, "bandwidth_share": read / step / self.rates.bandwidth,
        }  # fmt: skip


def _reason(error: Exception) -> str:
    """Why a row failed, short."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = (str(error).strip() or "no message").splitlines()[0][:300]
    return first if isinstance(error, OutOfTimeError | ProbeError) else f"{type(error).__name__}: {first}"


def run_items(runner: Runner, items: Sequence[Item], log: Log, deadline: float) -> None:
    """Measure what the budget allows, in order; what is left out gets a row with the reason."""
    taken: dict[Item, float] = {}
    failed: dict[Item, str] = {}
    for item in items:
        began = time.monotonic()
        reason = why_not(item, taken, failed, deadline - began)
        if reason is None:
            try:
                with time_limit(min(deadline - began, LONGEST_ITEM)):
                    row = runner.measure(item)
                taken[item] = time.monotonic() - began
                log.add(row | {"wall_seconds": taken[item]})
                continue
            except Exception as error:  # whatever a kernel throws: one row must not take the others along
                reason = _reason(error)
        failed[item] = reason
        log.add({"kind": "speed", "model": item.shape, "scheme": item.scheme, "length": item.length, "skipped": reason})
        runner.clean()


def agreement(device: torch.device, scheme: str) -> dict[str, Any]:
    """How far the fast backend is from the dense reference on this device: float32 logits of a tiny model, four windows long."""
    model = random_llama(TINY, device, torch.float32, 1)
    ids = torch.randint(TINY.vocab, (1, 4 * TINY.window), generator=torch.Generator().manual_seed(1)).to(device)

    def logits(backend: str | None) -> torch.Tensor:
        woven = sharing_weights(model)
        with torch.no_grad(), ExitStack() as stack:
            if backend is not None:
                stack.enter_context(apply_scheme(woven, parse_schemes(scheme, TINY.window)[0], backend=backend))
            result: torch.Tensor = woven(ids, use_cache=False).logits
            return result

    reference = logits("dense" if scheme not in (STOCK, "origin") else None)
    difference = (logits("pieces" if scheme != STOCK else None) - reference).abs().max().item()
    return {
        "kind": "check",
        "scheme": scheme,
        "largest_difference": difference,
        "largest": reference.abs().max().item(),
    }


def check_all(device: torch.device, schemes: Sequence[str], log: Log) -> None:
    """A row per scheme on whether the fast backend is right on this device; `origin` is compared with the stock model."""
    for scheme in schemes:
        if scheme == STOCK:
            continue
        try:
            log.add(agreement(device, scheme))
        except Exception as error:
            log.add({"kind": "check", "scheme": scheme, "skipped": _reason(error)})


def measure_rates(device: torch.device, dtype: torch.dtype, smoke: bool, log: Log) -> Rates:
    """The machine's own rates, as a row."""
    rates = Rates(matrix_rate(device, dtype, 128 if smoke else 8192), bandwidth(device, 1 << (20 if smoke else 32)))
    log.add({"kind": "rates", "dtype": str(dtype).removeprefix("torch."), **asdict(rates)})
    return rates


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with times as multiples of the stock model's of the same shape and length where both were measured."""
    stock = {(row["model"], row["length"]): row for row in rows if row.get("scheme") == STOCK and "skipped" not in row}
    made = []
    for row in rows:
        base = stock.get((row.get("model"), row.get("length")))
        ratios = {}
        if base and "prefill_seconds" in row:
            ratios = {
                f"{what}_ratio": row[f"{what}_seconds"] / base[f"{what}_seconds"] for what in ("prefill", "decode")
            }
        made.append(row | ratios)
    return made


def environment() -> dict[str, Any]:
    """As a run folder has it; the versions alone on a machine without its file formats."""
    try:
        from probe.provenance import environment as whole
    except ModuleNotFoundError as error:
        names = ("torch", "transformers", "numpy")
        return {
            "versions": {name: metadata.version(name) for name in names},
            "git_commit": None,
            "without": error.name,
        }
    return whole()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m probe.bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results (default: $OUT, else bench-gpu)"
    )
    parser.add_argument("--minutes", type=float, default=9, help="time budget, everything included (default: 9)")
    parser.add_argument("--schemes", help=f"in this order (default: {','.join(SCHEMES)})")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes and lengths, to see that it runs")
    return parser


def _schemes(text: str | None) -> tuple[str, ...]:
    """The schemes asked for.

    Raises:
        ProbeError: one is unknown.
    """
    if text is None:
        return SCHEMES
    specs = tuple(dict.fromkeys(split_specs(text)))
    for spec in specs:
        if spec != STOCK:
            parse_schemes(spec, TINY.window)
    if not specs:
        raise ProbeError("--schemes: expected at least one, got none")
    return specs


def _plan(smoke: bool, schemes: tuple[str, ...]) -> tuple[dict[str, Shape], list[Item]]:
    """Shapes and work list; a scheme outside the defaults is measured wherever most are."""
    blocks = [Block(block.shape, schemes, block.lengths) if block.schemes == SCHEMES else block for block in BLOCKS]
    if not smoke:
        return SHAPES, work_list(blocks, schemes)
    small = [Block(block.shape, block.schemes, (64, 128)) for block in blocks[:2]]
    return dict.fromkeys(SHAPES, TINY), work_list(small, schemes)


def run(args: argparse.Namespace, began: float) -> None:
    """Everything: rates, checks, the work list, and the whole result at the end.

    Raises:
        ProbeError: bad settings, or no GPU.
    """
    schemes, device = _schemes(args.schemes), pick_device("cpu" if args.smoke else args.device)
    if device.type != "cuda" and not args.smoke:
        raise ProbeError("expected a CUDA device, found none; --smoke runs the same on CPU with tiny shapes")
    if not args.minutes > 0:
        raise ProbeError(f"--minutes: expected more than 0, got {args.minutes}")
    out = args.out or Path(os.environ.get("OUT", "bench-gpu"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        log = Log(out / "gpu.jsonl")
    except OSError as error:
        raise ProbeError(f"--out {out}: cannot write there ({error.strerror})") from None
    dtype = torch.float32 if args.smoke else torch.bfloat16
    shapes, items = _plan(args.smoke, schemes)
    about, complete = machine(device), False
    try:
        rates = measure_rates(device, dtype, args.smoke, log)
        check_all(device, schemes, log)
        run_items(Runner(device, dtype, shapes, rates), items, log, began + 60 * args.minutes - 10)
        complete = True
    finally:
        result = {
            "bench": "gpu", "complete": complete, "seed": 0, "machine": about, "environment": environment(),
            "settings": {
                "minutes": args.minutes, "schemes": schemes, "smoke": args.smoke, "dtype": str(dtype).removeprefix("torch."),
                "shapes": {name: asdict(shape) for name, shape in shapes.items()},
            },
            "rows": with_ratios(log.rows),
        }  # fmt: skip
        (out / "gpu.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(out / "gpu.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    began = time.monotonic()
    args = _parser().parse_args(argv)
    with stoppable():  # a polite kill still writes the whole result
        return exit_code(lambda: run(args, began))


if __name__ == "__main__":
    raise SystemExit(main())
