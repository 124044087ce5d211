"""Run folders as the dashboard sees them: only those inside the runs root, and only whole ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import streamlit as st
from safetensors import SafetensorError

from probe.errors import ProbeError
from probe.recording.folder import Run, list_runs
from probe.recording.place import Place
from probe.thresholds.detectors import DETECTORS

FILES = ("run.json", "trace.safetensors", "nll.parquet")
"""What a page reads of a run."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, pa.ArrowException)


def inside(root: Path, path: Path) -> bool:
    """Whether a path, with every link and `..` resolved, lies below the runs root."""
    try:
        return path.resolve().is_relative_to(root.resolve()) and path.resolve() != root.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False


def run_names(root: Path) -> list[str]:
    """Names of the runs below the root, newest first; links that lead out of it are left out.

    Raises:
        ProbeError: the root cannot be read.
    """
    try:
        return [run.path.name for run in list_runs(root) if inside(root, run.path)]
    except OSError as error:
        raise ProbeError(f"runs root {root}: cannot be read ({error.strerror})") from None


def open_run(root: Path, name: str) -> Run:
    """The run of that name, read and checked.

    Args:
        root: the runs root; nothing outside it is read.
        name: a folder directly below it.

    Raises:
        ProbeError: the name leads outside the root, or there is no whole run of this format there.
    """
    path = root / name
    if Path(name).name != name or any(not inside(root, one) for one in (path, *(path / file for file in FILES))):
        raise ProbeError(f"run {name!r}: lies outside the runs root {root}, and nothing outside it is read")
    if not (path / "run.json").is_file():
        raise ProbeError(f"run {name!r}: there is no such run in {root}")
    try:
        stamp = tuple((path / file).stat().st_mtime_ns for file in FILES)
    except OSError as error:
        raise _broken(name, error) from None
    run: Run = _read(str(path), stamp)
    return run


def _broken(name: str, error: Exception) -> ProbeError:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ProbeError(f"run {name!r} cannot be read ({said}); choose another one, or make it again")


@st.cache_resource(max_entries=4, show_spinner=False)  # type: ignore[untyped-decorator]
def _read(path: str, stamp: tuple[int, ...]) -> Run:
    """A run with its arrays in memory; `stamp` makes a run that was replaced a new one."""
    run = Run(Path(path))
    try:
        _check(run)
    except ProbeError:
        raise
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
