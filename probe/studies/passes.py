"""Passes that are done, kept on disk while a run goes on: what is interrupted can be gone on with.

A folder `NAME.unfinished` beside the run folder to be holds a file for every scheme that is done, and a description of
what they were made with. It goes when the run is whole.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError

from probe.errors import FieldError, ProbeError, literal
from probe.provenance import Provenance
from probe.recording.arrays import mapped_arrays, write_arrays
from probe.recording.place import Place

if TYPE_CHECKING:  # what is done is read without torch, by the dashboard
    from probe.models.load import LoadedModel

_ABOUT, _LOCK, _NLL = "unfinished.json", ".lock", "nll"
_FORMAT = 1


@dataclass(frozen=True)
class Pass:
    """What one scheme's pass gave: recorded values [positions, dims] by place, means over samples; the NLL of each
    sample, [samples, positions], nats; seconds.
    """

    values: dict[Place, NDArray[np.float32]]
    each: NDArray[np.float64]
    seconds: float

    @property
    def nll(self) -> NDArray[np.float64]:
        """NLL per position, mean over samples."""
        found: NDArray[np.float64] = self.each.mean(0)
        return found


def made_here() -> dict[str, Any]:
    """What everything that is computed depends on, whatever the model, as JSON has it."""
    source = Provenance.now()
    return {
        "versions": {name: source.versions.get(name) for name in ("weavescope", "torch", "transformers")},
        "git_commit": source.git_commit,
    }


def made_by(loaded: LoadedModel) -> dict[str, Any]:
    """What everything that a model computes depends on, as JSON has it."""
    return {
        "model": loaded.name,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "window": loaded.window,
        "dtype": str(loaded.model.dtype),
        "device": loaded.device.type,
        **made_here(),
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not as it was, in words; empty where all is."""
    return "; ".join(f"{key} {before.get(key)} then, {now[key]} now" for key in now if before.get(key) != now[key])


def unfinished_folder(out: Path) -> Path:
    """Where the passes of a run to be are kept."""
    return out.with_name(out.name + ".unfinished")


@dataclass
class PassStore:
    """The passes of one run to be.

    Attributes:
        folder: where they are kept; made with the first of them.
        command: what is needed to go on, as JSON has it; given back by `read_command`.
        resumed: whether passes that are there are taken, where they were made with the same.
    """

    folder: Path
    command: Mapping[str, Any]
    resumed: bool = False
    done: int = 0

    @contextmanager
    def opened(self, made_with: Mapping[str, Any]) -> Iterator[None]:
        """Inside, passes of this model, input and places are begun or gone on with, by this process alone; what is done
        when the context ends by an exception stays.

        Raises:
            FieldError: another process is at it; passes are there already, and nobody said to go on with them; or they
                were made with something else.
        """
        lock = FileLock(self.folder / _LOCK)  # let go by the system when a process dies
        try:  # from before there is a folder, so that a signal leaves none behind
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire(lock)
            self._check(made_with)
            yield
        finally:
            held = lock.is_locked
            lock.release()
            if held and not (self.folder / _ABOUT).exists():  # nothing is kept
                shutil.rmtree(self.folder, ignore_errors=True)
            elif not held:  # another's folder is not empty
                with suppress(OSError):
                    self.folder.rmdir()

    def _acquire(self, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FieldError(
                "out", hint="another run is on its way there; name another folder", value=self._named()
            ) from None

    def _named(self) -> str:
        """The run folder to be."""
        return self.folder.name.removesuffix(".unfinished")

    def _check(self, made_with: Mapping[str, Any]) -> None:
        about = self.folder / _ABOUT
        self._about = {"format": _FORMAT, "command": dict(self.command), "made_with": dict(made_with)}
        if not self.resumed:
            if about.exists():
                raise FieldError(
                    "out",
                    hint=f"an unfinished run is there; go on with {{resume}} {literal(self.folder)}, or delete that "
                    "folder",
                    value=self._named(),
                )
            return
        before = read_about(self.folder)["made_with"]
        now = json.loads(json.dumps(self._about))["made_with"]
        changed = changes(before, now)
        if changed:
            raise FieldError(
                "resume",
                hint=f"what is done was made with something else: {literal(changed)}",
                value=self.folder,
            )

    def _path(self, spec: str) -> Path:
        return self.folder / (spec.encode().hex()[:120] + ".safetensors")

    def take(self, spec: str) -> Pass | None:
        """The pass of a scheme, if it is done."""
        path = self._path(spec)
        if not self.resumed or not path.exists():
            return None
        found = self._read(spec)
        self.done += found is not None
        return found

    def _read(self, spec: str) -> Pass | None:
        """The pass in its file, whose values stay there until they are looked at."""
        found = _read_pass(self._path(spec))
        return found[1] if found is not None and found[0] == spec else None

    def keep(self, spec: str, one: Pass) -> Pass:
        """Write a pass, under another name first, so that one that can be read is whole; what is given back is on disk
        and no longer in memory.
        """
        (self.folder / _ABOUT).write_text(json.dumps(self._about, indent=2), encoding="utf-8")
        arrays: dict[str, NDArray[Any]] = {place.key: values for place, values in one.values.items()}
        path = self._path(spec)
        part = path.with_suffix(".part")
        write_arrays(part, arrays | {_NLL: one.each}, {"scheme": spec, "seconds": str(one.seconds)})
        part.replace(path)
        self.done += 1
        return self._read(spec) or one

    @contextmanager
    def spill(self) -> Iterator[Path]:
        """A folder for what a pass records while it runs; gone afterwards."""
        with tempfile.TemporaryDirectory(prefix=".pass-", dir=self.folder) as folder:
            yield Path(folder)

    def drop(self) -> None:
        """The run is whole: what `opened` left is no longer needed."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read_pass(path: Path) -> tuple[str, Pass] | None:
    """A pass and its scheme from a file; None for one that was being written when its process died."""
    try:
        found, said = mapped_arrays(path)
        each = np.atleast_2d(np.array(found.pop(_NLL)))
        values = {Place.parse(key): values for key, values in found.items()}
        return said["scheme"], Pass(values, each, float(said["seconds"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def done_passes(folder: Path) -> dict[str, Pass]:
    """The passes by scheme that an unfinished run has so far, in the order in which they were done."""
    paths = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    return dict(filter(None, map(_read_pass, paths)))


def read_about(folder: Path) -> dict[str, Any]:
    """What the passes in a folder were made with.

    Raises:
        FieldError: there are none.
    """
    try:
        found = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ProbeError(f"{folder}: expected format {_FORMAT} of an unfinished run, got {found['format']!r}")
    except (OSError, ValueError, TypeError, KeyError):
        raise FieldError(
            "resume", "the folder NAME.unfinished that an interrupted run left", value=literal(str(folder))
        ) from None
    return dict(found)
