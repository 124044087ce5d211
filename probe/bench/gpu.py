"""Time to first token, decoding speed and peak memory on one GPU, within a time budget.

Llamas of the shapes of Llama-2-7B and Llama-3-8B with random bfloat16 weights (no download), each length and scheme
once in an ordered list, the most telling first. What would not fit the time or the memory is left out, and its row says
so. Rows are appended to `gpu.jsonl` in the folder as they come, so that a killed run keeps them; `gpu.json` holds them
all, with the machine. `smoke` is the same on tiny shapes, on CPU, in seconds.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from probe.bench.memory import STOCK
from probe.bench.roofline import bandwidth, decode_bytes, matrix_rate, prefill_operations
from probe.bench.rows import CheckRow, GpuRow, RatesRow, SpeedRow
from probe.bench.rss import PeakMemory, load_average
from probe.bench.timing import machine, synchronize
from probe.bench.work import decode, prefill
from probe.errors import FieldError, ProbeError
from probe.models.load import pick_device
from probe.models.random import Shape, random_llama, sharing_weights
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, parse_scheme
from probe.schemes.parse import split_specs
from probe.seam.apply import apply_scheme

SCHEMES = (
    STOCK, "mesa", "origin", "rerope", "stair", "self-extend", "leaky-rerope", "dynamic-ntk", "streaming-llm",
    "lm-infinite",
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

    A little is added to the power that the two show, since attention's share grows. With one to go by it is the square;
    with none, None.
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
        self.rows: list[GpuRow] = []
        self.path = path
        path.write_text("", encoding="utf-8")

    def add(self, row: GpuRow) -> str:
        """Keep a row, on disk too; returns it as a line.

        Raises:
            ValueError: a number in it is not finite; nothing is kept then.
        """
        line = json.dumps(asdict(row), allow_nan=False)
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        return line


class Runner:
    """Measures items, with one model on the device at a time."""

    def __init__(self, device: torch.device, dtype: torch.dtype, shapes: dict[str, Shape], rates: RatesRow) -> None:
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
            scheme = parse_scheme(item.scheme, self.shapes[item.shape].window)
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

    def measure(self, item: Item) -> SpeedRow:
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
            return replace(row, peak_bytes=peak())

    def first_token(self, model: PreTrainedModel, ids: torch.Tensor) -> tuple[Any, float]:
        """The output, and the seconds from ids on the device to the last position's logits, with the cache filled."""
        synchronize(self.device)
        began = time.perf_counter()
        after = prefill(model, ids)
        synchronize(self.device)
        return after, time.perf_counter() - began

    def row(self, item: Item, scheme: Scheme | None, seconds: list[float], steps: list[float]) -> SpeedRow:
        """Medians, and the share of the machine's rates that they come to."""
        shape, first, step = self.shapes[item.shape], statistics.median(seconds), statistics.median(steps)
        operations = prefill_operations(shape, scheme, item.length)
        read = decode_bytes(shape, scheme, item.length + len(steps), item.length, self.dtype.itemsize)
        return SpeedRow(
            model=item.shape, scheme=item.scheme, length=item.length,
            prefill_seconds=first, repeats=len(seconds), fastest=min(seconds), slowest=max(seconds),
            decode_seconds=step, tokens_per_second=1 / step, steps=len(steps),
            operations=operations, bytes_per_step=read,
            matrix_share=operations / first / self.rates.matrix, bandwidth_share=read / step / self.rates.bandwidth,
        )  # fmt: skip


def _reason(error: Exception) -> str:
    """Why a row failed, short."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = (str(error).strip() or "no message").splitlines()[0][:300]
    return first if isinstance(error, OutOfTimeError | ProbeError) else f"{type(error).__name__}: {first}"


def run_items(runner: Runner, items: Sequence[Item], log: Log, deadline: float) -> Iterator[str]:
    """Measure what the budget allows, in order; what is left out gets a row that says why. Yields every row's line."""
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
                line = log.add(replace(row, wall_seconds=taken[item]))
            except Exception as error:  # whatever a kernel throws: one row must not take the others along
                reason = _reason(error)
        if reason is not None:
            taken.pop(item, None)
            failed[item] = reason
            line = log.add(SpeedRow(model=item.shape, scheme=item.scheme, length=item.length, skipped=reason))
            runner.clean()
        yield line


def agreement(device: torch.device, scheme: str) -> CheckRow:
    """How far the fast backend is from the dense reference on this device: float32 logits of a tiny model.

    The input is four windows long; `origin` is compared with the stock model.
    """
    model = random_llama(TINY, device, torch.float32, 1)
    ids = torch.randint(TINY.vocab, (1, 4 * TINY.window), generator=torch.Generator().manual_seed(1)).to(device)

    def logits(backend: str | None) -> torch.Tensor:
        woven = sharing_weights(model)
        with torch.no_grad(), ExitStack() as stack:
            if backend is not None:
                stack.enter_context(apply_scheme(woven, parse_scheme(scheme, TINY.window), backend=backend))
            result: torch.Tensor = woven(ids, use_cache=False).logits
            return result

    reference = logits("dense" if scheme not in (STOCK, ORIGIN) else None)
    difference = (logits("pieces" if scheme != STOCK else None) - reference).abs().max().item()
    return CheckRow(scheme=scheme, largest_difference=difference, largest=reference.abs().max().item())


