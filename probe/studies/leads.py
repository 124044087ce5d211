"""Does a signal say before the likelihood does, while one long text is read, that the model is failing?

A model reads texts up to some length under a scheme. The truth is paired: the likelihood of each token less what the
model as trained gives the same token under a context cut to its window, so that a harder passage is no failure; it
fails where that lastingly exceeds 0.2 nats. Every signal is reduced to one course: the mean departure of its units from
what they do inside the window, in robust standard deviations, or (a joint detector) all of them as one vector.
Detectors are calibrated on the trained model inside its window. Texts that are drawn again say how sure each position
is, and the lead: how many tokens before the likelihood a detector speaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from probe.defaults import usual_length
from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, make_scheme, resolve_schemes
from probe.seam.apply import check_scheme
from probe.signals.collect import HIDDEN, collect, positional_values
from probe.signals.reference import LayerReference, fit_reference
from probe.signals.scores import MOST, Inside, inside_of
from probe.signals.table import DISTANCE, SIGNALS, PositionalSignal
from probe.studies.passes import made_by
from probe.studies.pieces import PieceStore
from probe.tasks.inputs import Ids, draw_input, unigram_nats
from probe.tasks.scoring import windowed_nll
from probe.thresholds.detectors import DETECTORS, Detection, DetectorSettings, Threshold, Untold, detect
from probe.thresholds.measured import NLL_FLOOR, best_guess, no_better, smooth_nll

TRUTH, PAIRED = "truth", "paired likelihood"
"""Signal and detector of the rows that say where the likelihood fails."""
DIMS = "dims, half of them"
"""The paper's way: raw values of each layer's first dimensions, failing where half of them do."""
FIRST_DIMS = 20
_NLL = "likelihood"
RESAMPLES = 100
_PER_RUN = 4
"""Blocks of a run length."""
Values = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class LeadRow:
    """What a detector says of a signal's course, beside where the likelihood fails.

    Attributes:
        scheme: its text.
        signal: a name in `SIGNALS`; "truth" for the likelihood itself; "dims, half of them" for the paper's way.
        detector: of `DETECTORS`; "paired likelihood" for the truth.
        position: token from which it fails; None for no failure up to the length, or where `untold` says why not.
        low: lower end of its 95% interval; None where less than 2.5% of the resamples fail, or there is no interval.
        high: upper end; None where more than 2.5% do not fail, or there is no interval.
        failing: share of resamples that fail; None where there is no interval.
        lead: tokens by which it comes before the likelihood fails, negative for after; None where either does not fail.
        lead_low: lower end of its 95% interval over the resamples in which both fail; None likewise.
        lead_high: upper end.
        untold: why nothing can be said; None where it can.
        no_interval: why there is no interval; None where there is one.
    """

    scheme: str
    signal: str
    detector: str
    position: int | None = None
    low: int | None = None
    high: int | None = None
    failing: float | None = None
    lead: int | None = None
    lead_low: int | None = None
    lead_high: int | None = None
    untold: str | None = None
    no_interval: str | None = None


@dataclass(frozen=True)
class Found:
    """Positions of a failure: of all texts, and of every resample; infinity for none."""

    whole: float
    drawn: NDArray[np.float64] | None
    why: str | None = None

    def interval(self) -> dict[str, Any]:
        """The fields of a row that say where, and how sure that is."""
        told: dict[str, Any] = {"position": _position(self.whole), "no_interval": self.why}
        if self.drawn is None:
            return told
        at = np.sort(self.drawn)
        low, high = (at[min(len(at) - 1, int(share * len(at)))] for share in (0.025, 0.975))
        return told | {"low": _position(low), "high": _position(high), "failing": float(np.isfinite(at).mean())}

    def lead(self, truth: Found) -> dict[str, Any]:
        """The fields of a row that say how long before the truth this comes."""
        if not (math.isfinite(self.whole) and math.isfinite(truth.whole)):
            return {}
        told: dict[str, Any] = {"lead": int(truth.whole - self.whole)}
        if self.drawn is None or truth.drawn is None:
            return told
        both = np.isfinite(self.drawn) & np.isfinite(truth.drawn)
        if not both.any():
            return told
        low, high = np.quantile(truth.drawn[both] - self.drawn[both], (0.025, 0.975))
        return told | {"lead_low": round(float(low)), "lead_high": round(float(high))}


def _position(at: float) -> int | None:
    return int(at) if math.isfinite(at) else None


def _filled(course: Float[np.ndarray, blocks * units]) -> NDArray[np.float64]:
    """A course whose blocks without a value take what lies between their neighbours; units without any are left out."""
    flat = course.reshape(len(course), -1)
    flat = flat[:, np.isfinite(flat).any(0)].copy()
    at = np.arange(len(flat))
    for unit in np.flatnonzero(~np.isfinite(flat).all(0)):
        known = np.isfinite(flat[:, unit])
        flat[:, unit] = np.interp(at, at[known], flat[known, unit])
    return flat if course.ndim > 1 else flat[:, 0]


def _mean(values: NDArray[np.float32], texts: NDArray[np.int64]) -> Float[np.ndarray, "blocks units"]:
    """Mean over some texts, of what is there."""
    chosen = values if len(values) == 1 else values[texts]
    known = np.isfinite(chosen)
    counts = known.sum(0)
    sums = np.where(known, chosen, 0).sum(0, dtype=np.float64)
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return mean.reshape(-1, mean.shape[-1]).T


@dataclass(frozen=True)
class _Course:
    """From a signal's values to what a detector judges.

    Attributes:
        inside: where its units lie inside the window.
        joint: whether units stay apart.
    """

    inside: Inside
    joint: bool

    def of(self, values: NDArray[np.float32], texts: NDArray[np.int64]) -> NDArray[np.float64]:
        """[blocks], or [blocks, units] where they stay apart."""
        mean = _mean(values, texts)
        if self.joint:
            return _filled(mean)
        median, scale = self.inside.median.ravel(), self.inside.scale.ravel()
        away = np.minimum(np.abs(mean - median) / scale, MOST)
        known = np.isfinite(away)
        pooled = np.where(known, away, 0).sum(1) / np.maximum(known.sum(1), 1)
        return _filled(np.where(known.any(1), pooled, np.nan))


@dataclass
class Leads:
    """The study of one model, under way: `rows` are those that are done.

    Attributes:
        loaded: a model with a vocabulary head.
        schemes: text, objects or both; they are resolved to objects.
        length: tokens of a text; None for `usual_length`.
        input: text, as `draw_input` takes it, or token ids.
        samples: texts.
        seed: draws them, and the resamples.
        signals: names in `SIGNALS`; None for all but the truth.
        detectors: names in `DETECTORS`; None for all.
        resamples: how often texts are drawn again.
        store: keeps the passes that are done.
        rows: what is done.
    """

    loaded: LoadedModel
    schemes: Any = ORIGIN
    length: int | None = None
    input: str | Ids = "documents"
    samples: int = 8
    seed: int = 0
    signals: Sequence[str] | None = None
    detectors: Sequence[str] | None = None
    resamples: int = RESAMPLES
    store: PieceStore = field(default_factory=PieceStore)
    rows: list[LeadRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything before anything runs.

        Raises:
            ProbeError: a length that leaves nothing past the window, an unknown signal or detector, a model without a
                head, a scheme that does not fit the model.
        """
        window = self.loaded.window
        if not self.loaded.family.head:
            raise FieldError("model", hint="has no vocabulary head, so that no failure can be measured")
        self.length = usual_length(window) if self.length is None else self.length
        least = window + 2 * DetectorSettings().run_at(window)
        if self.length < least:
            raise FieldError("length", f"at least {least}, the window and two run lengths", self.length)
        if self.resamples < 1:
            raise FieldError("resamples", "at least 1", self.resamples)
        names = tuple(name for name in SIGNALS if name != "nll") if self.signals is None else tuple(self.signals)
        self.signals = names
        for name in names:
            SIGNALS[name]
        self.detectors = tuple(DETECTORS) if self.detectors is None else tuple(self.detectors)
        for name in self.detectors:
            DETECTORS[name]
        self.schemes = resolve_schemes(self.schemes, window)
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
            scheme.weave_at(self.length)
        run = DetectorSettings().run_at(window)
        self.block = max(1, run // _PER_RUN)
        self._drawn = draw_input(self.loaded, self.input, self.length, self.samples, self.seed)

    @property
    def total(self) -> int:
        """Lines that `run` will say."""
        return len(self._passes()) + 1

    def _passes(self) -> list[Scheme]:
        """The schemes to pass through: the trained one first, since all are judged by it."""
        return [make_scheme(ORIGIN, self.loaded.window), *(one for one in self.schemes if one.spec != ORIGIN)]

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each pass was."""
        made_with = self._settings() | made_by(self.loaded) | {"sha256": self._drawn.record().sha256}
        del made_with["detectors"], made_with["resamples"]  # the passes do not depend on them
        with self.store.opened(made_with):
            window = self.store.once("window", self._windowed)[_NLL]
            yield "contexts cut to the window"
            known = _Judging(self, window)
            for scheme in self._passes():
                values = self.store.once(scheme.spec, partial(self._measured, scheme))
                if scheme.spec == ORIGIN:
                    known.calibrate(values)
                if any(scheme.spec == one.spec for one in self.schemes):
                    self.rows.extend(known.rows(scheme.spec, values))
                yield scheme.spec

    @cached_property
    def _reference(self) -> Sequence[LayerReference]:
        """What the distance goes by; fitted when a pass first needs it, since those that are kept do not."""
        if DISTANCE not in (self.signals or ()):
            return ()
        window = self.loaded.window
        return fit_reference(self.loaded, self._drawn.ids[:, :window], window // 8)

    def _windowed(self) -> dict[str, NDArray[Any]]:
        return {_NLL: windowed_nll(self.loaded, self._drawn.ids).numpy()}

    def _measured(self, scheme: Scheme) -> dict[str, NDArray[Any]]:
        """Signals of a pass, [samples, layers, units, blocks], and its likelihood."""
        made_of_hidden = any(isinstance(SIGNALS[name], PositionalSignal) for name in self.signals or ())
        names = tuple(dict.fromkeys((*(self.signals or ()), *([HIDDEN] if made_of_hidden else []))))
        found = collect(self.loaded, scheme, self._drawn.ids, names, self.block, self._reference)
        return found.values | {_NLL: found.nll}

    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.loaded.name, "window": self.loaded.window, "length": self.length,
            "schemes": [scheme.spec for scheme in self.schemes], "input": self._drawn.spec,
            "samples": len(self._drawn.ids), "seed": self.seed, "block": self.block,
            "signals": list(self.signals or ()), "detectors": list(self.detectors or ()),
            "resamples": self.resamples, "floor": NLL_FLOOR,
        }  # fmt: skip

    def result(self, complete: bool) -> Result[LeadRow]:
        """The rows so far, with what they were made with."""
        return Result("leads", self._settings(), Provenance.now(), Records(self.rows), complete)


class _Judging:
    """Judges courses of signals, calibrated on the model as trained."""

    def __init__(self, study: Leads, window: NDArray[np.float32]) -> None:
        self.study, self.cut = study, window.astype(np.float64)
        self.block = study.block
        # Everything is in blocks from here on; whole ones, so that none is half inside the window.
        self.window = study.loaded.window // self.block
        self.settings = DetectorSettings(max(1, self.window // 8), _PER_RUN)
        texts = len(window)
        draws = np.random.default_rng(study.seed).integers(texts, size=(study.resamples, texts))
        self.all, self.draws = np.arange(texts), draws if texts > 1 else None
        self.untold: str | None = None
        self.trained: dict[str, NDArray[np.float32]] = {}
        self.inside: dict[str, Inside] = {}

    def calibrate(self, values: Values) -> None:
        """Take the trained model's values as what is known."""
        start = self.settings.burn_in_at(self.window)
        known = values.get(HIDDEN)
        self.parts = None if known is None else known[0, ..., start : self.window]
        self.trained = self._signals(values)
        self.inside = {name: inside_of(one[..., : self.window], start) for name, one in self.trained.items()}
        vocabulary = getattr(self.study.loaded.model.config, "vocab_size", None)
        level = float(self.cut[:, start * self.block : self.study.loaded.window].mean())
        found = no_better(level, best_guess(vocabulary, unigram_nats(self.study._drawn.ids)))
        self.untold = None if found is None else found.reason

    def _signals(self, values: Values) -> dict[str, NDArray[np.float32]]:
        """The signals asked for, the positional ones made of the mean over texts; whole blocks only."""
        whole = {name: one for name, one in values.items() if name in SIGNALS}
        if self.parts is not None and HIDDEN in whole:
            whole |= positional_values(np.asarray(whole[HIDDEN][0]), np.asarray(self.parts))
        blocks = (self.study.length or 0) // self.block
        return {name: one[..., :blocks] for name, one in whole.items() if name in (self.study.signals or ())}

    def _resampled(self, judge: Callable[[NDArray[np.int64]], float], why: str | None = None) -> Found:
        """A judgement of all texts, and of texts drawn again unless there is a reason against it."""
        whole = judge(self.all)
        if self.draws is None:
            why = "there is one text"
        drawn = None if why or self.draws is None else np.array([judge(texts) for texts in self.draws])
        return Found(whole, drawn, why)

    def truth(self, nll: NDArray[np.float64]) -> Found:
        """Where the paired likelihood fails."""
        rise = nll.astype(np.float64) - self.cut
        rise[:, 0] = 0.0
        blocks = rise.shape[1] // self.block
        means = rise[:, : blocks * self.block].reshape(len(rise), blocks, self.block).mean(-1)
        start = self.settings.burn_in_at(self.window)
        bound = Threshold(NLL_FLOOR, "above", 1.0, start, _PER_RUN)
        return self._resampled(lambda texts: self._at(bound.judge(smooth_nll(means[texts].mean(0), _PER_RUN))))

    def _at(self, found: Detection | Untold) -> float:
        if isinstance(found, Untold) or found.position is None:
            return math.inf
        return float(found.position * self.block)

    def _detected(self, detector: str, signal: str, values: NDArray[np.float32]) -> Found:
        """Where a detector says that a signal fails."""
        course = _Course(self.inside[signal], DETECTORS[detector].joint)
        trained = self.trained[signal]

        def judge(texts: NDArray[np.int64]) -> float:
            known, mine = course.of(trained, texts), course.of(values, texts)
            return self._at(detect(detector, known, mine, self.window, self.settings))

        alone = len(values) == 1 and len(self.all) > 1
        return self._resampled(judge, "only its mean over texts is kept" if alone else None)

    def _half_of_dims(self, detector: str, values: NDArray[np.float32]) -> Found:
        """Where half of the first dimensions of all layers have failed, each judged by itself."""
        mine, known = (one[0, :, :FIRST_DIMS].reshape(-1, one.shape[-1]) for one in (values, self.trained[HIDDEN]))
        at = sorted(
            self._at(detect(detector, one.astype(np.float64), other.astype(np.float64), self.window, self.settings))
            for one, other in zip(known, mine, strict=True)
        )
        return Found(at[len(at) // 2], None, "only the mean over texts is kept")

    def rows(self, scheme: str, values: Values) -> Iterator[LeadRow]:
        """The truth, then every signal under every detector."""
        truth = self.truth(np.asarray(values[_NLL]))
        if self.untold is not None:
            yield LeadRow(scheme, TRUTH, PAIRED, untold=self.untold)
            truth = Found(math.inf, None)
        else:
            yield LeadRow(scheme, TRUTH, PAIRED, **truth.interval())
        signals = self._signals(values)
        for detector in self.study.detectors or ():
            for name, one in signals.items():
                yield self._row(scheme, name, detector, self._detected(detector, name, one), truth)
            if HIDDEN in signals and not DETECTORS[detector].joint:
                yield self._row(scheme, DIMS, detector, self._half_of_dims(detector, signals[HIDDEN]), truth)

    def _row(self, scheme: str, signal: str, detector: str, found: Found, truth: Found) -> LeadRow:
        return LeadRow(scheme, signal, detector, **found.interval(), **found.lead(truth))


@dataclass(frozen=True)
class LeadSummary:
    """A signal under a detector, over models, schemes and texts.

    Attributes:
        signal: its name.
        detector: its name.
        pairs: (model, input, scheme) in which the truth can be told.
        failing: how many of them fail.
        hits: failing ones in which it speaks.
        false_alarms: those that hold, in which it speaks.
        early: failing ones in which it speaks no later than the likelihood.
        lead: median lead over the hits, tokens by windows; None without one.
        octaves: median |log2| of its position over the measured one, over the hits; None without one.
        surely_early: hits whose whole 95% interval of the lead is 0 or above; None where no hit has an interval.
    """

    signal: str
    detector: str
    pairs: int
    failing: int
    hits: int
    false_alarms: int
    early: int
    lead: float | None
    octaves: float | None
    surely_early: int | None


CHOSEN = "chosen on the others"


def lead_summaries(results: Sequence[Mapping[str, Any]]) -> list[LeadSummary]:
    """One per signal and detector, those with the largest share of hits less that of false alarms first; before them,
    of several models, what is the first on all *other* models, each time, judged on the model that had no say.

    Args:
        results: of `probe leads`, as `Result.to_json` has them.

    Raises:
        ProbeError: one of them is something else.
    """
    told = _told(results)
    found = sorted((_summary(signal, detector, mine) for (signal, detector), mine in told.items()), key=_order)
    return [*_chosen(results), *found]


def _chosen(results: Sequence[Mapping[str, Any]]) -> list[LeadSummary]:
    models, judged = dict.fromkeys(str(result["settings"]["model"]) for result in results), list[Judged]()
    for model in models if len(models) > 1 else ():
        mine, others = ([one for one in results if (one["settings"]["model"] == model) is own] for own in (True, False))
        ranked = sorted(((_order(_summary(*key, rows)), key) for key, rows in _told(others).items()))
        if ranked:
            judged += _told(mine).get(ranked[0][1], [])
    return [_summary(CHOSEN, "", judged)] if judged else []


Judged = tuple[LeadRow, LeadRow, int]
"""What a detector says, the truth, and the window."""


def _told(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Judged]]:
    """By signal and detector, what is said wherever the truth can be told."""
    told: dict[tuple[str, str], list[Judged]] = {}
    for result in results:
        rows, window = lead_rows(result), int(result["settings"]["window"])
        truths = {row.scheme: row for row in rows if row.signal == TRUTH and row.untold is None}
        for row in rows:
            if row.signal != TRUTH and row.scheme in truths:
                told.setdefault((row.signal, row.detector), []).append((row, truths[row.scheme], window))
    return told


def lead_rows(result: Mapping[str, Any]) -> list[LeadRow]:
    """The rows of a result.

    Raises:
        FieldError: it is no result of `probe leads`.
    """
    try:
        return [LeadRow(**row) for row in result["rows"]]
    except (KeyError, TypeError):
        raise FieldError("files", hint="expected the JSON of probe leads") from None


def _order(one: LeadSummary) -> float:
    holding = one.pairs - one.failing
    return one.false_alarms / max(1, holding) - one.hits / max(1, one.failing)


def _summary(signal: str, detector: str, mine: Sequence[Judged]) -> LeadSummary:
    failing = [(row, truth, window) for row, truth, window in mine if truth.position is not None]
    hits = [(row, truth, window) for row, truth, window in failing if row.lead is not None]
    leads = [(row.lead or 0) / window for row, _, window in hits]
    octaves = [abs(math.log2(max(1, row.position or 1) / max(1, truth.position or 1))) for row, truth, _ in hits]
    sure = [row.lead_low >= 0 for row, _, _ in hits if row.lead_low is not None]
    return LeadSummary(
        signal, detector, len(mine), len(failing), len(hits),
        sum(row.position is not None and truth.position is None for row, truth, _ in mine),
        sum(lead >= 0 for lead in leads),
        float(np.median(leads)) if leads else None, float(np.median(octaves)) if octaves else None,
        sum(sure) if sure else None,
    )  # fmt: skip
