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

from probe.errors import FieldError, ProbeError, literal
from probe.recording.arrays import mapped_arrays, write_arrays
from probe.recording.info import FORMAT, RunInfo
from probe.recording.place import Place

SAMPLES = "nll_samples.safetensors"
"""File with the NLL of every sample, [samples, positions] by scheme, of runs over several."""


def _target(path: Path, force: bool) -> None:
    """Refuse a target that would lose something.

    Raises:
        FieldError: it is a file, or holds something; with `force` anything but a run.
    """
    if path.exists() and not path.is_dir():
        raise FieldError("out", "a folder, found a file", value=path)
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / "run.json").exists():
        raise FieldError("out", hint="the folder is not empty and holds no run; name a new one", value=path)
    if not force:
        raise FieldError(
            "out", hint="a run is there already; name a new folder or give {force} to replace it", value=path
        )


@contextmanager
def new_run_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write a run into; it takes its real name when the context ends well and vanishes otherwise.

    What is finished is never lost: where the place has been taken meanwhile, the run stays beside it.

    Args:
        path: the run folder to be; a link leads to the folder to be.
        force: replace a run that is there already (only once the new one is whole).

    Raises:
        FieldError: the place is not writable, or is taken; one that was taken since the start is told with where the
            finished run is.
    """
    named = path.expanduser().absolute()
    try:
        place = named.resolve()
        _target(place, force)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{place.name}.part-", dir=place.parent))
    except (OSError, RuntimeError) as error:  # a loop of links
        said = getattr(error, "strerror", None) or str(error)
        raise FieldError("out", hint=f"cannot write there ({literal(said)})", value=named) from None
    try:
        yield part
        part.chmod(0o755)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _take_place(part, place, named, force)


def _take_place(part: Path, place: Path, named: Path, force: bool) -> None:
    """Give a finished folder its name. Renaming fails where anything but an empty folder is there, so nobody's work is
    replaced unless it is a run and `force` says so.

    Raises:
        FieldError: the place is taken; the message says where the finished run is.
    """
    aside = part.with_name(f"{part.name}.old")
    try:
        _target(place, force)
        if force and place.is_dir() and any(place.iterdir()):
            place.rename(aside)
        part.rename(place)
    except (OSError, FieldError) as error:
        if aside.exists() and not place.exists():
            aside.rename(place)
        kept = _kept(part, place)
        said = error.strerror if isinstance(error, OSError) else "it was taken while the run went on"
        raise FieldError(
            "out", hint=f"cannot be written ({literal(said)}); the finished run is in {literal(kept)}", value=named
        ) from None
    finally:
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _kept(part: Path, place: Path) -> Path:
    """A finished folder under a name that can be seen, beside its place; under its temporary one where that fails."""
    seen = place.with_name(part.name.removeprefix("."))
    try:
        part.rename(seen)
    except OSError:
        return part
    return seen


def write_json(path: Path, value: object) -> None:
    """Write indented JSON; NaN and infinity are refused, since no reader agrees on them."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length as Parquet."""
    pq.write_table(pa.table(dict(columns)), path)


def write_trace(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write recorded values, one array of [positions, dims] per "scheme/site.layer", or any arrays by name."""
    write_arrays(path, arrays)


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
        """Recorded values by "scheme/site.layer", mapped from the file: what is looked at is read.

        Raises:
            ProbeError: the file is missing or damaged.
        """
        try:
            loaded, _ = mapped_arrays(self.path / "trace.safetensors")
        except (OSError, SafetensorError, KeyError) as error:
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

    @cached_property
    def nll_samples(self) -> dict[str, NDArray[np.float64]]:
        """NLL of every sample by scheme, [samples, positions], nats; empty for a run over one sequence, whose NLL is
        `nll`, and for runs made before these were kept.

        Raises:
            ProbeError: the file is damaged.
        """
        if not (self.path / SAMPLES).exists():
            return {}
        try:
            return mapped_arrays(self.path / SAMPLES)[0]
        except (OSError, SafetensorError, KeyError) as error:
            raise ProbeError(f"{self.path}: {SAMPLES} cannot be read ({error})") from None

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
