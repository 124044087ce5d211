"""Run folders and results as the dashboard sees them: those inside the runs root, and the examples that it ships."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import streamlit as st
from safetensors import SafetensorError

from probe.errors import ProbeError
from probe.recording.folder import Run, list_runs
from probe.recording.info import RunInfo
from probe.recording.place import Place
from probe.results import read
from probe.tasks.tables import parts
from probe.thresholds.detectors import DETECTORS, DetectorSettings
from probe.thresholds.intervals import failure_interval
from probe.thresholds.verdicts import Verdict, judge_run, read_verdicts, settings_of

FILES = ("run.json", "trace.safetensors", "nll.parquet")
"""What a page reads of a run."""

EXAMPLES = Path(__file__).parent / "examples"
"""Small runs and results that come with the dashboard, so that the first look needs no waiting."""

MOST_BYTES = 20_000_000
"""Of a result file that is read; every table of the probe is far smaller."""

_NAME = re.compile(r"[\w][\w .()+=,-]{0,99}")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, pa.ArrowException)


def inside(root: Path, path: Path) -> bool:
    """Whether a path, with every link and `..` resolved, lies below the runs root."""
    try:
        return path.resolve().is_relative_to(root.resolve()) and path.resolve() != root.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False


def own_names(root: Path) -> list[str]:
    """Names of the runs below the root, newest first; links that lead out of it are left out.

    Raises:
        ProbeError: the root cannot be read.
    """
    try:
        return [run.path.name for run in list_runs(root) if inside(root, run.path)]
    except OSError as error:
        raise ProbeError(f"the runs folder cannot be read ({error.strerror})") from None


def example_names() -> list[str]:
    """Names of the shipped runs."""
    return sorted(path.parent.name for path in EXAMPLES.glob("*/run.json"))


def run_names(root: Path) -> list[str]:
    """The user's runs, newest first, then the examples that no run of the user's is named like.

    Raises:
        ProbeError: the root cannot be read.
    """
    return list(dict.fromkeys([*own_names(root), *example_names()]))


def is_example(root: Path, name: str) -> bool:
    """Whether a name is that of a shipped run."""
    return not (root / name).exists() and (EXAMPLES / name / "run.json").is_file()


def _home(root: Path, name: str) -> Path:
    return EXAMPLES if Path(name).name == name and is_example(root, name) else root


def open_run(root: Path, name: str) -> Run:
    """The run of that name, read and checked.

    Args:
        root: the runs root; beside the examples nothing outside it is read.
        name: a folder directly below it, or an example's.

    Raises:
        ProbeError: the name leads outside the root, or there is no whole run of this format there.
    """
    home = _home(root, name)
    path = home / name
    if Path(name).name != name or any(not inside(home, one) for one in (path, *(path / file for file in FILES))):
        raise ProbeError(f"run {name!r} lies outside the runs folder, and nothing outside it is read")
    if not (path / "run.json").is_file():
        raise ProbeError(f"there is no run {name!r} in the runs folder; choose another one")
    try:
        stamp = tuple((path / file).stat().st_mtime_ns for file in FILES)
    except OSError as error:
        raise _broken(name, error) from None
    run: Run = _read(str(path), stamp)
    return run


def _broken(name: str, error: Exception) -> ProbeError:
    # What went wrong, without the folders above the run.
    said = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    said = re.sub(r"[^\s'\"]*/", "", said.splitlines()[0])
    return ProbeError(f"run {name!r} cannot be read ({said}); delete it on the page Runs, or make it again")


@st.cache_resource(max_entries=4, show_spinner=False)  # type: ignore[untyped-decorator]
def _read(path: str, stamp: tuple[int, ...]) -> Run:
    """A run whose arrays are mapped; `stamp` makes a run that was replaced a new one."""
    run = Run(Path(path))
    try:
        _check(run)
    except _UNREADABLE as error:
        raise _broken(run.path.name, error) from None
    return run


def _check(run: Run) -> None:
    """Refuse a run whose files do not belong together, before a page draws half of it."""
    info = run.info
    length, dims = info.input.length, len(info.dims)
    for scheme in info.schemes:
        if run.nll[scheme].shape != (length,):
            raise ValueError(f"expected the NLL of {length} positions under {scheme}, got {len(run.nll[scheme])}")
        for site in info.sites:
            for layer in info.layers:
                got = run.trace[Place(scheme, site, layer).key].shape
                if got != (length, dims):
                    raise ValueError(f"expected {(length, dims)} values under {scheme} at {site}.{layer}, got {got}")
    DETECTORS[info.detector]


def infos(root: Path, most: int) -> dict[str, RunInfo | ProbeError]:
    """What the runs say of themselves, by name, of the first so many; nothing but their `run.json` is read.

    Raises:
        ProbeError: the root cannot be read.
    """
    found: dict[str, RunInfo | ProbeError] = {}
    for name in run_names(root)[:most]:
        path = _home(root, name) / name
        try:
            found[name] = _info(str(path), (path / "run.json").stat().st_mtime_ns)
        except (ProbeError, OSError) as error:
            found[name] = _broken(name, error)
    return found


@st.cache_resource(max_entries=1000, show_spinner=False)  # type: ignore[untyped-decorator]
def _info(path: str, stamp: int) -> RunInfo:
    return Run(Path(path)).info


def verdicts(run: Run, detector: str, settings: DetectorSettings, schemes: Sequence[str]) -> list[Verdict]:
    """What a detector says of everything that was recorded, under the schemes asked for; no pass is made for it."""
    stamp = (run.path / "run.json").stat().st_mtime_ns
    found: list[Verdict] = _verdicts(str(run.path), stamp, detector, settings, tuple(schemes), run)
    return found


# Resources are given as they are, where data would be copied at every redraw: nobody changes these rows.
@st.cache_resource(max_entries=16, show_spinner="Judging every recorded dimension …")  # type: ignore[untyped-decorator]
def _verdicts(
    path: str, stamp: int, detector: str, settings: DetectorSettings, schemes: tuple[str, ...], _run: Run
) -> list[Verdict]:
    used = _run.info.detection
    as_made = settings in (
        settings_of(_run.info),
        DetectorSettings(used.burn_in_used, used.run_length_used, used.margin),
    )
    if as_made and set(schemes) <= set(_run.info.shown):
        with suppress(ProbeError, TypeError):  # an older run, or a table that is gone: the trace says it too
            kept = read_verdicts(_run, detector)
            if kept:
                return [one for one in kept if one.scheme in schemes]
    return list(judge_run(_run, detector, settings, schemes=schemes))


def intervals(run: Run, settings: DetectorSettings, schemes: Sequence[str]) -> dict[str, str | None]:
    """Intervals of the measured failures in words; empty for a run of one sequence."""
    if not run.nll_samples:
        return {}
    stamp = (run.path / "run.json").stat().st_mtime_ns
    found: dict[str, str | None] = _intervals(str(run.path), stamp, settings, tuple(schemes), run)
    return found


@st.cache_data(max_entries=16, show_spinner="Drawing samples again …")  # type: ignore[untyped-decorator]
def _intervals(
    path: str, stamp: int, settings: DetectorSettings, schemes: tuple[str, ...], _run: Run
) -> dict[str, str | None]:
    return {scheme: failure_interval(_run, scheme, settings, resamples=100).said for scheme in schemes}


@dataclass(frozen=True)
class Stored:
    """A result file: its name, whether it is shipped, and what it holds."""

    name: str
    example: bool
    value: dict[str, Any]

    @property
    def kind(self) -> str:
        """What made it: "eval", "causes", "bench", ..."""
        return str(self.value["kind"])

    @property
    def model(self) -> str:
        """The model that it is of, without folders."""
        return Path(str(self.value["settings"].get("model", "unknown"))).name


def results(root: Path, kind: str) -> list[Stored]:
    """Results of a kind: JSON files directly in the runs root, newest first, then the shipped ones. An evaluation of
    several models or tasks is a result for each.

    Files that are no results are left out: the folder is the user's.
    """
    mine = sorted(
        (path for path in root.glob("*.json") if inside(root, path)),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    found = []
    for path, example in [*((one, False) for one in mine), *((one, True) for one in sorted(EXAMPLES.glob("*.json")))]:
        value = _result(str(path), path.stat().st_mtime_ns)
        if value is not None and value["kind"] == kind and value["rows"]:
            each = parts(value) if kind == "eval" else [value]
            found += [Stored(path.stem, example, one) for one in each]
    return found


@st.cache_resource(max_entries=64, show_spinner=False)  # type: ignore[untyped-decorator]
def _result(path: str, stamp: int) -> dict[str, Any] | None:
    if Path(path).stat().st_size > MOST_BYTES:
        return None
    try:
        return read(Path(path))
    except ProbeError:
        return None


def size_of(root: Path, name: str) -> int:
    """Bytes of a run folder."""
    return sum(file.stat().st_size for file in (_home(root, name) / name).rglob("*") if file.is_file())


def rename(root: Path, name: str, to: str) -> None:
    """Give a run of the user's another name.

    Raises:
        ProbeError: it is not a run in the root, or the new name is taken or none.
    """
    source = _own(root, name)
    if not _NAME.fullmatch(to):
        raise ProbeError(
            f"name: expected letters, digits and . _ - ( ) + = , up to 100, not beginning with a dot; got {to!r}"
        )
    target = root / to
    if target.exists() or target.is_symlink():
        raise ProbeError(f"name: {to!r} is taken; choose another one")
    try:
        source.rename(target)
    except OSError as error:
        raise ProbeError(f"run {name!r} cannot be renamed ({error.strerror})") from None


def delete(root: Path, name: str) -> None:
    """Delete a run of the user's.

    Raises:
        ProbeError: it is not a run in the root, or cannot be deleted.
    """
    source = _own(root, name)
    try:
        if source.is_symlink():
            source.unlink()
        else:
            shutil.rmtree(source)
    except OSError as error:
        raise ProbeError(f"run {name!r} cannot be deleted ({error.strerror})") from None


def _own(root: Path, name: str) -> Path:
    path = root / name
    if Path(name).name != name or not inside(root, path) or not (path / "run.json").is_file():
        raise ProbeError(f"there is no run {name!r} in the runs folder that is yours to change")
    return path
