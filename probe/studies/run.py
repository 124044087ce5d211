"""One probe run: record, score and detect under every scheme, and leave a run folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from probe.errors import ProbeError, unknown
from probe.models.load import LoadedModel
from probe.provenance import environment
from probe.recording.folder import FORMAT, Run, new_run_folder, write_json, write_table, write_trace
from probe.recording.hooks import Recording, check_sites, record
from probe.schemes import Scheme, check_texts, make_scheme, parse_schemes
from probe.seam.apply import BACKENDS, apply_scheme, check_scheme
from probe.seam.chunked_prefill import check_chunk_batch
from probe.seam.families import SITES
from probe.tasks.inputs import make_input
from probe.tasks.nll import nll_per_position, not_finite
from probe.thresholds.detectors import DETECTORS, Settings, check_burn_in
from probe.thresholds.rows import REFERENCE, threshold_rows

Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and a line that says what is going on."""


@dataclass(frozen=True)
class RunSettings:
    """What a run records and how it judges. Layers are 1-based, dims 0-based; without a detector it is the model's."""

    layers: tuple[int, ...] = (1, 2)
    dims: tuple[int, ...] = (0, 1)
    sites: tuple[str, ...] = ("resid",)
    schemes: str = "origin,dynamic-ntk,rerope"
    input: str = "word:hello"
    length: int | None = None
    samples: int = 1
    detector: str | None = None
    detection: Settings = field(default_factory=Settings)
    backend: str = "pieces"
    chunk_batch: int | str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Pass:
    """What one scheme's pass gave: values by "site.layer" [positions, dims], NLL per position, seconds."""

    values: dict[str, NDArray[np.float32]]
    nll: NDArray[np.float64]
    seconds: float


def _silent(_share: float, _line: str) -> None:
    return None


