"""How long a run will take and what it needs, before it starts: from earlier runs of the model, or a rough count."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.defaults import WINDOW_FIELDS
from probe.models.embedded import MODELS
from probe.models.fetched import FETCHED
from probe.recording.info import RunInfo
from probe.schemes import ORIGIN

RATE = 1.5e10
"""Multiplications and additions per second of a core in float32, where no run tells: rough, and on the safe side."""

LINEAR = ("mesa", "star", "streaming-llm", "lm-infinite")
"""Presets whose cost grows linearly past the window."""

WOVEN = 1.6
"""Of a scheme's time to that of the model as trained, where no run tells: that of the slower weaves."""


LOADING = 4.0
"""Seconds to import torch and transformers."""


@dataclass(frozen=True)
class ModelFacts:
    """What a model's files say without loading it.

    Attributes:
        window: trained window M, tokens; None where the config does not state it.
        layers: decoder layers.
        hidden: width of the residual stream.
        weights: bytes of its weight files.
        rotates: whether it has RoPE frequencies; True where that cannot be told.
    """

    window: int | None
    layers: int
    hidden: int
    weights: int
    rotates: bool = True

    @property
    def parameters(self) -> float:
        """About how many, as float32."""
        return self.weights / 4

    def work(self, length: int) -> float:
        """Multiplications and additions of a causal pass over `length` tokens."""
        return 2 * self.parameters * length + 2 * self.layers * self.hidden * length**2


def folder_of(model: str) -> Path | None:
    """Where a model's files are; None for one that is elsewhere (a hub id)."""
    for table in (MODELS, FETCHED):
        if model in table:
            return table[model].folder
    path = Path(model).expanduser()
    return path if path.is_dir() else None


def facts(model: str) -> ModelFacts | None:
    """What a model's folder says; None where nothing can be read."""
    folder = folder_of(model)
    if folder is None:
        return None
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    except (OSError, ValueError):
        return None
    window = next((config[name] for name in WINDOW_FIELDS if isinstance(config.get(name), int)), None)
    layers, hidden = (
        next((config[name] for name in names if isinstance(config.get(name), int)), 0)
        for names in (("num_hidden_layers", "n_layers", "n_layer"), ("hidden_size", "d_model", "n_embd"))
    )
    rotates = MODELS[model].positions == "RoPE" if model in MODELS else config.get("model_type") not in ("mpt", "bloom")
    return ModelFacts(window, layers, hidden, size, rotates)


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        seconds: of loading and all passes.
        memory: bytes at most, the model included.
        disk: bytes of the run folder.
        measured: whether the seconds come from an earlier run of this model.
    """

    seconds: float
    memory: float
    disk: float
    measured: bool


def estimate(
    model: ModelFacts, name: str, schemes: Sequence[str], length: int, samples: int, values: int,
    earlier: Iterable[RunInfo],
) -> Estimate:  # fmt: skip
    """What a run will take.

    Args:
        model: from `facts`.
        name: the model's, as runs have it.
        schemes: texts; `origin` among them.
        length: tokens.
        samples: sequences.
        values: numbers recorded per position and scheme.
        earlier: runs that may tell how fast this machine is.
    """
    rates = _rates(model, name, earlier)
    base = rates.get(ORIGIN)
    origin = model.work(length) / (base or RATE * (os.cpu_count() or 1))
    seconds = 0.0
    for scheme in schemes:
        preset = scheme.partition("(")[0].partition("+")[0]
        if preset in rates:
            seconds += model.work(length) / rates[preset]
        elif preset in LINEAR and model.window and length > model.window:
            seconds += origin * length / model.window * model.work(model.window) / model.work(length) * WOVEN
        else:
            seconds += origin * (1.0 if preset == ORIGIN else WOVEN)
    disk = 4.0 * values * length * len(schemes)
    # A pass holds a layer's activations of every position, the logits in parts, and what is recorded goes to disk.
    memory = model.weights + 24.0 * model.hidden * length * 4 + 3e8
    return Estimate(LOADING + model.weights / 5e8 + seconds * samples, memory, disk, base is not None)


def _rates(model: ModelFacts, name: str, earlier: Iterable[RunInfo]) -> dict[str, float]:
    """Work per second by preset, of the latest run of this model that tells."""
    found: dict[str, float] = {}
    for info in earlier:
        if Path(info.model).name != Path(name).name:
            continue
        for spec, record in info.schemes.items():
            if record.seconds:
                preset = spec.partition("(")[0].partition("+")[0]
                found.setdefault(preset, model.work(info.input.length) * info.input.samples / record.seconds)
    return found
