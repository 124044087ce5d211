"""The call that makes a run again: on the command line, and in Python."""

from __future__ import annotations

import shlex

from probe.recording.info import RunInfo


def _numbers(values: tuple[int, ...]) -> str:
    """Numbers as options take them, runs of neighbours as ranges: "1,3-6"."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def command(info: RunInfo) -> str:
    """The `probe run` that makes it again, ready to paste."""
    used = info.detection
    chosen: list[tuple[str, object]] = [
        ("--model", info.model), ("--input", info.input.spec), ("--length", info.input.length),
        ("--layer", _numbers(info.layers)), ("--dim", _numbers(info.dims)), ("--site", ",".join(info.sites)),
        ("--scheme", ",".join(info.shown)), ("--detector", info.detector), ("--seed", info.seed),
    ]  # fmt: skip
    if info.input.samples > 1:
        chosen.append(("--samples", info.input.samples))
    for option, value in (("--burn-in", used.burn_in), ("--run-length", used.run_length)):
        if value is not None:
            chosen.append((option, value))
    if used.margin != 3.0:
        chosen.append(("--margin", f"{used.margin:g}"))
    if info.backend != "pieces":
        chosen.append(("--backend", info.backend))
    return " ".join(["probe run", *(f"{option} {shlex.quote(str(value))}" for option, value in chosen)])


def python(info: RunInfo) -> str:
    """The same with the library."""
    used = info.detection
    chosen: list[tuple[str, object, object]] = [
        ("samples", info.input.samples, 1), ("burn_in", used.burn_in, None), ("run_length", used.run_length, None),
        ("margin", used.margin, 3.0), ("backend", info.backend, "pieces"), ("seed", info.seed, 0),
    ]  # fmt: skip
    more = "".join(f", {name}={value!r}" for name, value, usual in chosen if value != usual)
    return (
        "import weavescope as ws\n\n"
        f"m = ws.load({info.model!r})\n"
        f"run = m.probe({','.join(info.shown)!r}, layers={list(info.layers)}, dims={list(info.dims)},\n"
        f"              sites={info.sites!r}, input={info.input.spec!r}, length={info.input.length},\n"
        f"              detector={info.detector!r}{more})\n"
        "run.thresholds.to_pandas()\n"
    )
