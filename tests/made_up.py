"""What a run says of itself, made up: for tests of what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probe.provenance import Provenance
from probe.recording.info import DetectionRecord, InputRecord, RunInfo, SchemeRecord


def run_info(schemes: Sequence[str], *, borders: Mapping[str, Sequence[int]] | None = None, **fields: Any) -> RunInfo:
    """A run of window 64 that recorded dimension 0 of layer 1; `fields` replace what is made up."""
    cut = borders or {}
    made_up: dict[str, Any] = {
        "model": "made-up",
        "family": "llama",
        "parameters": 1000,
        "window": 64,
        "vocabulary": None,
        "dtype": "float32",
        "device": "cpu",
        "layers": (1,),
        "dims": (0,),
        "sites": ("resid",),
        "schemes": {scheme: SchemeRecord(borders=tuple(cut.get(scheme, ()))) for scheme in schemes},
        "shown": tuple(schemes),
        "input": InputRecord("token:5", 256),
        "detector": "range",
        "detection": DetectionRecord(None, 8, 3.0, 8, 8),
        "backend": "pieces",
        "chunk_batch": "auto",
        "seed": 0,
        "provenance": Provenance("2026-01-01T00:00:00+00:00", {"python": "3.11"}, None, False, "x86_64"),
    }
    return RunInfo(**(made_up | fields))
