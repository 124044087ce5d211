"""What a study has measured so far, each piece in a file of its own: one that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError

from probe.errors import FieldError, literal
from probe.recording.arrays import mapped_arrays, write_arrays
from probe.studies.passes import changes

_ABOUT, _LOCK, _ROW = "made_with.json", ".lock", "row"


@dataclass
class KeptFolder:
    """A folder in which a study keeps what it has measured, with what that was made with.

    Attributes:
        folder: it is made; None keeps nothing.
    """

    folder: Path | None = None

    @contextmanager
    def opened(self, made_with: Mapping[str, Any]) -> Iterator[None]:
        """Inside, pieces made with this are taken and kept, by this process alone.

        Raises:
            FieldError: the folder holds something else, or what was made with something else; another process is at it;
                or it cannot be written.
        """
        if self.folder is None:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / _LOCK)
            lock.acquire(timeout=0)
        except Timeout:
            raise FieldError(
                "keep", hint="another process is at work there; name another folder", value=self.folder
            ) from None
        except OSError as error:
            raise FieldError("keep", hint=f"cannot write there ({error.strerror})", value=self.folder) from None
        try:
            self._check(self.folder / _ABOUT, json.loads(json.dumps(dict(made_with))))
            yield
        finally:
            lock.release()

    def _check(self, about: Path, now: dict[str, Any]) -> None:
        assert self.folder is not None
        if not about.exists():
            if any(path.name != _LOCK for path in self.folder.iterdir()):
                raise FieldError(
                    "keep",
                    hint="the folder is not empty and holds nothing of this kind; name a new one",
                    value=self.folder,
                )
            about.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
            return
        try:
            before = dict(json.loads(about.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise FieldError(
                "keep", hint="what it was made with cannot be read; delete it", value=self.folder
            ) from None
        changed = changes(before, now)
        if changed:
            raise FieldError(
                "keep", hint=f"what is there was made with something else: {literal(changed)}", value=self.folder
            )


@dataclass
class PieceStore(KeptFolder):
    """A folder of measured pieces, each in a file of its own."""

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{sha256(key.encode()).hexdigest()[:24]}.safetensors"

    def take(self, key: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """A piece that is done: its row and its arrays. None where there is none, or a damaged one."""
        if self.folder is None or not self._path(key).exists():
            return None
        try:
            arrays, said = mapped_arrays(self._path(key))
            return (json.loads(said[_ROW]), arrays) if said["key"] == key else None
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def once(self, key: str, measure: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Arrays as they were kept, or measured now and kept."""
        found = self.take(key)
        if found is not None:
            return found[1]
        arrays = measure()
        self.keep(key, {}, arrays)
        return arrays

    def keep(self, key: str, row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a piece, under another name first, so that one that can be read is whole."""
        if self.folder is None:
            return
        path = self._path(key)
        part = path.with_suffix(".part")
        write_arrays(part, arrays, {"key": key, _ROW: json.dumps(dict(row), allow_nan=False)})
        part.replace(path)
