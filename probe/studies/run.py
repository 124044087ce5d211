"""One probe run: record, score and detect under every scheme, and leave a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from probe.errors import FieldError, literal, unknown
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.recording.checksums import write_sums
from probe.recording.folder import SAMPLES, Run, new_run_folder, write_json, write_table, write_trace
from probe.recording.hooks import Recording, check_sites, record
from probe.recording.info import DetectionRecord, RunInfo, SchemeRecord
from probe.recording.place import Place
from probe.recording.sites import SITES
from probe.schemes import ORIGIN, Scheme, check_texts, make_scheme, resolve_schemes
from probe.seam.apply import BACKENDS, apply_scheme, check_scheme, local_layers
from probe.seam.chunked_prefill import check_chunk_batch
from probe.seam.passing import layer_progress
from probe.studies.passes import Pass, PassStore, made_by
from probe.tasks.inputs import Drawn, Ids, draw_input
from probe.tasks.nll import nll_per_position, not_finite
from probe.thresholds.detectors import DETECTORS, DetectorSettings, check_burn_in, kept_detectors
from probe.thresholds.verdicts import Recorded, Verdict, judge

Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and a line that says what is going on."""


Numbers = Sequence[int] | Literal["all"] | None
"""Layers or dimensions: some, all, or (None) those that the model suggests."""
SchemesAsked = str | Scheme | Sequence[str | Scheme] | None
"""Schemes as text, as objects, or (None) those that the model suggests."""


