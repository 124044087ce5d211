"""Build, run, compare: the theorems as measurements.

A check runs a construction on <bos> and random words, takes o_t from the head's output in STATE (as in the proofs),
and asks: is o_t what the formula says at every t; does it cross H where the closed form says, and nowhere else; and
is the statement true in both directions?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from constructions.closed_form import drifting_horizon_clamp, exact_crossing, polygon_drift_stair
from constructions.errors import require
from constructions.horizon import Crossing, crossing, predicted
from constructions.multiprecision import mp
from constructions.precision import check_precision, longest, tolerance
from constructions.recovery import STEP
from constructions.toy import THEOREMS, Parameters, build
from constructions.transformer import Transformer, run_mpmath
from constructions.weave import Clamp, Stair
from constructions.weights import BOS_TOKEN, READ, STATE, Construction

LONGEST = {"float64": 2048, "float32": 2048, "mpmath": 64}
"""Default runs go past the horizon if it is nearer than this."""
LIMIT = {"float64": 20_000, "float32": 20_000, "mpmath": 400}
"""Longer runs are refused: time grows with the square of the length."""
RECORD = (
    *("theorem", "M", "H", "N", "E", "slope", "dtype", "recovery"),
    *("max_deviation", "first_failure", "horizon", "ok"),
)
"""What --json prints for a check, in this order."""


@dataclass(frozen=True)
class Check:
    """One construction's verdict. Positions are T, the number of tokens after <bos> (0-based position; t = T + 1).

    `first_failure`: the first T measured with o_T <= H, None if there is none within `length`. `horizon`: the same by
    closed form, None if it is past `length` and has no closed form; `beyond` is then a lower bound. `settled`: from
    here on o_T <= H, measured.
    """

    theorem: str
    M: int
    H: float
    N: int | None
    E: int | None
    slope: float | None
    dtype: str
    recovery: str | None
    max_deviation: float
    first_failure: int | None
    horizon: int | None
    ok: bool
    convention: str = "corrected"
    length: int = 0
    settled: int | None = None
    beyond: float | None = None
    problems: tuple[str, ...] = field(default=())

    def record(self) -> dict[str, Any]:
        """The check as --json prints it."""
        return {name: getattr(self, name) for name in RECORD}


def words(built: Construction, length: int, seed: int = 0) -> list[int]:
    """<bos> and length - 1 random ordinary tokens: the statement holds for any."""
    drawn = np.random.default_rng(seed).integers(1, len(built.weights.embedding), size=length - 1)
    return [BOS_TOKEN, *map(int, drawn)]


def measure(built: Construction, tokens: list[int], dtype: str = "float64") -> tuple[np.ndarray, np.ndarray]:
    """(o_t as the last layer's head writes it to STATE, o_t as the residual stream holds it in READ), each [T].

    float64 arrays, or object arrays of mpmath numbers for dtype 'mpmath'.
    """
    if dtype == "mpmath":
        wrote, stream = run_mpmath(built, tokens)[-1]
        return wrote[:, STATE], stream[:, READ]
    model = Transformer(built, dtype)
    caught: list[torch.Tensor] = []
    head = model.get_submodule(f"layers.{len(model.layers) - 1}.attn")
    head.register_forward_hook(lambda *call: caught.append(call[-1]))
    stream = model(torch.tensor([tokens]))
    return caught[0][0, :, STATE].double().numpy(), stream[0, :, READ].double().numpy()


def default_length(built: Construction, dtype: str) -> int:
    """Enough positions to see both directions, and the end of the horizon if it is nearer than LONGEST."""
    least = longest(built, dtype, max(built.M + 2, min(2 * built.M + 8, LIMIT[dtype])))
    if built.theorem in ("3.1", "3.2"):
        return least
    end = _expected_end(built)
    wanted = max(least, end + 16) if end is not None and end + 16 <= LONGEST[dtype] else least
    return longest(built, dtype, wanted)


def _expected_end(built: Construction) -> int | None:
    """About where o_t settles below H, in T; None if there is no estimate."""
    if built.recovery == "exact" or not isinstance(built.weave, Clamp | Stair):
        known = exact_crossing(built.weave, built.value, built.slope)
        return known.settled if known else None
    if isinstance(built.weave, Clamp):
        # The polygon's horizon is past the smooth inverse's; 3 times that covers it where it is short enough to run.
        return int(min(mp.mpf(10**9), 3 * drifting_horizon_clamp(built.weave.N, built.value, built.slope)))
    known = exact_crossing(built.weave, built.value, built.slope)
    drift = polygon_drift_stair(built.weave.N, built.weave.E, built.slope)
    return int(known.settled * mp.exp(built.slope * drift) * 1.1) if known and known.settled else None


def _measured_crossing(o: np.ndarray, H: float, allowed: np.ndarray) -> Crossing:
    # o = H exactly is a failure; rounding puts it on either side of H.
    return crossing(np.array([bool(value - H > slack) for value, slack in zip(o, allowed, strict=True)]))


def _closed_form_horizon(built: Construction, expected: Crossing) -> int | None:
    if built.theorem in ("3.1", "3.2"):
        return built.value - 1
    if built.recovery == "exact":
        known = exact_crossing(built.weave, built.value, built.slope)
        if known is not None:
            return known.first_failure
    return expected.first_failure


def _horizon_bound(built: Construction, length: int) -> float:
    if isinstance(built.weave, Clamp) and built.recovery == "mlp":
        return max(length - 1.0, float(drifting_horizon_clamp(built.weave.N, built.value, built.slope)) - 1)
    return length - 1.0


def _statement_problems(built: Construction, above: Crossing, horizon: int | None, o: np.ndarray) -> Iterator[str]:
    edge, length = built.value - 1, len(o)  # the statement's M, in T: M as corrected, M - 1 as printed
    if above.first_failure is not None and above.first_failure < edge:
        yield f"o_T <= H already at T = {above.first_failure}, below M"
    if built.theorem in ("3.1", "3.2"):
        if above.settled != edge and length > edge:
            yield f"o_T is not below H for every T > {edge}"
    elif length > edge + 1 and not o[edge + 1] > built.H:
        yield f"o_T is not above H at T = {edge + 1}, just past M: this weave does not extend the horizon"
    expected = horizon if horizon is not None and horizon < length else None
    if above.first_failure != expected:
        yield f"first failure at T = {above.first_failure}, closed form {expected}"


def check_length(length: int | None, dtype: str) -> None:
    """Raise ConstructionError unless dtype is known and the length, if given, is one that it can run."""
    require(dtype in LIMIT, "dtype", " | ".join(LIMIT), dtype)
    if length is not None:
        require(2 <= length <= LIMIT[dtype], "length", f"from 2 to {LIMIT[dtype]} positions in {dtype}", length)


def check(built: Construction, dtype: str = "float64", length: int | None = None, seed: int = 0) -> Check:
    """Run one construction over `length` positions and judge it.

    Raises:
        ConstructionError: the dtype is unknown or cannot carry M or the length.
    """
    check_length(length, dtype)
    check_precision(built, dtype, length or 2)
    length = length or default_length(built, dtype)
    check_length(length, dtype)
    exactly = dtype == "mpmath"
    formula = predicted(built, length, exactly)
    o, stream = measure(built, words(built, length, seed), dtype)
    scale = np.abs(formula - built.H + 1) + abs(1 - built.H)
    steepness = 1 / float(STEP) if built.recovery == "rounded" else 1  # its steps magnify every rounding error
    allowed = tolerance(dtype, built.slope, length) * scale * steepness
    deviation = np.abs(o - formula)
    expected = _measured_crossing(formula, built.H, allowed)
    above = _measured_crossing(o, built.H, allowed)
    horizon = _closed_form_horizon(built, expected)
    problems = list(_statement_problems(built, above, horizon, o))
    if not bool((deviation <= allowed).all()):
        problems.append(f"o_t leaves the closed form at t = {int(np.argmin(deviation <= allowed)) + 1}")
    if above.settled != expected.settled:
        problems.append(f"below H for good from T = {above.settled}, closed form {expected.settled}")
    if not bool((stream == o).all()):
        problems.append("the residual stream does not hold o_t in READ")
    return Check(
        theorem=built.theorem,
        M=built.M,
        H=built.H,
        N=getattr(built.weave, "N", None),
        E=getattr(built.weave, "E", None),
        slope=None if built.recovery is None else built.slope,
        dtype=dtype,
        recovery=built.recovery if built.theorem in ("3.3", "4.1") else None,
        max_deviation=float(deviation.max()),
        first_failure=above.first_failure,
        horizon=horizon,
        ok=not problems,
        convention="corrected" if built.value == built.M + 1 else "printed",
        length=length,
        settled=above.settled,
        beyond=_horizon_bound(built, length) if horizon is None else None,
        problems=tuple(problems),
    )


def check_theorem(theorem: str, p: Parameters, dtype: str = "float64", seed: int = 0) -> Check:
    """Build a theorem's construction for the length it is run at, and check it.

    Raises:
        ConstructionError: a parameter is outside its domain, or past the precision of dtype.
    """
    if p.length is not None:
        return check(build(theorem, p), dtype, p.length, seed)
    built = build(theorem, p)
    check_precision(built, dtype, 2)
    length = default_length(built, dtype)
    # The knots of exact recovery, and how many positions must be recovered, depend on the length.
    return check(build(theorem, replace(p, length=length)), dtype, length, seed)


def check_all(
    theorem: str, p: Parameters, recoveries: tuple[str, ...], dtype: str = "float64", seed: int = 0
) -> list[Check]:
    """The checks of one theorem, or of all; 3.3 and 4.1 once for each recovery.

    Raises:
        ConstructionError: as check_theorem, or the theorem is unknown.
    """
    require(theorem in (*THEOREMS, "all"), "theorem", " | ".join((*THEOREMS, "all")), theorem)
    check_length(p.length, dtype)
    wanted = [
        (name, replace(p, recovery=recovery))
        for name in (THEOREMS if theorem == "all" else (theorem,))
        for recovery in (recoveries if name in ("3.3", "4.1") else ("mlp",))
    ]
    for name, chosen in wanted:  # refuse before anything has run for long
        check_precision(build(name, chosen), dtype, p.length or 2)
    return [check_theorem(name, chosen, dtype, seed) for name, chosen in wanted]


def default_suite() -> list[Check]:
    """What `verify` runs when nothing is asked for: every theorem, both recoveries, all number types, horizons reached.

    Under ReRoPE with the weights of Theorem 3.2 the horizon is exponential in M: M = 6 is small enough to reach it.
    """
    checks = check_all("all", Parameters(), ("exact", "mlp"))
    checks.append(check_theorem("3.3", Parameters(M=6, N=2)))
    checks.append(check_theorem("3.2", Parameters(M=500)))
    checks.append(check_theorem("3.2", Parameters(M=1000, slope=0.5)))
    checks += check_all("all", Parameters(), ("mlp",), "float32")
    checks += check_all("all", Parameters(M=6, N=2, E=2), ("exact", "mlp"), "mpmath")
    return checks


COLUMNS = (
    "theorem",
    "M",
    "H",
    "N",
    "E",
    "slope",
    "dtype",
    "recovery",
    "length",
    "deviation",
    "fails",
    "settled",
    "horizon",
    "",
)


def _cells(c: Check) -> list[str]:
    shown = [c.theorem, c.M, c.H, c.N, c.E, c.slope, c.dtype, c.recovery, c.length, f"{c.max_deviation:.1e}"]
    horizon = c.horizon if c.beyond is None else f"> {c.beyond:.0f}" if c.beyond < 1e6 else f"> {c.beyond:.2g}"
    shown += [c.first_failure, c.settled, horizon, "ok" if c.ok else "FAILS"]
    return ["-" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in shown]


def table(checks: list[Check]) -> str:
    """The checks as aligned text, with the index convention and every problem spelt out."""
    rows = [list(COLUMNS), *(_cells(c) for c in checks)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{c.theorem} M={c.M} {c.dtype} {c.recovery or ''}: {problem}" for c in checks for problem in c.problems]
    convention = checks[0].convention
    value, edge = ("M + 1", "M") if convention == "corrected" else ("M", "M - 1")
    lines.append(
        f"Index convention: {convention}. T counts the tokens after <bos> (0-based position; the proofs' t is T + 1).\n"
        f"W_V gives <bos> the value {value}, so that without a weave o_T > H iff T < {edge}.\n"
        "deviation: largest |o_t measured - closed form|. fails: first T with o_T <= H. settled: below H for good.\n"
        "horizon: first failing T by closed form."
    )
    return "\n".join(lines)