def check_all(device: torch.device, schemes: Sequence[str], log: Log) -> Iterator[str]:
    """A row per scheme on whether the fast backend is right on this device. Yields every row's line."""
    for scheme in schemes:
        if scheme == STOCK:
            continue
        try:
            line = log.add(agreement(device, scheme))
        except Exception as error:
            line = log.add(CheckRow(scheme=scheme, skipped=_reason(error)))
        yield line


def measure_rates(device: torch.device, dtype: torch.dtype, smoke: bool) -> RatesRow:
    """The machine's own rates."""
    size, copied = (128, 1 << 20) if smoke else (8192, 1 << 32)
    return RatesRow(dtype=_name(dtype), matrix=matrix_rate(device, dtype, size), bandwidth=bandwidth(device, copied))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def with_ratios(rows: Sequence[GpuRow]) -> list[GpuRow]:
    """The rows, with times as multiples of the stock model's of the same shape and length where both were measured."""
    speeds = [row for row in rows if isinstance(row, SpeedRow) and row.skipped is None]
    stock = {(row.model, row.length): row for row in speeds if row.scheme == STOCK}

    def ratio(seconds: float | None, base: float | None) -> float | None:
        return seconds / base if seconds is not None and base else None

    made: list[GpuRow] = []
    for row in rows:
        base = stock.get((row.model, row.length)) if isinstance(row, SpeedRow) else None
        if isinstance(row, SpeedRow) and base is not None:
            row = replace(
                row,
                prefill_ratio=ratio(row.prefill_seconds, base.prefill_seconds),
                decode_ratio=ratio(row.decode_seconds, base.decode_seconds),
            )
        made.append(row)
    return made


@dataclass(frozen=True)
class GpuSettings:
    """What is measured, where to, and for how long.

    Attributes:
        out: folder for `gpu.jsonl` and `gpu.json`; it is made.
        minutes: time budget, everything included.
        schemes: as text, in this order, `stock` among them; None is `SCHEMES`.
        device: as `load_model` takes it.
        smoke: tiny shapes and lengths, on CPU.

    Raises:
        ProbeError: no time, or a scheme that there is not.
    """

    out: Path
    minutes: float = 9
    schemes: str | None = None
    device: str = "auto"
    smoke: bool = False

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise FieldError("minutes", "more than 0", self.minutes)
        for spec in self.named():
            if spec != STOCK:
                parse_scheme(spec, TINY.window)

    def named(self) -> tuple[str, ...]:
        """The schemes, each once."""
        return SCHEMES if self.schemes is None else tuple(dict.fromkeys(split_specs(self.schemes)))


def _plan(smoke: bool, schemes: tuple[str, ...]) -> tuple[dict[str, Shape], list[Item]]:
    """Shapes and work list; a scheme outside the defaults is measured wherever most are."""
    blocks = [Block(block.shape, schemes, block.lengths) if block.schemes == SCHEMES else block for block in BLOCKS]
    if not smoke:
        return SHAPES, work_list(blocks, schemes)
    small = [Block(block.shape, block.schemes, (64, 128)) for block in blocks[:2]]
    return dict.fromkeys(SHAPES, TINY), work_list(small, schemes)


class GpuBench:
    """The whole of it under way: rates, checks, the work list.

    Args:
        settings: what was chosen.
        began: when the time budget began, as `time.monotonic` says it.

    Raises:
        ProbeError: no GPU, or nothing can be written to the folder.
    """

    def __init__(self, settings: GpuSettings, began: float) -> None:
        self.settings = settings
        self.deadline = began + 60 * settings.minutes - 10
        self.device = pick_device("cpu" if settings.smoke else settings.device)
        if self.device.type != "cuda" and not settings.smoke:
            raise FieldError(
                "device", hint="expected a CUDA device, found none; {smoke} runs the same on CPU with tiny shapes"
            )
        try:
            settings.out.mkdir(parents=True, exist_ok=True)
            self.log = Log(settings.out / "gpu.jsonl")
        except OSError as error:
            raise FieldError("out", hint=f"cannot write there ({error.strerror})", value=settings.out) from None
        self.dtype = torch.float32 if settings.smoke else torch.bfloat16
        self.shapes, self.items = _plan(settings.smoke, settings.named())
        self.machine = machine(self.device)

    @property
    def rows(self) -> list[GpuRow]:
        """Those that are done."""
        return self.log.rows

    def run(self) -> Iterator[str]:
        """Measure what the time allows; yields every row's line."""
        rates = measure_rates(self.device, self.dtype, self.settings.smoke)
        yield self.log.add(rates)
        yield from check_all(self.device, self.settings.named(), self.log)
        runner = Runner(self.device, self.dtype, self.shapes, rates)
        yield from run_items(runner, self.items, self.log, self.deadline)
        self.machine["load_after"] = load_average()

    def result(self, complete: bool) -> Result[GpuRow]:
        """The rows so far, with what they were made with."""
        chosen = {
            "what": "gpu", "minutes": self.settings.minutes, "schemes": ",".join(self.settings.named()),
            "smoke": self.settings.smoke, "dtype": _name(self.dtype), "seed": 0,
            "shapes": {name: asdict(shape) for name, shape in self.shapes.items()},
        }  # fmt: skip
        return Result("bench", chosen, Provenance.now(**self.machine), Records(with_ratios(self.rows)), complete)