@dataclass(frozen=True)
class RunSettings:
    """What a run records and how it judges. What is None is the model's, and `resolve` fills it in, for every face.

    Attributes:
        layers: 1 is the first; "all".
        dims: 0 is the first; "all".
        sites: names in `SITES`.
        schemes: text such as "origin,rerope(N=64)", scheme objects, or both in a list.
        input: text such as "word:hello", or token ids; as `draw_input` takes it.
        length: tokens; None is four windows, two of windows of 4096 and more, or a file whole.
        samples: sequences to average over, for inputs that have several.
        detector: of `DETECTORS`.
        detection: how it judges.
        backend: of the attention, "pieces" or "dense".
        chunk_batch: middle chunks of a chunked prompt in one call, or "auto".
        seed: draws the input.
        weave_local: let schemes act on layers too that are local by design, within their window.

    Raises:
        ProbeError: whatever needs no model to be seen to be wrong.
    """

    layers: Numbers = None
    dims: Numbers = None
    sites: Sequence[str] = ("resid",)
    schemes: SchemesAsked = None
    input: str | Ids | None = None
    length: int | None = None
    samples: int = 1
    detector: str | None = None
    detection: DetectorSettings = field(default_factory=DetectorSettings)
    backend: str = "pieces"
    chunk_batch: int | str = "auto"
    seed: int = 0
    weave_local: bool = False

    def __post_init__(self) -> None:
        check_chunk_batch(self.chunk_batch)
        for name, least in (("length", 2), ("samples", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise FieldError(name, f"at least {least}", value)
        if self.detector is not None:
            DETECTORS[self.detector]
        if self.backend not in BACKENDS:
            raise unknown("backend", self.backend, BACKENDS)
        for name in ("layers", "dims", "sites"):
            chosen = getattr(self, name)
            if chosen is not None and not len(chosen):
                raise FieldError(name, "at least one", "none")
        for site in self.sites:
            SITES[site]
        if isinstance(self.schemes, str):
            check_texts(self.schemes)


@dataclass(frozen=True)
class Plan:
    """Settings with everything filled in for one model: what will run."""

    layers: tuple[int, ...]
    dims: tuple[int, ...]
    sites: tuple[str, ...]
    asked: list[Scheme]
    schemes: list[Scheme]
    input: Drawn
    detector: str
    chosen: RunSettings

    @property
    def ids(self) -> Int[Tensor, "samples length"]:
        """What every scheme reads."""
        return self.input.ids

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return self.ids.shape[1]


def _chosen(value: Numbers, everything: Iterable[int], suggested: tuple[int, ...]) -> tuple[int, ...]:
    if value is None:
        return suggested
    return tuple(everything) if value == "all" else tuple(dict.fromkeys(int(number) for number in value))


def _width(loaded: LoadedModel, sites: Sequence[str], dims: Numbers) -> int:
    """Dimensions of the sites.

    Raises:
        FieldError: all of them are asked for, and they have not the same.
    """
    widths = {SITES[site].width(loaded.model.config) for site in sites}
    if dims == "all" and len(widths) > 1:
        raise FieldError("dims", "numbers, where sites differ in how many they have", "all")
    return min(widths, default=0)


def resolve(loaded: LoadedModel, settings: RunSettings) -> Plan:
    """Fill in what the settings leave to the model, and refuse what does not fit it, before anything runs.

    Raises:
        ProbeError: a scheme, layer, dimension, input or burn-in that does not fit the model.
    """
    check_burn_in(loaded.window, settings.detection)
    sites = tuple(dict.fromkeys(settings.sites))
    layers = _chosen(settings.layers, range(1, loaded.layers + 1), loaded.layers_shown)
    dims = _chosen(settings.dims, range(_width(loaded, sites, settings.dims)), loaded.dims_shown)
    check_sites(loaded.model, loaded.family, sites, layers, dims)
    asked = resolve_schemes(loaded.schemes if settings.schemes is None else settings.schemes, loaded.window)
    spec = loaded.input if settings.input is None else settings.input
    drawn = draw_input(loaded, spec, settings.length, settings.samples, settings.seed)
    for scheme in asked:
        check_scheme(loaded.model, scheme, weave_local=settings.weave_local)
        scheme.weave_at(drawn.ids.shape[1])  # an input that it does not reach is refused before anything runs
    schemes = [make_scheme(ORIGIN, loaded.window), *(scheme for scheme in asked if scheme.spec != ORIGIN)]
    return Plan(layers, dims, sites, asked, schemes, drawn, settings.detector or loaded.detector, settings)


def _silent(_share: float, _line: str) -> None:
    return None


def _checked(array: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    bad = np.flatnonzero(~np.isfinite(array).all(-1))
    if len(bad):
        raise FieldError(
            "dtype", hint=f"hidden states are NaN or infinite under {literal(where)} from position {bad[0]} on; "
            "try float32, and check the weights",
        )  # fmt: skip
    return array


def _collect(recording: Recording, plan: Plan, scheme: str) -> dict[Place, NDArray[np.float32]]:
    """Recorded values of one scheme and sample as [positions, dims].

    Raises:
        ProbeError: a hidden state is NaN or infinite.
    """
    return {
        Place(scheme, site, layer): _checked(recording.values(site, layer)[0].numpy(), f"{scheme} at {site}.{layer}")
        for site in plan.sites
        for layer in plan.layers
    }


def _score(loaded: LoadedModel, ids: Int[Tensor, "1 length"]) -> NDArray[np.float64]:
    """Run the model over the input; NLL per position, NaN everywhere for a model without a vocabulary head."""
    if loaded.family.head:
        return nll_per_position(loaded.model, ids)[0].double().numpy()
    with torch.no_grad():
        loaded.model(ids)
    return np.full(ids.shape[1], np.nan)


def run_pass(
    loaded: LoadedModel, scheme: Scheme, plan: Plan, tick: Callable[[float], None], spill: Path | None = None
) -> Pass:
    """Run the model under a scheme, recording and scoring in the same pass.

    Several samples run one after another, and what is kept is their mean at every position. `tick` is told shares of a
    sample's pass as they are done. What a single sample gives goes to files in `spill`, if there is one, as it comes.
    """
    began = time.perf_counter()
    values: dict[Place, NDArray[np.float32]] = {}
    each = []
    settings = plan.chosen
    for row in plan.ids.split(1):
        with (
            apply_scheme(
                loaded.model,
                scheme,
                backend=settings.backend,
                chunk_batch=settings.chunk_batch,
                weave_local=settings.weave_local,
            ),
            record(loaded.model, plan.sites, plan.layers, plan.dims, spill) as recording,
            layer_progress(loaded.family.layer_list(loaded.model), tick, plan.length),
        ):
            each.append(_score(loaded, row.to(loaded.device)))
        for place, array in _collect(recording, plan, scheme.spec).items():
            share = array if len(plan.ids) == 1 else array / np.float32(len(plan.ids))
            values[place] = values[place] + share if place in values else share
    scores = np.stack(each)
    if loaded.family.head and not np.isfinite(scores[:, 1:]).all():
        raise not_finite(scheme.spec)
    return Pass(values, scores, time.perf_counter() - began)


def run_probe(
    loaded: LoadedModel,
    settings: RunSettings,
    out: Path,
    *,
    force: bool = False,
    progress: Progress = _silent,
    store: PassStore | None = None,
) -> Run:
    """Probe a loaded model and write the run folder.

    The model as trained (`origin`) is always run, since every threshold is calibrated on it; it is among the
    verdicts only if it was asked for.

    Args:
        loaded: from `load_model`.
        settings: what to record and how to judge.
        out: the run folder to make.
        force: replace a run at `out`.
        progress: told how far it is.
        store: keeps the passes that are done until the run is whole, and has those of an interrupted one.

    Raises:
        ProbeError: bad settings, an unusable place, NaN in the hidden states. Nothing is left at `out` then.
    """
    plan = resolve(loaded, settings)
    torch.manual_seed(settings.seed)
    with new_run_folder(out, force=force) as part:
        store = store or PassStore(part / "passes", {})
        with store.opened(_made_with(loaded, plan)):
            passes = _all_passes(loaded, plan, progress, store)
            info = _info(loaded, plan, passes)
            recorded = Recorded(
                _joined(passes), _nll(passes), plan.dims, loaded.window, info.vocabulary, info.input.unigram
            )
            judged = (judge(recorded, info.shown, name, settings.detection) for name in kept_detectors(plan.detector))
            if len(plan.ids) > 1:
                write_trace(part / SAMPLES, {spec: one.each for spec, one in passes.items()})
            _write(part, info, recorded, [verdict for verdicts in judged for verdict in verdicts])
        draw_figure(part)
        store.drop()
        write_sums(part)
    return Run(out.expanduser().absolute())


def draw_figure(part: Path) -> None:
    """Write `figure.html`; a machine without plotly records all the same, and draws nothing."""
    try:
        from probe.figures.page import share_script, write_page
        from probe.figures.thresholds import threshold_figure
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "plotly":
            raise
        return
    run = Run(part)
    write_page(threshold_figure(run), part / "figure.html", f"{escape(run.info.model)} past its trained window")
    share_script(part.parent)


def _joined(passes: dict[str, Pass]) -> dict[str, NDArray[np.float32]]:
    """Recorded values of all schemes by `Place.key`."""
    return {place.key: array for one in passes.values() for place, array in one.values.items()}


def _nll(passes: dict[str, Pass]) -> dict[str, NDArray[np.float64]]:
    return {spec: one.nll for spec, one in passes.items()}


def _made_with(loaded: LoadedModel, plan: Plan) -> dict[str, Any]:
    """What a pass depends on beside its scheme."""
    return made_by(loaded) | {
        "input": plan.input.record().sha256,
        "samples": len(plan.ids),
        "sites": list(plan.sites),
        "layers": list(plan.layers),
        "dims": list(plan.dims),
        "backend": plan.chosen.backend,
        "weave_local": plan.chosen.weave_local,
    }


def _all_passes(loaded: LoadedModel, plan: Plan, progress: Progress, store: PassStore) -> dict[str, Pass]:
    total, done = len(plan.schemes) * len(plan.ids), 0.0
    passes = {}
    for scheme in plan.schemes:
        kept = store.take(scheme.spec)
        if kept is not None:
            passes[scheme.spec] = kept
            done += len(plan.ids)
            continue

        def tick(share: float, spec: str = scheme.spec) -> None:
            nonlocal done
            done += share
            progress(min(1.0, done / total), spec)

        with store.spill() as folder:
            single = folder if len(plan.ids) == 1 else None
            passes[scheme.spec] = store.keep(scheme.spec, run_pass(loaded, scheme, plan, tick, single))
    return passes


def _scheme_record(scheme: Scheme, length: int, seconds: float) -> SchemeRecord:
    """What a scheme was: its parameters, the weave's as they came out for this length, and where the input was cut."""
    weave = scheme.weave_at(length).parameters()
    return SchemeRecord(scheme.parameters, weave, tuple(scheme.borders_at(length)), round(seconds, 3))


def _vocabulary(loaded: LoadedModel) -> int | None:
    """Tokens that a uniform guess would be among; None for a model that guesses none."""
    return int(loaded.model.get_input_embeddings().num_embeddings) if loaded.family.head else None


def _info(loaded: LoadedModel, plan: Plan, passes: dict[str, Pass]) -> RunInfo:
    settings, length = plan.chosen, plan.length
    used = settings.detection.at(loaded.window)
    return RunInfo(
        model=loaded.name,
        family=loaded.family.name,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        window=loaded.window,
        vocabulary=_vocabulary(loaded),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=str(loaded.device),
        layers=plan.layers,
        dims=plan.dims,
        sites=plan.sites,
        schemes={one.spec: _scheme_record(one, length, passes[one.spec].seconds) for one in plan.schemes},
        shown=tuple(scheme.spec for scheme in plan.asked),
        input=plan.input.record(),
        detector=plan.detector,
        detection=DetectionRecord(
            **asdict(settings.detection), burn_in_used=used.burn_in or 0, run_length_used=used.run_length or 0
        ),
        backend=settings.backend,
        chunk_batch=settings.chunk_batch,
        seed=settings.seed,
        provenance=Provenance.now(),
        local_layers=() if settings.weave_local else tuple(local_layers(loaded.model, loaded.window)),
    )


def _write(part: Path, info: RunInfo, recorded: Recorded, verdicts: Sequence[Verdict]) -> None:
    write_json(part / "run.json", info.to_json())
    write_trace(part / "trace.safetensors", recorded.trace)
    positions = np.arange(1, info.input.length)
    write_table(
        part / "nll.parquet",
        {
            "scheme": [spec for spec in recorded.nll for _ in positions],
            "position": np.tile(positions, len(recorded.nll)),
            "nll": np.concatenate([nll[1:] for nll in recorded.nll.values()]),
        },
    )
    write_verdicts(part, verdicts)


def write_verdicts(part: Path, verdicts: Sequence[Verdict]) -> None:
    """Write the table of verdicts of every detector into a run folder."""
    names = [one.name for one in fields(Verdict)]
    write_table(part / "thresholds.parquet", {name: [getattr(verdict, name) for verdict in verdicts] for name in names})
