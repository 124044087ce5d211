"""What benchmarks find: a row per scheme and length, each kind a frozen dataclass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Literal

from probe.bench.timing import Timing


@dataclass(frozen=True)
class BenchRow:
    """Time or memory of one scheme at one length.

    Attributes:
        what: the benchmark: "prefill".
        scheme: "stock" is the model as transformers runs it.
        length: tokens.
        seconds: median over the repeats; None where no time was taken.
        fastest: least of the repeats, seconds.
        slowest: most of the repeats, seconds.
        repeats: how many.
        peak_bytes: median over the repeats, above the loaded model; None where memory was not measured.
        least_bytes: least of the repeats.
        most_bytes: most of the repeats.
        ratio: to the stock row of the same length: of seconds, or of peak bytes where no time was taken.
    """

    what: str
    scheme: str
    length: int
    seconds: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    repeats: int = 0
    peak_bytes: int | None = None
    least_bytes: int | None = None
    most_bytes: int | None = None
    ratio: float | None = None

    @property
    def measured(self) -> float | None:
        """What the ratio is of."""
        return self.peak_bytes if self.seconds is None else self.seconds

    @property
    def timing(self) -> Timing | None:
        """The seconds, where time was taken."""
        if self.seconds is None or self.fastest is None or self.slowest is None:
            return None
        return Timing(self.seconds, self.fastest, self.slowest, self.repeats)


def bench_row(
    what: str, scheme: str, length: int, timing: Timing | None, peaks: list[int], stock: BenchRow | None
) -> BenchRow:
    """One row; `stock` is the stock model's row at this length, None while making that one."""
    seconds = asdict(timing) if timing else {"repeats": len(peaks)}
    memory = {"peak_bytes": int(median(peaks)), "least_bytes": min(peaks), "most_bytes": max(peaks)} if peaks else {}
    row = BenchRow(what, scheme, length, **seconds, **memory)
    own, below = row.measured, (stock or row).measured
    return replace(row, ratio=own / below if own is not None and below else None)


def warnings(rows: Iterable[object]) -> list[str]:
    """Rows whose repeats differ too much to be trusted, one line each."""
    return [
        f"{row.what} of {row.scheme} at {row.length} tokens: the slowest of {row.repeats} repeats took "
        f"{row.timing.slowest / row.timing.fastest:.1f} times the fastest; is the machine busy?"
        for row in rows
        if isinstance(row, BenchRow) and row.timing is not None and row.timing.unsteady
    ]


@dataclass(frozen=True)
class OfficialRow(BenchRow):
    """A row beside the official code; `skipped` says why there is nothing in it."""

    skipped: str | None = None


@dataclass(frozen=True, kw_only=True)
class RatesRow:
    """What the machine reaches: operations per second in a matrix product, bytes per second in a copy."""

    kind: Literal["rates"] = "rates"
    dtype: str
    matrix: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """How far the fast backend is from the dense reference on this device, or why that is not known."""

    kind: Literal["check"] = "check"
    scheme: str
    largest_difference: float | None = None
    largest: float | None = None
    skipped: str | None = None


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """Time to first token, decoding and memory of one shape, scheme and length; or why it was left out.

    Attributes:
        model: name of the shape.
        scheme: "stock" is the model as transformers runs it.
        length: tokens.
        prefill_seconds: from token ids to the last position's logits, median.
        repeats: of the prefill.
        fastest: least of them, seconds.
        slowest: most of them, seconds.
        decode_seconds: of a step, median.
        tokens_per_second: 1 over that.
        steps: decoding steps.
        operations: floating-point operations that the prefill needs at least.
        bytes_per_step: that a step must read at least.
        matrix_share: of the machine's rate of matrix products that the prefill comes to.
        bandwidth_share: of the machine's bandwidth that a step comes to.
        peak_bytes: above the weights.
        wall_seconds: everything included.
        prefill_ratio: to the stock model's time, of the same shape and length.
        decode_ratio: likewise.
        skipped: why it was not measured.
    """

    kind: Literal["speed"] = "speed"
    model: str
    scheme: str
    length: int
    prefill_seconds: float | None = None
    repeats: int | None = None
    fastest: float | None = None
    slowest: float | None = None
    decode_seconds: float | None = None
    tokens_per_second: float | None = None
    steps: int | None = None
    operations: int | None = None
    bytes_per_step: int | None = None
    matrix_share: float | None = None
    bandwidth_share: float | None = None
    peak_bytes: int | None = None
    wall_seconds: float | None = None
    prefill_ratio: float | None = None
    decode_ratio: float | None = None
    skipped: str | None = None


GpuRow = RatesRow | CheckRow | SpeedRow
