"""Every signal of a model, at every scheme and length, beside whether the model fails there.

A pair (scheme, length) is measured in two ways. Inside: passes no longer than the window stand for the long input (its
first tokens moved away by a gap, its keys counted several times), and nothing longer is run. Long: the input itself.
The truth is that of `probe causes`: the rise of the last tokens' likelihood over what the trained model gives the same
tokens inside its window, and a failure where its whole interval is above 0.2 nats.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from probe.defaults import usual_length
from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, make_scheme, resolve_schemes
from probe.schemes.cut_out import largest_position, without_middle
from probe.seam.apply import check_scheme, fitting
from probe.seam.positions import Rope
from probe.signals.collect import HIDDEN, OUTPUT, Collected, collect, positional_values
from probe.signals.reference import LayerReference, fit_reference
from probe.signals.scores import Inside, Units, auroc, inside_of, named
from probe.signals.table import DISTANCE, SIGNALS, AttentionSignal, OutputSignal, PositionalSignal
from probe.studies.causes import (
    ending,
    gap_for,
    paired_interval,
    scheme_with_keys,
    tail_nll,
    tail_of,
    without_first,
)
from probe.studies.passes import made_by
from probe.studies.pieces import PieceStore
from probe.studies.short_keys import AMONG, MOVED, among_more, key_prompts, moved_away, short_length
from probe.tasks.inputs import Ids, draw_input
from probe.tasks.passkey import PasskeySample
from probe.tasks.scoring import draw_passkeys, passkey_answers, passkey_hits
from probe.text import lengths_at
from probe.thresholds.measured import NLL_FLOOR

SHARES = (1.25, 1.5, 2.0, 4.0)
"""Lengths, in windows, that are scanned by default, as far as a run goes by default."""
_VALUE, _SIDE = "paper value", "paper side"
LAST_QUERIES = 2048
"""Last queries of the window whose attention says what it is like there; of a long window all would take minutes."""
MOST_QUERIES = 512
"""Queries whose attention is looked at in a pass, evenly spread over those that are asked about: of a long one all
would take longer than the pass itself."""
LEAST_KEYS = 0.5
"""Share of pass keys that a model must find inside its window to be asked beyond; less than this share of those that it
finds there is a failure."""
CONTROL_DIMS = 20
"""Dimensions of a layer that the controls look at, as many as the paper shows."""


@dataclass(frozen=True)
class ScanRow:
    """A scheme at a length.

    Attributes:
        scheme: its text.
        length: tokens.
        rise: nats per token, paired with the trained model inside its window.
        low: lower end of its 95% interval, from resampled blocks of 64 tokens.
        high: upper end.
        inside: scores by name, of passes no longer than the window; one that could not be had is missing.
        long: scores by name, of the pass of that length.
        inside_seconds: what the first took.
        long_seconds: what the second took.
        keys_found: pass keys found at that length; None where none were asked for.
        keys_asked: of so many.
        keys_inside: how many of as many the trained model finds in an input as long as its window.
    """

    scheme: str
    length: int
    rise: float
    low: float
    high: float
    inside: Mapping[str, float]
    long: Mapping[str, float]
    inside_seconds: float
    long_seconds: float
    keys_found: int | None = None
    keys_asked: int | None = None
    keys_inside: int | None = None

    @property
    def fails(self) -> bool:
        """Whether the rise is a failure: above 0.2 nats with its whole interval."""
        return self.low > NLL_FLOOR

    @property
    def keys_kept(self) -> float | None:
        """Pass keys found, in units of what the trained model finds inside its window; None where none were asked for,
        or where it finds less than half of them there, so that nothing could be lost.
        """
        if self.keys_found is None or not self.keys_asked or (self.keys_inside or 0) < LEAST_KEYS * self.keys_asked:
            return None
        return self.keys_found / (self.keys_inside or 1)

    @property
    def loses_keys(self) -> bool | None:
        """Whether it finds less than half of the pass keys that the trained model finds inside; None as above."""
        return None if self.keys_kept is None else self.keys_kept < LEAST_KEYS


@dataclass(frozen=True)
class UnitRank:
    """How well one unit of a signal tells the scan's failing pairs from those that hold.

    Attributes:
        signal: its name.
        layer: 1 is the first; 0 is the output.
        unit: hidden dimension or head, from 0.
        auroc: chance that it departs further in a failing pair than in one that holds.
    """

    signal: str
    layer: int
    unit: int
    auroc: float


@dataclass(frozen=True)
class ScanResult(Result[ScanRow]):
    """A scan, and the units that tell best.

    Attributes:
        units: the best of every signal, the best first; empty where all pairs fail, or none.
    """

    units: Records[UnitRank] = field(default_factory=Records)

    @override
    def to_json(self) -> dict[str, Any]:
        """As every result, and the units."""
        return super().to_json() | {"units": self.units.to_json()}


def rank_units(
    rows: Sequence[ScanRow], units: Mapping[tuple[str, int], Mapping[str, Units]], most: int = 3
) -> Records[UnitRank]:
    """The units that tell failing pairs best, at most so many of each signal."""
    fails = np.array([row.fails for row in rows], bool)
    found: list[UnitRank] = []
    for signal in units[rows[0].scheme, rows[0].length] if rows else ():
        stacked = np.nan_to_num(np.stack([units[row.scheme, row.length][signal] for row in rows]))
        scores = auroc(stacked, fails)
        if scores is None:
            return Records()
        for at in np.argsort(-scores, axis=None, kind="stable")[:most]:
            layer, unit = np.unravel_index(at, scores.shape)
            number = OUTPUT if isinstance(SIGNALS[signal], OutputSignal) else int(layer) + 1
            found.append(UnitRank(signal, number, int(unit), float(scores[layer, unit])))
    return Records(sorted(found, key=lambda one: -one.auroc))


@dataclass
class Scan:
    """The scan of one model, under way: `rows` are those that are done.

    Attributes:
        loaded: a model with a vocabulary head.
        schemes: text, objects or both; they are resolved to objects. None for every preset that fits, and log-n on
            some.
        lengths: tokens, or text such as "1.5M"; None for 1.25, 1.5, 2 and 4 windows, of long ones up to 2.
        input: text, as `draw_input` takes it, or token ids; for shorter lengths it is cut at its beginning.
        samples: texts.
        seed: draws them, and what the controls draw.
        tail: last tokens that everything is a mean over; None for a quarter of the window.
        signals: names in `SIGNALS`; None for all.
        store: keeps the pairs that are done.
        keys: pass keys that every pair is asked for besides, at that length and in short prompts that stand for it; 0
            for none.
        rows: what is done.
        units: of every pair that is done, by signal, the departures [layers, units] in the long pass.
    """

    loaded: LoadedModel
    schemes: Any = None
    lengths: Sequence[int | str] | None = None
    input: str | Ids = "documents"
    samples: int = 4
    seed: int = 0
    tail: int | None = None
    signals: Sequence[str] | None = None
    store: PieceStore = field(default_factory=PieceStore)
    keys: int = 0
    rows: list[ScanRow] = field(default_factory=list)
    units: dict[tuple[str, int], dict[str, Units]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check everything before anything runs.

        Raises:
            ProbeError: a length inside the window, a tail that does not fit, an unknown signal, a model without a head,
                a scheme that does not fit the model.
        """
        window = self.loaded.window
        if not self.loaded.family.head:
            raise FieldError("model", hint="has no vocabulary head, so that no failure can be measured")
        if self.lengths is None:
            lengths = (round(share * window) for share in SHARES)
            self.lengths = [length for length in lengths if length <= usual_length(window)]
        self._lengths = sorted(lengths_at(window, self.lengths))
        if not self._lengths or self._lengths[0] <= window:
            raise FieldError("lengths", f"some, all above the window of {window}", self._lengths)
        self.tail = tail_of(self.tail, window)
        self.signals = tuple(SIGNALS) if self.signals is None else tuple(self.signals)
        for name in self.signals:
            SIGNALS[name]
        if self.schemes is None:
            self.schemes = fitting(self.loaded.model, window, "origin+logn", "mesa+logn")
        self.schemes = resolve_schemes(self.schemes, window)
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
            for length in self._lengths:
                scheme.weave_at(length)
        if self.keys < 0:
            raise FieldError("keys", "at least 0", self.keys)
        if self.keys:
            draw_passkeys(self.loaded, window, 1, self.seed)
        self.block = max(4, window // 32)
        made_of_hidden = any(isinstance(SIGNALS[name], PositionalSignal) for name in self.signals)
        self._collected = tuple(dict.fromkeys((*self.signals, *([HIDDEN] if made_of_hidden else []))))
        self._drawn = draw_input(self.loaded, self.input, self._lengths[-1], self.samples, self.seed)

    @property
    def total(self) -> int:
        """Pairs that there will be."""
        return len(self.schemes) * len(self._lengths)

    def _ending(self, length: int) -> Int[Tensor, "samples length"]:
        """The last tokens of every text."""
        return ending(self.loaded, self._drawn.ids, length)

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each one was."""
        made_with = self._settings() | made_by(self.loaded) | {"sha256": self._drawn.record().sha256}
        with self.store.opened(made_with):
            known = _Known.of(self)
            for length in self._lengths:
                for scheme in self.schemes:
                    row, units = self._pair(known, scheme, length)
                    self.rows.append(row)
                    self.units[scheme.spec, length] = units
                    yield f"{scheme.spec} {length}"

    def _pair(self, known: _Known, scheme: Scheme, length: int) -> tuple[ScanRow, dict[str, Units]]:
        """A pair, measured or as it was."""
        key = f"{length} {scheme.spec}"
        found = self.store.take(key)
        if found is None:
            row, units = known.pair(scheme, length)
            self.store.keep(key, asdict(row), units | known.drifted(scheme, length))
            return row, units
        units = found[1]
        if _VALUE in units:  # what the schemes after it are judged by
            known.paper[length] = units.pop(_VALUE), units.pop(_SIDE)
        return ScanRow(**found[0]), units

    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.loaded.name, "window": self.loaded.window, "lengths": self._lengths,
            "schemes": [scheme.spec for scheme in self.schemes],
            "input": self._drawn.spec, "samples": len(self._drawn.ids),
            "seed": self.seed, "tail": self.tail, "block": self.block, "signals": list(self.signals or ()),
            "floor": NLL_FLOOR, **({"keys": self.keys} if self.keys else {}),
        }  # fmt: skip

    def result(self, complete: bool) -> ScanResult:
        """The rows so far, with what they were made with."""
        ranked = rank_units(self.rows, self.units)
        return ScanResult("scan", self._settings(), Provenance.now(), Records(self.rows), complete, ranked)


@dataclass
class _Keys:
    """Pass keys: what a pair finds of them, and what short prompts say of that."""

    scan: Scan
    inside: int
    moved: Sequence[PasskeySample]
    among: Sequence[PasskeySample]
    short: int

    @classmethod
    def of(cls, scan: Scan) -> _Keys:
        """What the trained model finds in inputs as long as its window; and short prompts."""
        loaded, window = scan.loaded, scan.loaded.window
        tokenizer = loaded.tokenizer_for("keys")
        short, draw = short_length(window, tokenizer), np.random.default_rng((scan.seed, window))
        moved, among = (key_prompts(tokenizer, short, scan.keys, depths, draw) for depths in (MOVED, AMONG))
        drawn = draw_passkeys(loaded, window, scan.keys, scan.seed)
        found = int(passkey_hits(loaded, make_scheme(ORIGIN, window), drawn).sum())
        return cls(scan, found, moved, among, short)

    def asked(self, row: ScanRow, scheme: Scheme) -> ScanRow:
        """A pair with its pass keys, and with nats per token of the right answer in short prompts that stand for it:
        the key moved away, the key among more, and the larger of both.
        """
        loaded, began = self.scan.loaded, time.perf_counter()
        far = passkey_answers(loaded, moved_away(scheme, self.short, row.length), self.moved)[1]
        inside = {"key moved.nats": float(far.double().mean())}
        many = among_more(scheme, self.short, row.length)
        if many is not None:
            inside["key among.nats"] = float(passkey_answers(loaded, many, self.among)[1].double().mean())
            inside["key.nats"] = max(inside.values())
        seconds = time.perf_counter() - began
        drawn = draw_passkeys(loaded, row.length, self.scan.keys, self.scan.seed)
        found = int(passkey_hits(loaded, scheme, drawn).sum())
        return replace(
            row, keys_found=found, keys_asked=self.scan.keys, keys_inside=self.inside,
            inside=dict(row.inside) | {name: round(value, 4) for name, value in inside.items()},
            inside_seconds=round(row.inside_seconds + seconds, 3),
        )  # fmt: skip


@dataclass
class _Known:
    """What is known of a model inside its window, and pairs measured with it."""

    scan: Scan
    reference: Sequence[LayerReference]
    short: Int[Tensor, "samples window"]
    trained: Collected
    inside: dict[str, Inside]
    alone: dict[int, Tensor] = field(default_factory=dict)
    paper: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)
    keys: _Keys | None = None

    @classmethod
    def of(cls, scan: Scan) -> _Known:
        """The model as trained, in its window."""
        loaded, window = scan.loaded, scan.loaded.window
        short, burn_in = scan._ending(window), window // 8
        reference = fit_reference(loaded, short, burn_in) if DISTANCE in (scan.signals or ()) else ()
        attended = max(burn_in, window - LAST_QUERIES)
        trained = collect(
            loaded, make_scheme(ORIGIN, window), short, scan._collected, scan.block, reference, attended, MOST_QUERIES
        )
        made = cls(scan, reference, short, trained, {})
        values = made.with_positional(trained)
        made.inside = {name: inside_of(one, made.start) for name, one in values.items()}
        made.keys = _Keys.of(scan) if scan.keys else None
        return made

    @property
    def start(self) -> int:
        """First block past the burn-in."""
        return -(-(self.scan.loaded.window // 8) // self.scan.block)

    def with_positional(self, found: Collected) -> dict[str, Any]:
        """The values of a pass, and the positional signals of them, as far as they were asked for."""
        whole = dict(found.values)
        if HIDDEN in whole:
            whole |= positional_values(whole[HIDDEN][0], self.trained.values[HIDDEN][0, ..., self.start :])
        return {name: values for name, values in whole.items() if name in (self.scan.signals or ())}

    @property
    def last(self) -> slice:
        """Blocks of the last tokens."""
        return slice(-max(1, (self.scan.tail or 1) // self.scan.block), None)

    def departures(self, found: Collected) -> dict[str, Units]:
        """Of every signal's units over the last tokens."""
        return {name: self.inside[name].departures(one, self.last) for name, one in self.with_positional(found).items()}

    def pair(self, scheme: Scheme, length: int) -> tuple[ScanRow, dict[str, Units]]:
        """A scheme at a length, measured; and the departures of every unit in the long pass."""
        began = time.perf_counter()
        inside = self._inside(scheme, length)
        middle = time.perf_counter()
        found = self._collected(scheme, self.scan._ending(length))
        units = self.departures(found)
        ended = time.perf_counter()
        rise, low, high = self._rise(found.nll[:, -(self.scan.tail or 1) :])
        long = named(units) | self._controls(scheme, length, found)
        row = ScanRow(
            scheme.spec, length, rise, low, high, inside, long, round(middle - began, 3), round(ended - middle, 3)
        )
        return (self.keys.asked(row, scheme) if self.keys else row), units

    def _collected(self, scheme: Scheme, ids: Tensor) -> Collected:
        """Signals of a pass, of whose attention only the last tokens are looked at."""
        scan = self.scan
        last = max(0, ids.shape[1] - (scan.tail or 1) - scan.block)
        return collect(scan.loaded, scheme, ids, scan._collected, scan.block, self.reference, last, MOST_QUERIES)

    def _rise(self, tails: NDArray[np.float64], base: Tensor | None = None) -> tuple[float, float, float]:
        """Of the last tokens' likelihoods, over the trained model's inside its window."""
        trained = self.trained.nll[:, -(self.scan.tail or 1) :] if base is None else base.numpy()
        return paired_interval(tails - trained, self.scan.seed)

    def _inside(self, scheme: Scheme, length: int) -> dict[str, float]:
        """Scores from passes no longer than the window."""
        scan, window, tail = self.scan, self.scan.loaded.window, self.scan.tail or 1
        at, gap = gap_for(window, length)
        if at not in self.alone:
            trained = make_scheme(ORIGIN, window)
            self.alone[at] = tail_nll(scan.loaded, trained, without_first(scan.loaded, self.short, at), tail)
        moved = self._collected(without_middle(scheme, at, gap), self.short)
        rise, low, _ = self._rise(moved.nll[:, -tail:], self.alone[at])
        found = named(self.departures(moved)) | {"distances": rise, "causes": rise, "causes, surely": low}
        keys, _why = scheme_with_keys(scan.loaded, scheme, length)
        if keys is not None:
            rise, low, _ = self._rise(tail_nll(scan.loaded, keys, self.short, tail).numpy())
            found |= {"keys": rise}
            found |= {"causes": max(found["causes"], rise), "causes, surely": max(found["causes, surely"], low)}
        else:
            del found["causes"], found["causes, surely"]
        return found | {"theory": self._theory(scheme, length)}

    def _theory(self, scheme: Scheme, length: int) -> float:
        """Octaves by which the largest position, as the slowest frequency sees it, is past the trained ones."""
        loaded = self.scan.loaded
        largest = largest_position(scheme.weave_at(length), length, scheme.visibility_at(length))
        kinds = loaded.family.layer_positions(loaded.model)
        rotary = next((one for one in kinds if isinstance(one, Rope)), None)
        if rotary is not None:
            half = len(rotary.inv_freq)
            largest *= float(scheme.frequencies.factors(2 * half, rotary.base, length, loaded.window)[-1])
        return math.log2(max(largest, 1.0) / (loaded.window - 1))

    def _controls(self, scheme: Scheme, length: int, found: Collected) -> dict[str, float]:
        """Scores that ought to do worse: the paper's rule on the first dimensions, random ones, rotated ones, and
        everything but attention over blocks drawn at random in place of the last ones.
        """
        if HIDDEN not in self.inside:
            return {}
        rng = np.random.default_rng((self.scan.seed, length))
        blocks = rng.integers(self.start, found.values[HIDDEN].shape[-1], -self.last.start)
        shuffled = {
            name: self.inside[name].departures(values[..., blocks], slice(None))
            for name, values in self.with_positional(found).items()
            if not isinstance(SIGNALS[name], AttentionSignal)  # of which only the last blocks are there
        }
        return (
            named(shuffled, "shuffled ") | self._dims(found, rng) | self._paper(scheme, length, found.values[HIDDEN][0])
        )

    def _dims(self, found: Collected, rng: np.random.Generator) -> dict[str, float]:
        """Mean departures of the first dimensions, of random ones, and of as many after a random rotation."""
        mine, known = found.values[HIDDEN], self.trained.values[HIDDEN]
        width, last = mine.shape[2], self.last
        chosen = min(CONTROL_DIMS, width)
        whole = self.inside[HIDDEN].departures(mine, last)
        rotation = np.linalg.qr(rng.normal(size=(width, width)))[0][:chosen].astype(np.float32)
        turned, trained = (np.einsum("dw,slwb->sldb", rotation, one) for one in (mine, known))
        return {
            "first dims.mean": float(whole[:, :chosen].mean()),
            "random dims.mean": float(whole[:, rng.permutation(width)[:chosen]].mean()),
            "rotated dims.mean": float(inside_of(trained, self.start).departures(turned, last).mean()),
        }

    def drifted(self, scheme: Scheme, length: int) -> dict[str, NDArray[np.float64]]:
        """The paper's thresholds and their sides, of the trained model; nothing of another scheme."""
        if scheme.spec != ORIGIN or length not in self.paper:
            return {}
        value, side = self.paper[length]
        return {_VALUE: value, _SIDE: side}

    def _paper(self, scheme: Scheme, length: int, hidden: NDArray[np.float32]) -> dict[str, float]:
        """Share of the first dimensions of all layers that are past the paper's threshold: the trained model's value at
        M, on the side to which it drifts in the next quarter of a window.
        """
        first = hidden[:, :CONTROL_DIMS].astype(np.float64)
        at = self.scan.loaded.window // self.scan.block
        past = first[..., at + 1 : at + 1 + max(1, at // 4)]
        if scheme.spec == ORIGIN and past.shape[-1]:  # else the input ends at M, and there is no side
            self.paper[length] = first[..., at], np.sign(np.median(past, -1) - first[..., at])
        if length not in self.paper:
            return {}
        value, side = self.paper[length]
        tail = first[..., self.last].mean(-1)
        return {"paper's rule.share": float((side * (tail - value) > 0).mean())}
