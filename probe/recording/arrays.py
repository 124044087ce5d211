"""Recorded arrays on disk: written piece by piece and read by mapping, so that no run has to fit into memory.

The format is safetensors (https://github.com/huggingface/safetensors): a header in JSON, then the arrays. Its own
functions take and give whole arrays in memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
ROWS = 4096
"""Rows of an array that are copied at a time."""


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays of float32 or float64 as a safetensors file; mapped ones are read as they are written.

    Args:
        path: the file.
        arrays: by name.
        metadata: texts to go with them.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, array in arrays.items():
        size = array.size * array.dtype.itemsize
        kind = _NAMES[array.dtype.newbyteorder("<")]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            for start in range(0, len(array), ROWS):
                file.write(np.ascontiguousarray(array[start : start + ROWS]).tobytes())


def mapped_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a file, mapped from it, and the texts that go with them.

    Args:
        path: what `write_arrays` wrote, or any safetensors file of float32 and float64.

    Raises:
        OSError, SafetensorError: it is not there, or damaged.
        KeyError: another type of numbers.
    """
    with safe_open(path, "np") as file:  # checks the header against the file
        metadata = dict(file.metadata() or {})
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    found: dict[str, NDArray[Any]] = {}
    for name, row in header.items():  # in the order in which they were written
        if name == "__metadata__":
            continue
        dtype, shape = _DTYPES[row["dtype"]], tuple(row["shape"])
        start = 8 + length + row["data_offsets"][0]
        empty = 0 in shape
        found[name] = np.empty(shape, dtype) if empty else np.memmap(path, dtype, mode="r", offset=start, shape=shape)
    return found, metadata
