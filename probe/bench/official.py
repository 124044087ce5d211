"""Our schemes beside the official implementation of Mesa-Extrapolation, on the same weights and tokens, in turn.

    python -m probe.bench.official --checkout DIR --python VENV/bin/python --lengths 4096,8192,16384

The official code (https://github.com/soacker/Mesa-Extrapolation) has no licence, so nothing of it is here: DIR is the user's own
checkout, and VENV an environment of the user's with transformers 4.31, which it needs. It runs there, in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from probe.bench.memory import REPEATS, RETURNED, STOCK
from probe.bench.report import show
from probe.bench.rss import load_average
from probe.bench.run import row
from probe.bench.timing import Timing, machine
from probe.errors import ProbeError, exit_code, stoppable
from probe.foreign import Process, check_checkout, commit, save_model, started, transformers_of
from probe.models.random import Shape, parse_shape
from probe.results import deliver, writable
from probe.schemes import parse_schemes

DRIVER = Path(__file__).with_name("official_driver.py")
METHOD = Path("methods") / "mesa_extrapolation.py"
"""The official file that is imported, below the checkout."""
OFFICIAL = "official"
SHAPE = "random:layers=8,width=512,heads=8,window=2048,vocab=1024"
WHAT = ("prefill", "decode", "memory")
SHORT = 16
"""Tokens of the pass in which both sides must agree."""
SAME = 1e-4
"""Of the largest logit: float32 rounding, in another order."""


def _settings(args: argparse.Namespace, shape: Shape, folder: Path, official: bool) -> dict[str, Any]:
    return {
        "checkout": str(args.checkout.resolve()) if official else "", "folder": str(folder), "window": shape.window,
        "scheme": args.scheme, "steps": args.steps, "threads": args.threads,
    }  # fmt: skip


def check(args: argparse.Namespace, shape: Shape) -> tuple[int, ...]:
    """The lengths, once everything given is known to be usable.

    Raises:
        ProbeError: no checkout of the official repository, or a number outside its domain.
    """
    from probe.text import parse_numbers

    writable(args.out)
    check_checkout(args.checkout, METHOD, "github.com/soacker/Mesa-Extrapolation")
    lengths = parse_numbers(args.lengths, "lengths", ())
    if not lengths or min(lengths) < 32:
        raise ProbeError(f"--lengths: expected numbers of at least 32 tokens, got {args.lengths!r}")
    for name in ("repeats", "steps", "threads"):
        if getattr(args, name) < 1:
            raise ProbeError(f"--{name}: expected at least 1, got {getattr(args, name)}")
    if len(parse_schemes(args.scheme, shape.window)) > 1:
        raise ProbeError(f"--scheme: expected one scheme, got {args.scheme!r}")
    return lengths


def _rows(
    what: str, length: int, contestants: Sequence[str], answers: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Rows of one measurement; one that failed says why instead."""
    made: list[dict[str, Any]] = []
    for name in contestants:
        failed = next((answer["error"] for answer in answers[name] if "error" in answer), None)
        measured = "peak_bytes" if what == "memory" else "seconds"
        values = [float(answer[measured]) for answer in answers[name] if failed is None]
        timing = Timing(median(values), min(values), max(values), len(values)) if values and what != "memory" else None
        peaks = [int(value) for value in values] if what == "memory" else []
        made.append(row(what, name, length, timing, peaks, made[0] if made and values else None) | {"skipped": failed})
    return made


def _ask(process: Process, do: str, model: str, length: int) -> dict[str, Any]:
    """The answer to one request: {"seconds"}, {"peak_bytes"}, {"logits"} or {"error"}."""
    return process.ask({"do": do, "model": model, "length": length})


def check_same_model(ours: Process, theirs: Process) -> None:
    """Both sides must be the same model where no scheme has anything to do: a few tokens, far inside the window.

    Raises:
        ProbeError: the official code does not run, or its logits differ from the stock model's.
    """
    mine, other = (_ask(process, "logits", name, SHORT) for process, name in ((ours, STOCK), (theirs, OFFICIAL)))
    for answer in (mine, other):
        if "error" in answer:
            raise ProbeError(f"a pass of {SHORT} tokens failed: {answer['error']}")
    largest = max(abs(a - b) for a, b in zip(mine["logits"], other["logits"], strict=True))
    if not largest < SAME * max(map(abs, mine["logits"])):
        raise ProbeError(f"the official code's logits of {SHORT} tokens differ from the stock model's by {largest:.2g}")


