"""The header of a GGUF file, read without trusting it: metadata, and where each tensor lies.

GGUF is llama.cpp's format: magic, version, two counts, metadata as keys and values, a table of tensors, padding, then
their data. Files come from anywhere, so no number in them is believed before it is held against the bytes that are
there: a count that could not fit in the rest of the file ends the reading, and nothing is allocated for it. The layout
is that of the specification in ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probe.errors import ProbeError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
LONGEST = 1 << 26
"""Bytes of a header. Those of today's largest vocabularies are a quarter of it; a sparse file can claim any size."""
MOST_DIMS = 4
"""ggml's tensors have no more."""
_FIXED, _STRING, _ARRAY = "BbHhIif?", 8, 9
_SCALARS = dict(enumerate(_FIXED)) | {10: "Q", 11: "q", 12: "d"}
"""struct's letter of every value type of fixed size."""
_LEAST_PAIR, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
"""Bytes that a metadata pair and a row of the tensor table take at the least."""


@dataclass(frozen=True)
class GgufTensor:
    """A row of the tensor table. `shape` is in torch's order, `start` and `nbytes` are bytes of the file, `kind` is
    ggml's type number.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    nbytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself. Arrays of the metadata are lists."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the family, which prefixes its keys."""
        return str(self.metadata["general.architecture"])

    def own(self, key: str, default: Any = None) -> Any:
        """The value of a key of the architecture: `own("context_length")`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, mapped from the file."""
        row = self.tensors[name]
        if row.nbytes == 0:
            return np.empty(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r", row.start, (row.nbytes,))


class _Cursor:
    """Reads forward through the file and refuses to pass its end."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.view, self.at, self.size = path, view, 0, len(view)

    def refuse(self, reason: str) -> ProbeError:
        return ProbeError(f"GGUF file {self.path}: {reason}")

    def fits(self, count: int, least: int, what: str) -> int:
        """The count, if so many things of at least so many bytes are left."""
        if count * least > self.size - self.at:
            raise self.refuse(
                f"its header claims {count} {what}, and only {self.size - self.at} bytes follow; it is truncated or "
                "damaged"
            )
        if self.at + count * least > LONGEST:
            raise self.refuse(
                f"its header claims {count} {what}, more than the {LONGEST >> 20} MiB that a header may have"
            )
        return count

    def take(self, letter: str) -> Any:
        form = f"<{letter}"
        self.fits(1, struct.calcsize(form), f"more bytes at {self.at}")
        (value,) = struct.unpack_from(form, self.view, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.fits(self.take("Q"), 1, "bytes of text")
        found = self.view[self.at : self.at + length]
        self.at += length
        try:
            return found.decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"the text at byte {self.at - length} is not UTF-8; it is damaged") from None

    def value(self) -> Any:
        kind = self.take("I")
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        return self.take(self.letter(kind))

    def letter(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.refuse(f"a metadata value has the type {kind}, which GGUF does not have; it is damaged")
        return _SCALARS[kind]

    def array(self) -> list[Any]:
        kind, count = self.take("I"), self.take("Q")
        if kind == _STRING:
            return [self.text() for _ in range(self.fits(count, 8, "texts"))]
        if kind == _ARRAY:
            raise self.refuse("its metadata holds an array of arrays, which llama.cpp does not write")
        form = np.dtype(f"<{np.dtype(self.letter(kind)).str[1:]}")
        self.fits(count, form.itemsize, "numbers")
        found: list[Any] = np.frombuffer(self.view, form, count, self.at).tolist()
        self.at += count * form.itemsize
        return found


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        ProbeError: it is no GGUF file, or one that is cut short, damaged, one part of several, or of a version that is
            not read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise ProbeError(f"GGUF file {path}: expected a header of at least 24 bytes, got a file of {size}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _header(_Cursor(path, view))
    except OSError as error:
        raise ProbeError(f"GGUF file {path}: cannot be read ({error.strerror or error})") from None


def _header(cursor: _Cursor) -> GgufHeader:
    tensors, pairs = _counts(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(cursor.fits(pairs, _LEAST_PAIR, "metadata pairs")):
        key = cursor.text()
        if key in metadata:
            raise cursor.refuse(f"its metadata has {key} twice; it is damaged")
        metadata[key] = cursor.value()
    _check_metadata(cursor, metadata)
    rows = [_row(cursor) for _ in range(cursor.fits(tensors, _LEAST_TENSOR, "tensors"))]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.refuse(f"general.alignment: expected a power of two, got {alignment}")
    data = -(-cursor.at // alignment) * alignment
    return GgufHeader(cursor.path, metadata, _placed(cursor, rows, data))


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and metadata pairs the file claims."""
    magic = bytes(cursor.view[:4])
    if magic != MAGIC:
        raise cursor.refuse(f"expected the magic {MAGIC!r} at its start, got {magic!r}; it is no GGUF file")
    cursor.at = 4
    version = cursor.take("I")
    if version not in VERSIONS:
        other = (
            " (written for big-endian machines)" if int.from_bytes(version.to_bytes(4, "little")) in VERSIONS else ""
        )
        raise cursor.refuse(
            f"expected version {' or '.join(map(str, VERSIONS))}, got {version}{other}; convert it again"
        )
    return cursor.take("Q"), cursor.take("Q")


def _check_metadata(cursor: _Cursor, metadata: dict[str, Any]) -> None:
    if not isinstance(metadata.get("general.architecture"), str):
        raise cursor.refuse("its metadata names no general.architecture")
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise cursor.refuse(f"it is one of {parts} parts of a model; join them with llama.cpp's gguf-split")


def _row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape in torch's order, type and offset of a tensor."""
    name, dims = cursor.text(), cursor.take("I")
    if dims > MOST_DIMS:
        raise cursor.refuse(f"tensor {name} claims {dims} dimensions, and ggml has at most {MOST_DIMS}; it is damaged")
    shape = tuple(reversed([cursor.take("Q") for _ in range(dims)]))
    return name, shape, cursor.take("I"), cursor.take("Q")


def _placed(cursor: _Cursor, rows: list[tuple[str, tuple[int, ...], int, int]], data: int) -> dict[str, GgufTensor]:
    """The tensors by name, each held against the bytes that are there."""
    placed: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in rows:
        if name in placed:
            raise cursor.refuse(f"its table has tensor {name} twice; it is damaged")
        start, nbytes = data + offset, _bytes_of(cursor, name, shape, kind)
        if start + nbytes > cursor.size:
            raise cursor.refuse(
                f"tensor {name} ends at byte {start + nbytes}, and the file has {cursor.size}; it is truncated"
            )
        placed[name] = GgufTensor(name, shape, kind, start, nbytes)
    return placed


def _bytes_of(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int) -> int:
    """Bytes that a tensor takes in the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise cursor.refuse(f"tensor {name} has ggml's type {kind}, which the gguf package does not know") from None
    row = shape[-1] if shape else 1
    if row % block:
        raise cursor.refuse(
            f"tensor {name} has rows of {row}, no multiple of its type's blocks of {block}; it is damaged"
        )
    return prod(shape) // block * width
