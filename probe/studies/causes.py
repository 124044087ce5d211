"""Why does a model fail past its window: distances that it has not seen, or more keys than ever? Told apart.

Every number is a paired rise: nats per token on the last tokens of a text, less what the model as trained gives *the
same tokens* without the keys that the window does not reach. A hard passage is in both, and so is no failure.

Four things are done to those tokens. Under the scheme at the long length: the whole rise. With every distance folded
back into the window and all the keys there: what more keys do. In a window of text whose middle is left out, so that
the first tokens lie as far away as in the long input: what the distances do. In a window of text whose first tokens
count several times, each at its own place: what more keys do. The last two are predictions, for any length at the cost
of a short pass: the long input is never run for them. The first of them is compared with the same text without those
first tokens, so that keys that merely go unseen (ALiBi's far ones, or those that a window drops) count as no harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor

from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, make_scheme, resolve_schemes
from probe.schemes.copies import with_copies
from probe.schemes.cut_out import folded, without_middle
from probe.seam.apply import check_scheme
from probe.studies.passes import made_by
from probe.studies.pieces import PieceStore
from probe.tasks.documents import document_batch
from probe.tasks.encoding import first_token
from probe.tasks.nll import not_finite
from probe.tasks.scoring import heldout_nll
from probe.text import lengths_at
from probe.thresholds.measured import NLL_FLOOR

GAP, COPIES = "distances, predicted", "keys, predicted"
KEYS, WHOLE = "keys", "all"
BLOCK = 64
"""Tokens whose mean is one observation: those that stand together are alike."""
RESAMPLES = 2000
SHARES = (1.125, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
"""Lengths, in windows, at which distances are tried on the way to the one that is asked for."""


@dataclass(frozen=True)
class CauseRow:
    """A rise under a scheme at a length, from one cause or from all.

    Attributes:
        scheme: its text.
        length: tokens of the long input.
        cause: "all", measured on the long input; "keys", the same with no distance beyond the window; "distances,
            predicted", from a window of text with a gap in its positions; "keys, predicted", from one whose first
            tokens count several times.
        rise: nats per token, paired with the trained model in its window; None where that could not be told.
        low: lower end of its 95% interval, from resampled blocks of 64 tokens.
        high: upper end.
        untold: why there is no number.
    """

    scheme: str
    length: int
    cause: str
    rise: float | None = None
    low: float | None = None
    high: float | None = None
    untold: str | None = None

    @property
    def fails(self) -> bool:
        """Whether the rise is a failure: above 0.2 nats with its whole interval."""
        return self.low is not None and self.low > NLL_FLOOR


def paired_interval(
    differences: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Mean of paired differences with a 95% percentile bootstrap interval over blocks of `BLOCK` tokens.

    Args:
        differences: [samples, tokens], nats.
        seed: of the resampling.
        resamples: how many.

    Returns:
        (mean, low, high).
    """
    blocks = np.concatenate([
        np.array([part.mean() for part in np.array_split(row, max(1, len(row) // BLOCK))]) for row in differences
    ])  # fmt: skip
    drawn = np.random.default_rng(seed).integers(len(blocks), size=(resamples, len(blocks)))
    low, high = np.quantile(blocks[drawn].mean(1), (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)


def lengths_up_to(window: int, length: int) -> tuple[int, ...]:
    """Lengths past the window at which distances are tried, the last one the length asked for."""
    return (*(round(share * window) for share in SHARES if share * window < length), length)


def gap_for(window: int, length: int) -> tuple[int, int]:
    """(first token behind the gap, tokens that are missing) for a window of text that stands for `length` tokens.

    As many keys lie past the window as in the long input, up to half of them; the gap is what the length is more. (In
    several stretches over the long input, in place of one at its beginning, the far keys predict worse: see the docs.)
    """
    gap = length - window
    return max(1, min(gap, window // 2)), gap


def copies_for(window: int, length: int) -> tuple[int, int]:
    """(tokens that count several times, how often) for a window of text that stands for `length` tokens in keys."""
    at, more = gap_for(window, length)
    at = max(2, at)
    return at, 1 + max(1, round(more / (at - 1)))


def keys_seen(scheme: Scheme, length: int) -> int:
    """Keys that the last query of an input sees."""
    sees = scheme.visibility_at(length).sees(torch.tensor(length - 1), torch.arange(length))
    return int(torch.as_tensor(sees).sum())


def scheme_with_keys(loaded: LoadedModel, scheme: Scheme, length: int) -> tuple[Scheme | None, str]:
    """The scheme under which a window of text weighs as many keys as an input of `length` tokens; or None, and why."""
    if getattr(loaded.model.config, "attn_logit_softcapping", None):
        return None, "scores are soft-capped, and no kernel for them takes a key several times"
    if keys_seen(scheme, length) <= loaded.window:
        return scheme, ""
    why = "not every query sees all that came before it, so that there is no one number of keys"
    return with_copies(scheme, *copies_for(loaded.window, length)), why


def without_first(loaded: LoadedModel, ids: Int[Tensor, "samples length"], at: int) -> Int[Tensor, "samples rest"]:
    """Texts from token `at` on, behind what the tokenizer puts first."""
    head = len(first_token(loaded.tokenizer, loaded.model.config).ids)
    return torch.cat((ids[:, :head], ids[:, max(at, head) :]), dim=1)


def ending(loaded: LoadedModel, ids: Int[Tensor, "samples whole"], length: int) -> Int[Tensor, "samples length"]:
    """The last tokens of texts, behind what the tokenizer puts first: the same end at every length."""
    head = len(first_token(loaded.tokenizer, loaded.model.config).ids)
    return torch.cat((ids[:, :head], ids[:, ids.shape[1] - length + head :]), 1)


def tail_of(tail: int | None, window: int) -> int:
    """Last tokens that a rise is a mean over: those asked for, or a quarter of the window.

    Raises:
        FieldError: none, or more than half of the window.
    """
    tail = max(1, window // 4) if tail is None else tail
    if not 1 <= tail <= window // 2:
        raise FieldError("tail", f"1 to {window // 2}, half of the window", tail)
    return tail


def tail_nll(
    loaded: LoadedModel, scheme: Scheme, ids: Int[Tensor, "samples length"], tail: int
) -> Float[Tensor, "samples tail"]:
    """NLL of the last tokens of texts under a scheme, float64 nats.

    Raises:
        ProbeError: it is NaN or infinite.
    """
    found = heldout_nll(loaded, scheme, ids)[:, -tail:].double()
    if not bool(found.isfinite().all()):
        raise not_finite(scheme.spec)
    return found


def kept_tail(
    store: PieceStore, key: str, loaded: LoadedModel, scheme: Scheme, ids: Int[Tensor, "samples length"], tail: int
) -> Float[Tensor, "samples tail"]:
    """`tail_nll` as a store has it, or measured now.

    Raises:
        ProbeError: as `tail_nll`.
    """
    found = store.once(key, lambda: {"tail": tail_nll(loaded, scheme, ids, tail).numpy()})
    return torch.from_numpy(np.array(found["tail"]))


@dataclass
class Causes:
    """The study of one model, under way: `rows` are those that are done.

    Attributes:
        loaded: the model.
        schemes: text, objects or both; they are resolved to objects.
        length: tokens of the longest input; None for the longest of `lengths`, or 2M.
        samples: texts.
        seed: draws where they end.
        measure: longest input that is really run, to compare with, tokens; 0 for none, so that nothing longer than the
            window is; None for all.
        tail: last tokens that the rise is a mean over; None for a quarter of the window.
        lengths: tokens, or text such as "1.5M"; None for those of `lengths_up_to`; measured are all of them.
        store: keeps what is measured.
        rows: what is done.
    """

    loaded: LoadedModel
    schemes: Any = ORIGIN
    length: int | None = None
    samples: int = 2
    seed: int = 0
    measure: int | None = None
    tail: int | None = None
    lengths: Sequence[int | str] | None = None
    store: PieceStore = field(default_factory=PieceStore)
    rows: list[CauseRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything before anything runs.

        Raises:
            ProbeError: a length inside the window, a tail that does not fit, a scheme that does not fit the model.
        """
        window = self.loaded.window
        asked = None if self.lengths is None else lengths_at(window, self.lengths)
        if self.length is None:
            self.length = max(asked) if asked else 2 * window
        if self.length <= window:
            raise FieldError("length", f"more than the window of {window} tokens", self.length)
        if self.samples < 1:
            raise FieldError("samples", "at least 1", self.samples)
        self.tail = tail_of(self.tail, window)
        self._lengths = lengths_up_to(window, self.length) if asked is None else asked
        if not self._lengths or min(self._lengths) <= window:
            raise FieldError("lengths", f"some, all above the window of {window}", list(self._lengths))
        self.schemes = resolve_schemes(self.schemes, window)
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
            for length in self._lengths:
                scheme.weave_at(length)
        self._texts(max((window, *self.measured)))

    @property
    def measured(self) -> tuple[int, ...]:
        """The lengths that are really run."""
        return tuple(length for length in self._lengths if self.measure is None or length <= self.measure)

    @property
    def total(self) -> int:
        """Rows that there will be."""
        return 2 * len(self.schemes) * (len(self._lengths) + len(self.measured))

    def _texts(self, length: int) -> Int[Tensor, "samples length"]:
        return document_batch(self.loaded, length, self.samples, self.seed)

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each one was."""
        with self.store.opened(self._settings() | made_by(self.loaded)):
            yield from self._run()

    def _run(self) -> Iterator[str]:
        window = self.loaded.window
        short = self._texts(window)
        trained = make_scheme(ORIGIN, window)
        base = self._tails("window", trained, short)
        without: dict[int, Tensor] = {}  # many lengths move the same tokens away
        for length in self._lengths:
            at, gap = gap_for(window, length)
            if at not in without:
                without[at] = self._tails(f"without {at}", trained, without_first(self.loaded, short, at))
            alone = without[at]
            for scheme in self.schemes:
                moved = self._tails(f"{GAP} {length} {scheme.spec}", without_middle(scheme, at, gap), short)
                self._add(scheme, length, GAP, moved, alone)
                yield f"{scheme.spec} {length} with a gap"
                self._add_copies(scheme, length, short, base)
                yield f"{scheme.spec} {length} with copies"
        for length in self.measured:
            ids = self._texts(length)
            for scheme in self.schemes:
                whole = self._tails(f"{WHOLE} {length} {scheme.spec}", scheme, ids)
                self._add(scheme, length, WHOLE, whole, base)
                yield f"{scheme.spec} {length}"
                self._add_keys(scheme, ids, whole, base)
                yield f"{scheme.spec} {length} folded"

    def _add_copies(self, scheme: Scheme, length: int, short: Tensor, base: Tensor) -> None:
        copied, why = scheme_with_keys(self.loaded, scheme, length)
        if copied is None:
            self.rows.append(CauseRow(scheme.spec, length, COPIES, untold=why))
        else:
            found = self._tails(f"{COPIES} {length} {scheme.spec}", copied, short)
            self._add(scheme, length, COPIES, found, base)

    def _add_keys(self, scheme: Scheme, ids: Tensor, whole: Tensor, base: Tensor) -> None:
        length = ids.shape[1]
        same = folded(scheme, length)
        if same is None:
            why = "its weave goes past the window by itself, so that there is no one way to fold it back"
            self.rows.append(CauseRow(scheme.spec, length, KEYS, untold=why))
            return
        key = f"{KEYS} {length} {scheme.spec}"
        self._add(scheme, length, KEYS, whole if same is scheme else self._tails(key, same, ids), base)

    def _add(self, scheme: Scheme, length: int, cause: str, values: Tensor, base: Tensor) -> None:
        rise, low, high = paired_interval((values - base).numpy(), self.seed)
        self.rows.append(CauseRow(scheme.spec, length, cause, rise, low, high))

    def _tails(self, key: str, scheme: Scheme, ids: Tensor) -> Float[Tensor, "samples tail"]:
        """NLL of the last tokens, as it was kept under that key or measured now."""
        return kept_tail(self.store, key, self.loaded, scheme, ids, self.tail or 1)

    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.loaded.name, "window": self.loaded.window,
            "schemes": [scheme.spec for scheme in self.schemes], "length": self.length,
            "lengths": list(self._lengths), "samples": self.samples, "seed": self.seed, "tail": self.tail,
            "input": "documents", "measured": list(self.measured), "floor": NLL_FLOOR,
        }  # fmt: skip

    def result(self, complete: bool) -> Result[CauseRow]:
        """The rows so far, with what they were made with."""
        return Result("causes", self._settings(), Provenance.now(), Records(self.rows), complete)


@dataclass(frozen=True)
class Split:
    """What one scheme's rows come to.

    Attributes:
        scheme: its text.
        predicted: (last length that holds, first that fails) by either cause, from passes inside the window; None for
            no failure up to the longest length.
        measured: the same of the whole rise on long inputs; None for no failure up to the longest that was run.
        predicted_at: tokens at which the larger predicted rise crosses 0.2 nats for good, between lengths by a straight
            line over the logarithm of the length; None where no failure is predicted.
        measured_at: the same of the measured one.
        distances: share of the rise at the longest length that was run which goes when distances are folded back into
            the window, 0 to 1; None where there was no failure or it could not be told.
        untold: why no failure is predicted and none can be ruled out either; None where there is no such doubt.
    """

    scheme: str
    predicted: tuple[int, int] | None
    measured: tuple[int, int] | None
    predicted_at: int | None
    measured_at: int | None
    distances: float | None
    untold: str | None


def split(rows: Sequence[CauseRow], window: int) -> list[Split]:
    """A line per scheme, in the order in which they came."""
    found = []
    for scheme in dict.fromkeys(row.scheme for row in rows):
        mine = {(row.cause, row.length): row for row in rows if row.scheme == scheme}
        ran = [length for cause, length in mine if cause == WHOLE]
        share = None
        if ran:
            last, keys = mine[WHOLE, max(ran)], mine.get((KEYS, max(ran)))
            if last.fails and last.rise is not None and keys is not None and keys.rise is not None:
                share = min(1.0, max(0.0, 1 - keys.rise / last.rise))
        predicted = failure_between(rows, scheme, (GAP, COPIES), window)
        measured = failure_between(rows, scheme, (WHOLE,), window)
        doubt = next((row.untold for (cause, _), row in mine.items() if cause == COPIES and row.untold), None)
        guesses, whole = ([row for row in mine.values() if row.cause in causes] for causes in ((GAP, COPIES), (WHOLE,)))
        found.append(
            Split(
                scheme=scheme,
                predicted=predicted,
                measured=measured,
                predicted_at=None if predicted is None else crossing(guesses, window),
                measured_at=None if measured is None else crossing(whole, window),
                distances=share,
                untold=doubt if predicted is None else None,
            )
        )
    return found


def crossing(rows: Sequence[CauseRow], window: int) -> int | None:
    """Tokens at which the larger rise of each length crosses 0.2 nats for good, or None; the window itself has none."""
    by_length: dict[int, float] = {window: 0.0}
    for row in rows:
        if row.rise is not None:
            by_length[row.length] = max(row.rise, by_length.get(row.length, -math.inf))
    points = sorted(by_length.items())
    last = max(n for n, (_, rise) in enumerate(points) if rise <= NLL_FLOOR)
    if last == len(points) - 1:
        return None
    (before, low), (after, high) = points[last : last + 2]
    share = (NLL_FLOOR - low) / (high - low)
    return round(before * math.exp(share * math.log(after / before)))


@dataclass(frozen=True)
class Agreement:
    """How well the predictions went with what was measured, over all schemes and lengths that were run.

    Attributes:
        pairs: (scheme, length) with a measurement and a prediction of both causes.
        untold: those measured whose second cause could not be predicted; they count nowhere else.
        failing: how many of them fail, measured.
        auroc: chance that a failing pair has the higher predicted rise than one that holds; None where all do, or none.
        hits: failing pairs whose failure is predicted.
        false_alarms: pairs that hold and whose failure is predicted.
        median_octaves: median |log2| of the ratio of `predicted_at` to `measured_at` over the schemes that have both;
            None where there is none.
    """

    pairs: int
    untold: int
    failing: int
    auroc: float | None
    hits: int
    false_alarms: int
    median_octaves: float | None


def agreement(rows: Sequence[CauseRow], window: int) -> Agreement:
    """Predicted against measured. The larger rise of the two causes orders, and either failing predicts a failure; ties
    in the AUROC count a half (Mann-Whitney).
    """
    both, untold = [], 0
    for whole in (row for row in rows if row.cause == WHOLE):
        guesses = [
            row
            for row in rows
            if (row.scheme, row.length) == (whole.scheme, whole.length) and row.cause in (GAP, COPIES)
        ]
        rises = [row.rise for row in guesses if row.rise is not None]
        if len(rises) < len(guesses):
            untold += 1
            continue
        rise = max(rises)
        both.append((rise, any(row.fails for row in guesses), whole.fails))
    bad, good = ([rise for rise, _, fails in both if fails == wanted] for wanted in (True, False))
    auroc = float(mannwhitneyu(bad, good).statistic) / (len(bad) * len(good)) if bad and good else None
    octaves = [
        abs(math.log2(one.predicted_at / one.measured_at))
        for one in split(rows, window)
        if one.predicted_at is not None and one.measured_at is not None
    ]
    return Agreement(
        pairs=len(both),
        untold=untold,
        failing=len(bad),
        auroc=auroc,
        hits=sum(said and fails for _, said, fails in both),
        false_alarms=sum(said and not fails for _, said, fails in both),
        median_octaves=float(np.median(octaves)) if octaves else None,
    )


def failure_between(
    rows: Sequence[CauseRow], scheme: str, causes: Sequence[str], window: int
) -> tuple[int, int] | None:
    """(last length that holds, first that fails by one of the causes and does so at every length after it), None where
    the last one holds.

    The window itself holds by definition.
    """
    mine = [row for row in rows if row.scheme == scheme and row.cause in causes]
    lengths = sorted({row.length for row in mine})
    failing = [any(row.fails for row in mine if row.length == length) for length in lengths]
    held = window
    for n, length in enumerate(lengths):
        if all(failing[n:]):
            return held, length
        held = length
    return None