def compare(args: argparse.Namespace, shape: Shape, lengths: Sequence[int], rows: list[dict[str, Any]]) -> None:
    """Fill `rows`: times in turn in two processes that stay, memory in a fresh process each."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        save_model(shape, folder, max(lengths), args.seed)
        starts = {
            contestant: (python, _settings(args, shape, folder, contestant == OFFICIAL))
            for contestant, python in ((STOCK, sys.executable), (args.scheme, sys.executable), (OFFICIAL, args.python))
        }
        ours, theirs = (
            stack.enter_context(started(starts[side][0], DRIVER, starts[side][1])) for side in (STOCK, OFFICIAL)
        )
        asked = {STOCK: ours, args.scheme: ours, OFFICIAL: theirs}
        check_same_model(ours, theirs)
        for length in lengths:
            for what in WHAT:
                print(f"probe: {what} at {length} tokens", file=sys.stderr)
                if what == "memory":
                    count = min(args.repeats, REPEATS)
                    answers = {name: [_peak(starts[name], name, length) for _ in range(count)] for name in asked}
                else:
                    answers = _in_turn(asked, what, length, args.repeats)
                rows += _rows(what, length, list(asked), answers)


def _in_turn(asked: dict[str, Process], what: str, length: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """A B C A B C ..., after a warm-up that is not kept."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
    for repeat in range(repeats + 1):
        for name, process in asked.items():
            answer = _ask(process, what, name, length)
            if repeat:
                answers[name].append(answer)
    return answers


def _peak(start: tuple[str, dict[str, Any]], name: str, length: int) -> dict[str, Any]:
    with started(start[0], DRIVER, start[1], RETURNED) as process:
        return _ask(process, "memory", name, length)


def _result(args: argparse.Namespace, busy: dict[str, Any], version: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from probe.provenance import environment

    return {
        "bench": "official", "model": args.model, "window": parse_shape(args.model).window,
        "settings": {
            "scheme": args.scheme, "lengths": args.lengths, "repeats": args.repeats, "steps": args.steps, "threads": args.threads,
            "dtype": "float32",
        },
        "official": {
            "commit": commit(args.checkout), "transformers": version,
            "sha256": hashlib.sha256((args.checkout / METHOD).read_bytes()).hexdigest(),
        },
        "seed": args.seed, "machine": busy | {"threads": args.threads, "load_after": load_average()},
        "environment": environment(), "rows": rows,
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m probe.bench.official", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkout", type=Path, required=True, metavar="DIR", help="checkout of the official repository"
    )
    parser.add_argument("--python", required=True, metavar="FILE", help="interpreter that has transformers 4.31")
    parser.add_argument("--scheme", default="mesa", help="ours to compare with (default: mesa)")
    parser.add_argument("--lengths", default="4096,8192,16384", help="tokens (default: 4096,8192,16384)")
    parser.add_argument("--model", default=SHAPE, metavar="M", help=f"random weights of a shape (default: {SHAPE})")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats, after a warm-up (default: 3)")
    parser.add_argument("--steps", type=int, default=16, help="decoding steps in a repeat (default: 16)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON object there too")
    return parser


def _run(args: argparse.Namespace) -> None:
    shape = parse_shape(args.model)
    lengths, version, busy = check(args, shape), transformers_of(args.python, ("4.31",)), machine(torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    complete = False
    try:
        compare(args, shape, lengths, rows)
        complete = True
    finally:
        if rows:
            result = _result(args, busy, version, rows) | {"complete": complete}
            deliver(result, args.out, lambda made: show(made, args.json))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for bad input (one line on stderr). An interrupted run prints its rows."""
    args = _parser().parse_args(argv)
    with stoppable():  # a polite kill still writes the rows it has
        return exit_code(lambda: _run(args))


if __name__ == "__main__":
    raise SystemExit(main())
