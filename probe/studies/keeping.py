"""Runs on disk: what is there, whether it is whole, and what can be mended of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from probe.errors import FieldError, ProbeError, literal
from probe.recording.checksums import SUMS, differing, read_sums, write_sums
from probe.recording.folder import Run
from probe.recording.info import RunInfo
from probe.recording.repeat import command
from probe.studies.passes import done_passes
from probe.studies.run import draw_figure, write_verdicts
from probe.thresholds.detectors import DETECTORS, kept_detectors
from probe.thresholds.verdicts import judge_run, settings_of

DERIVED = ("thresholds.parquet", "figure.html")
"""Files that are made of the others."""


@dataclass(frozen=True)
class Kept:
    """A folder in a runs folder.

    Attributes:
        name: of the folder.
        kind: "run", "unfinished" (passes that can be gone on with) or "leftover" (of a process that was killed).
        megabytes: that it takes, 10^6 bytes.
        changed: when something was last written there, ISO 8601 in UTC.
        what: of a run, model, input and schemes; else how far it came.
    """

    name: str
    kind: str
    megabytes: float
    changed: str
    what: str


@dataclass(frozen=True)
class Checked:
    """What was found of a run.

    Attributes:
        name: of its folder.
        whole: whether nothing is wrong.
        problems: what is, a line each.
        mendable: whether `repair` can mend all of it.
        again: the command that makes the run again; None where that cannot be read.
    """

    name: str
    whole: bool
    problems: tuple[str, ...]
    mendable: bool
    again: str | None


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _kept(path: Path) -> Kept | None:
    if path.is_symlink() or not path.is_dir():
        return None
    if ".part-" in path.name and path.name.startswith("."):
        kind, what = "leftover", "of a run that was killed, or that is on its way"
    elif path.suffix == ".unfinished":
        kind, what = "unfinished", f"{len(done_passes(path))} passes are done; probe run --resume {path}"
    elif (path / "run.json").exists():
        kind, what = "run", _said(path)
    else:
        return None
    files = _files(path)
    last = max((file.stat().st_mtime for file in files), default=path.stat().st_mtime)
    size = sum(file.stat().st_size for file in files) / 1e6
    return Kept(path.name, kind, round(size, 1), datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds"), what)


def _said(path: Path) -> str:
    try:
        info = Run(path).info
    except ProbeError:
        return "its run.json cannot be read"
    return f"{info.model}, {info.input.length} tokens of {info.input.spec}: {', '.join(info.shown)}"


def kept(root: Path) -> list[Kept]:
    """Everything of ours in a runs folder, the newest first; foreign files and folders are left out.

    Raises:
        FieldError: it is no folder.
    """
    if not root.is_dir():
        raise FieldError("root", hint=f"there is no folder {literal(root)}")
    found = [one for path in sorted(root.iterdir()) if (one := _kept(path)) is not None]
    return sorted(found, key=lambda one: one.changed, reverse=True)


def check(path: Path) -> Checked:
    """Whether a run is whole: its checksums, and that its files are what `run.json` says.

    A run without checksums, made before they were kept, is looked at all the same.
    """
    run = Run(path)
    wrong = differing(path)
    problems = [f"{name} is {said}" if said != "changed" else f"{name} has changed" for name, said in wrong.items()]
    if not read_sums(path) and (path / SUMS).exists():
        problems.append(f"{SUMS} cannot be read")
    try:
        again = command(run.info)
    except ProbeError as error:
        return Checked(path.name, False, (*problems, _less_path(error, path)), False, None)
    problems += _contents(run, set(wrong))
    names = set(wrong) | {problem.split(" ")[0] for problem in problems}
    return Checked(path.name, not problems, tuple(problems), names <= {*DERIVED, SUMS}, again)


def _less_path(error: ProbeError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _contents(run: Run, known: set[str]) -> list[str]:
    """What is wrong with files that are not known to be damaged already."""
    found: list[str] = []
    for name, look in (("trace.safetensors", _trace), ("nll.parquet", _nll), ("thresholds.parquet", _verdicts)):
        if name in known:
            continue
        try:
            said = look(run)
        except (ProbeError, ValueError) as error:
            said = _less_path(error, run.path) if isinstance(error, ProbeError) else f"{name} cannot be read"
        if said:
            found.append(said)
    return found


def _trace(run: Run) -> str | None:
    info = run.info
    expected = {f"{spec}/{site}.{layer}" for spec in info.schemes for site in info.sites for layer in info.layers}
    if missing := expected - set(run.trace):
        return f"trace.safetensors lacks {sorted(missing)[0]}"
    shape = (info.input.length, len(info.dims))
    other = next((f"{key} {array.shape}" for key, array in run.trace.items() if array.shape != shape), None)
    return f"trace.safetensors has {other}, expected {shape}" if other else None


def _nll(run: Run) -> str | None:
    info = run.info
    if missing := set(info.schemes) - set(run.nll):
        return f"nll.parquet lacks {sorted(missing)[0]}"
    short = next((spec for spec, values in run.nll.items() if len(values) != info.input.length), None)
    if short is None:
        return None
    return f"nll.parquet has {len(run.nll[short])} positions of {short}, expected {info.input.length}"


def _verdicts(run: Run) -> str | None:
    rows = run.table("thresholds")
    expected, made = (
        sum(_judged(run.info, name) for name in names)
        for names in (kept_detectors(run.info.detector), {row["detector"] for row in rows})
    )
    if not rows or len(rows) not in (expected, made):
        return f"thresholds.parquet has {len(rows)} rows, expected {expected}"
    return None


def _judged(info: RunInfo, detector: str) -> int:
    """Verdicts of a detector in a run; of one that nobody here knows, as many as there are dimensions."""
    joint = detector in DETECTORS and DETECTORS[detector].joint
    places = {replace(place, dim=None) for place in info.places()} if joint else info.places()
    return len(info.shown) * len(places)


def repair(path: Path) -> Checked:
    """Mend what is made of the other files, verdicts and figure, and write checksums where none are kept.

    Returns:
        What is found afterwards. What was recorded cannot be mended: `again` makes it once more.
    """
    before = check(path)
    if before.whole:
        if not read_sums(path):
            write_sums(path)
        return before
    if not before.mendable:
        return before
    run = Run(path)
    used = settings_of(run.info)
    verdicts = [verdict for name in kept_detectors(run.info.detector) for verdict in judge_run(run, name, used)]
    write_verdicts(path, verdicts)
    draw_figure(path)
    write_sums(path, [name for name in DERIVED if (path / name).exists()] if read_sums(path) else None)
    return check(path)


def remove(root: Path, names: Sequence[str]) -> list[Kept]:
    """Delete runs, unfinished ones and leftovers of a runs folder, by name.

    Raises:
        FieldError: one of the names is none of ours there; nothing is deleted then.
    """
    known = {one.name: one for one in kept(root)}
    for name in names:
        if name not in known:
            raise FieldError("name", hint=f"there is no run {literal(repr(name))} in {literal(root)}")
    for name in names:
        shutil.rmtree(root / name)
    return [known[name] for name in names]