@contextmanager
def _layer_progress(loaded: LoadedModel, tick: Callable[[float], None], length: int) -> Iterator[None]:
    """Tell `tick` the share of the pass that a layer's call was; in all 1, however many calls an input of `length` tokens takes."""
    layers = loaded.family.layer_list(loaded.model)
    left = [length] * len(layers)

    def hook(number: int) -> Callable[..., None]:
        def count(_module: nn.Module, _inputs: object, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            # No more than are left: a call that ran out of memory in a deeper layer is seen twice.
            tokens = min(left[number], hidden.shape[1])
            left[number] -= tokens
            tick(tokens / length / len(layers))

        return count

    handles = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _checked(array: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    bad = np.flatnonzero(~np.isfinite(array).all(-1))
    if len(bad):
        raise ProbeError(
            f"hidden states are NaN or infinite under {where} from position {bad[0]} on; try --dtype float32, and check the weights"
        )
    return array


def _collect(recording: Recording, settings: RunSettings, scheme: str) -> dict[str, NDArray[np.float32]]:
    """Recorded values of one scheme as [positions, dims], the mean over samples.

    Raises:
        ProbeError: a hidden state is NaN or infinite.
    """
    return {
        f"{site}.{layer}": _checked(recording.values(site, layer).mean(0).numpy(), f"{scheme} at {site}.{layer}")
        for site in settings.sites
        for layer in settings.layers
    }


def _score(loaded: LoadedModel, ids: Int[Tensor, "1 length"]) -> NDArray[np.float64]:
    """Run the model over the input; NLL per position, NaN everywhere for a model without a vocabulary head."""
    if loaded.family.head:
        return nll_per_position(loaded.model, ids)[0].double().numpy()
    with torch.no_grad():
        loaded.model(ids)
    return np.full(ids.shape[1], np.nan)


def run_pass(
    loaded: LoadedModel,
    scheme: Scheme,
    ids: Int[Tensor, "samples length"],
    settings: RunSettings,
    tick: Callable[[float], None],
) -> Pass:
    """Run the model under a scheme, recording and scoring in the same pass.

    Several samples run one after another, and what is kept is their mean at every position. `tick` is told shares of a sample's
    pass as they are done.
    """
    began = time.perf_counter()
    values: dict[str, NDArray[np.float32]] = {}
    nll = np.zeros(ids.shape[1])
    for row in ids.split(1):
        with (
            apply_scheme(loaded.model, scheme, backend=settings.backend, chunk_batch=settings.chunk_batch),
            record(loaded.model, settings.sites, settings.layers, settings.dims) as recording,
            _layer_progress(loaded, tick, ids.shape[1]),
        ):
            nll += _score(loaded, row.to(loaded.device)) / len(ids)
        for key, array in _collect(recording, settings, scheme.spec).items():
            share = array / np.float32(len(ids))
            values[key] = values[key] + share if key in values else share
    if loaded.family.head and not np.isfinite(nll[1:]).all():
        raise not_finite(scheme.spec)
    return Pass(values, nll, time.perf_counter() - began)


def check_choices(
    detector: str | None, backend: str, chunk_batch: int | str, sites: Sequence[str], schemes: str | None
) -> None:
    """Refuse what needs no model to be seen; as `RunSettings` has it, with None for what is not chosen yet.

    Raises:
        ProbeError: an unknown name, no site, a chunk batch that is no number, or schemes whose text is wrong.
    """
    check_chunk_batch(chunk_batch)
    for what, name, known in (
        ("detector", detector, DETECTORS),
        ("backend", backend, BACKENDS),
        *(("site", site, SITES) for site in sites),
    ):
        if name is not None and name not in known:
            raise unknown(what, name, known)
    if schemes is not None:
        check_texts(schemes)


def _validate(loaded: LoadedModel, settings: RunSettings) -> None:
    check_choices(settings.detector, settings.backend, settings.chunk_batch, settings.sites, settings.schemes)
    check_burn_in(loaded.window, settings.detection)
    for name, values in (("layer", settings.layers), ("dim", settings.dims), ("site", settings.sites)):
        if not values:
            raise ProbeError(f"--{name}: expected at least one, got none")
    check_sites(loaded.model, loaded.family, settings.sites, settings.layers, settings.dims)


def run_probe(
    loaded: LoadedModel, settings: RunSettings, out: Path, *, force: bool = False, progress: Progress = _silent
) -> Run:
    """Probe a loaded model and write the run folder.

    The model as trained (`origin`) is always run, since every threshold is calibrated on it; it is among the
    rows only if it was asked for.

    Args:
        loaded: from `load_model`.
        settings: what to record and how to judge.
        out: the run folder to make.
        force: replace a run at `out`.
        progress: told how far it is.

    Raises:
        ProbeError: bad settings, an unusable place, NaN in the hidden states. Nothing is left at `out` then.
    """
    judge = settings.detector or loaded.detector
    settings = replace(settings, detector=judge)
    _validate(loaded, settings)
    asked = parse_schemes(settings.schemes, loaded.window)
    ids = make_input(loaded, settings.input, settings.length, settings.samples, settings.seed)
    for scheme in asked:
        check_scheme(loaded.model, scheme)
        scheme.weave_at(ids.shape[1])  # an input that it does not reach is refused before anything runs
    torch.manual_seed(settings.seed)
    with new_run_folder(out, force=force) as part:
        schemes = [make_scheme(REFERENCE, loaded.window), *(s for s in asked if s.spec != REFERENCE)]
        passes = _all_passes(loaded, schemes, ids, settings, progress)
        shown = [scheme.spec for scheme in asked]
        trace, nll = _joined(passes), {spec: one.nll for spec, one in passes.items()}
        tables = {
            name: threshold_rows(trace, nll, settings.dims, shown, loaded.window, name, settings.detection)
            for name in DETECTORS
        }
        info = _info(loaded, settings, schemes, shown, ids, passes) | {"rows": tables[judge]}
        _write(part, info, passes, tables)
        _draw(part)
    return Run(out.expanduser().absolute())


def _draw(part: Path) -> None:
    """Write `figure.html`, self-contained; a machine without plotly records all the same, and draws nothing."""
    try:
        from probe.figures.thresholds import threshold_figure
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "plotly":
            raise
        return
    threshold_figure(Run(part)).write_html(part / "figure.html", include_plotlyjs=True, full_html=True)


def _joined(passes: dict[str, Pass]) -> dict[str, NDArray[np.float32]]:
    """Recorded values of all schemes by "scheme/site.layer"."""
    return {f"{spec}/{key}": array for spec, one in passes.items() for key, array in one.values.items()}


def _all_passes(
    loaded: LoadedModel, schemes: list[Scheme], ids: Tensor, settings: RunSettings, progress: Progress
) -> dict[str, Pass]:
    total, done = len(schemes) * len(ids), 0.0
    passes = {}
    for scheme in schemes:

        def tick(share: float, spec: str = scheme.spec) -> None:
            nonlocal done
            done += share
            progress(min(1.0, done / total), spec)

        passes[scheme.spec] = run_pass(loaded, scheme, ids, settings, tick)
    return passes


def _scheme_info(scheme: Scheme, length: int) -> dict[str, Any]:
    """What a scheme was: its parameters, the weave's as they came out for this length, and where the input was cut in chunks."""
    return {
        "parameters": scheme.parameters,
        "weave": scheme.weave_at(length).parameters(),
        "borders": scheme.borders_at(length),
    }


def _info(
    loaded: LoadedModel,
    settings: RunSettings,
    schemes: list[Scheme],
    shown: list[str],
    ids: Tensor,
    passes: dict[str, Pass],
) -> dict[str, Any]:
    digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": loaded.name,
        "family": loaded.family.model_type,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "window": loaded.window,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "threads": torch.get_num_threads(),
        "layers": list(settings.layers), "dims": list(settings.dims), "sites": list(settings.sites),
        "schemes": {s.spec: _scheme_info(s, ids.shape[1]) | {"seconds": round(passes[s.spec].seconds, 3)} for s in schemes},
        "shown": shown,
        "input": {"spec": settings.input, "length": ids.shape[1], "samples": len(ids), "sha256": digest},
        "detector": settings.detector,
        "detection": asdict(settings.detection) | {
            "burn_in_used": settings.detection.burn_in_at(loaded.window), "run_used": settings.detection.run_at(loaded.window),
        },
        "backend": settings.backend,
        "chunk_batch": settings.chunk_batch,
        "seed": settings.seed,
        **environment(),
    }  # fmt: skip


def _write(part: Path, info: dict[str, Any], passes: dict[str, Pass], tables: dict[str, list[dict[str, Any]]]) -> None:
    write_json(part / "run.json", info)
    write_trace(part / "trace.safetensors", _joined(passes))
    positions = np.arange(1, len(next(iter(passes.values())).nll))
    write_table(part / "nll.parquet", {
        "scheme": [spec for spec in passes for _ in positions],
        "position": np.tile(positions, len(passes)),
        "nll": np.concatenate([one.nll[1:] for one in passes.values()]),
    })  # fmt: skip
    rows = [row for table in tables.values() for row in table]
    write_table(part / "thresholds.parquet", {name: [row[name] for row in rows] for name in rows[0]})
