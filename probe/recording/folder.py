"""Run folders: the only thing that passes between the CLI, the dashboard and the docs.

A folder holds `run.json` (every setting, versions, seed, git commit), `trace.safetensors` (recorded values, [positions,
dims] under "scheme/site.layer"), tables as Parquet and figures as HTML. It is written under a temporary name and
renamed when whole, so a folder that can be listed is complete.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from probe.errors import ProbeError
from probe.recording.info import FORMAT, RunInfo
from probe.recording.place import Place


def _target(path: Path, force: bool) -> None:
    """Refuse a target that would lose something."""
    if path.exists() and not path.is_dir():
        raise ProbeError(f"--out {path}: expected a folder, found a file")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / "run.json").exists():
        raise ProbeError(f"--out {path}: the folder is not empty and holds no run; name a new one")
    if not force:
        raise ProbeError(f"--out {path}: a run is there already; name a new folder or give --force to replace it")


@contextmanager
def new_run_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write a run into; it takes its real name when the context ends well and vanishes otherwise.

    Args:
        path: the run folder to be.
        force: replace a run that is there already (only once the new one is whole).

    Raises:
        ProbeError: the place is not writable, or is taken.
    """
    path = path.expanduser().absolute()
    try:
        _target(path, force)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.part-", dir=path.parent))
    except OSError as error:
        raise ProbeError(f"--out {path}: cannot write there ({error.strerror})") from None
    try:
        yield part
        part.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON; NaN and infinity are refused, since no reader agrees on them."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length as Parquet."""
    pq.write_table(pa.table(dict(columns)), path)


def write_trace(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write recorded values, one array of [positions, dims] per "scheme/site.layer"."""
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, path)


@dataclass(frozen=True)
class Run:
    """A finished run folder, read lazily."""

    path: Path

    @cached_property
    def info(self) -> RunInfo:
        """Contents of `run.json`.

        Raises:
            ProbeError: the folder is not a run, or one of a newer format.
        """
        try:
            found = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # unreadable, not JSON, or not even text
            raise ProbeError(f"{self.path}: expected a run folder with a readable run.json") from None
        form = found.get("format") if isinstance(found, dict) else found
        if form not in (1, FORMAT):
            raise ProbeError(f"{self.path}: expected run format {FORMAT} or 1, got {form!r}")
        try:
            return RunInfo.from_json(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = str(error).splitlines()[0]
            raise ProbeError(
                f"{self.path}: run.json lacks what a run of format {form} has ({type(error).__name__}: {said}); "
                "make the run again"
            ) from None

    @cached_property
    def trace(self) -> dict[str, NDArray[np.float32]]:
        """Recorded values by "scheme/site.layer".

        Raises:
            ProbeError: the file is missing or damaged.
        """
        try:
            loaded: dict[str, NDArray[np.float32]] = load_file(self.path / "trace.safetensors")
        except (OSError, SafetensorError) as error:
            raise ProbeError(f"{self.path}: trace.safetensors cannot be read ({error})") from None
        return loaded

    @cached_property
    def nll(self) -> dict[str, NDArray[np.float64]]:
        """NLL per position by scheme; entry 0 is NaN.

        Raises:
            ProbeError: the file is missing or damaged.
        """
        try:
            table = pq.read_table(self.path / "nll.parquet").to_pydict()
            scheme, position, nll = (np.array(table[name]) for name in ("scheme", "position", "nll"))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ProbeError(f"{self.path}: nll.parquet cannot be read ({str(error).splitlines()[0]})") from None
        series = {}
        for name in dict.fromkeys(table["scheme"]):
            mine = scheme == name
            values = np.full(int(position[mine].max()) + 1, np.nan)
            values[position[mine]] = nll[mine]
            series[name] = values
        return series

    def table(self, name: str) -> list[dict[str, Any]]:
        """Rows of one of the run's tables, such as "thresholds".

        Raises:
            ProbeError: the file is missing or damaged.
        """
        try:
            rows: list[dict[str, Any]] = pq.read_table(self.path / f"{name}.parquet").to_pylist()
        except (OSError, pa.ArrowException) as error:
            said = str(error).splitlines()[0]
            raise ProbeError(f"{self.path}: {name}.parquet cannot be read ({said})") from None
        return rows

    def series(self, scheme: str, site: str, layer: int, dim: int) -> NDArray[np.float64]:
        """One dimension over positions.

        Raises:
            ProbeError: it was not recorded.
        """
        place = Place(scheme, site, layer, dim)
        if place.key not in self.trace or dim not in self.info.dims:
            raise ProbeError(
                f"{self.path.name}: {place.key} dim {dim} was not recorded; recorded: {', '.join(self.trace)}"
            )
        return self.trace[place.key][:, self.info.dims.index(dim)].astype(np.float64)


def list_runs(root: Path) -> list[Run]:
    """Finished runs directly under a folder, newest first; temporary and foreign folders are left out."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if (path / "run.json").is_file() and not path.name.startswith(".")]
    return [Run(path) for path in sorted(found, key=lambda path: (path / "run.json").stat().st_mtime, reverse=True)]
