"""Which score of a scan foretells failure, on models that had no part in choosing it.

Every score orders pairs (scheme, length) of a model by how likely they are to fail. What turns it into a yes or no, a
threshold, is chosen on all *other* models, and so is the score itself where one is chosen. A model's own pairs never
say anything about themselves. Controls go through the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from probe.errors import FieldError, ProbeError, unknown
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.signals.scores import auroc
from probe.studies.scan import LEAST_KEYS, ScanRow
from probe.tasks.intervals import wilson
from probe.thresholds.measured import NLL_FLOOR

INSIDE, LONG, CONTROL = "inside", "long", "control"
TEXT, KEYS = "text", "keys"
TRUTHS = (TEXT, KEYS)
TRUTH = ("nll",)
"""Signals that are the truth itself, seen otherwise: never chosen."""
RULES: Mapping[str, float] = {"causes, surely": NLL_FLOOR, "theory": 0.0, "fails at M": 1.0, "fails at 2M": 2.0}
"""Scores whose threshold is fixed beforehand."""
EITHER = "causes, as far as told"
"""The larger rise of both causes, or that of the distances where the keys' cannot be told."""
RISES = ("distances", "keys", "causes", "causes, surely", EITHER)
"""Scores in nats, which are 0 at the window by definition."""
CALIBRATED = (
    (INSIDE, f"chosen {INSIDE}"), (INSIDE, EITHER), (LONG, f"chosen {LONG}"), (LONG, "norm.mean"),
)  # fmt: skip
"""Scores whose probabilities are held against what happened."""
EDGES = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
"""Of the bins of probability; narrow where most pairs are."""
PERMUTATIONS = 200


@dataclass(frozen=True)
class StudyRow:
    """How a score does on one model's scan; its threshold is from the other models.

    Attributes:
        score: its name.
        kind: "inside" where nothing longer than the window was run for it, "long", or "control".
        model: scanned.
        input: read.
        pairs: schemes at lengths that have the score.
        failing: how many of them fail.
        untold: pairs without the score.
        auroc: chance that a failing pair has the higher score than one that holds; None where all do, or none.
        auprc: average precision; None likewise.
        threshold: from the other models, or fixed beforehand; None where they allow none.
        hits: failing pairs at or above it.
        false_alarms: pairs that hold, at or above it.
        brier: mean squared error of the probability of failure that a logistic fit on the other models gives; None
            where they allow none.
        octaves: median |log2| of the ratio of the predicted failure length to the measured one, over schemes that have
            both; None where none has.
        schemes: how many have both.
        chosen: the score that was taken, where one was chosen on the other models.
    """

    score: str
    kind: str
    model: str
    input: str
    pairs: int
    failing: int
    untold: int
    auroc: float | None
    auprc: float | None
    threshold: float | None
    hits: int | None
    false_alarms: int | None
    brier: float | None
    octaves: float | None
    schemes: int
    chosen: str | None = None


@dataclass(frozen=True)
class CalibrationRow:
    """Pairs to which the other models give about the same probability of failure, over all scans.

    Attributes:
        score: its name.
        kind: "inside" or "long".
        low: probabilities from here.
        high: to here.
        pairs: so many.
        failing: how many of them fail.
        said: their mean probability.
        share: how many of them fail, 0 to 1.
        share_low: lower end of its 95% interval (Wilson).
        share_high: upper end.
    """

    score: str
    kind: str
    low: float
    high: float
    pairs: int
    failing: int
    said: float
    share: float
    share_low: float
    share_high: float


@dataclass(frozen=True)
class StudyResult(Result[StudyRow]):
    """A study, and whether its probabilities are what they say.

    Attributes:
        calibration: of the scores that were chosen and of those in nats.
    """

    calibration: Records[CalibrationRow] = field(default_factory=Records)

    @override
    def to_json(self) -> dict[str, Any]:
        """As every result, and the calibration."""
        return super().to_json() | {"calibration": self.calibration.to_json()}


@dataclass(frozen=True)
class Scanned:
    """A scan that was read.

    Attributes:
        model: its name.
        window: tokens.
        input: read.
        rows: its pairs.
        truth: "text", the rise of the likelihood, or "keys", pass keys that are lost.
    """

    model: str
    window: int
    input: str
    rows: Sequence[ScanRow]
    truth: str = TEXT

    def about(self, truth: str) -> Scanned:
        """The same scan by another truth: those of its pairs that have it.

        Raises:
            FieldError: an unknown truth.
        """
        if truth not in TRUTHS:
            raise unknown("truth", truth, TRUTHS)
        rows = self.rows if truth == TEXT else [row for row in self.rows if row.loses_keys is not None]
        return replace(self, rows=rows, truth=truth)

    def fails(self, row: ScanRow) -> bool:
        """Whether a pair fails."""
        return row.fails if self.truth == TEXT else bool(row.loses_keys)

    def measured(self, row: ScanRow) -> float:
        """What a failure is a large value of: nats, or the share of pass keys that is lost."""
        return row.rise if self.truth == TEXT else 1.0 - (row.keys_kept or 0.0)

    @property
    def floor(self) -> float:
        """From where on it is one."""
        return NLL_FLOOR if self.truth == TEXT else 1.0 - LEAST_KEYS

    @classmethod
    def read(cls, result: Mapping[str, Any]) -> Scanned:
        """From a result as JSON has it.

        Raises:
            ProbeError: it is no result of `probe scan`.
        """
        try:
            chosen = result["settings"]
            rows = [ScanRow(**row) for row in result["rows"]]
            return cls(chosen["model"], int(chosen["window"]), chosen["input"], rows)
        except (KeyError, TypeError, ValueError):
            raise ProbeError("expected the JSON of probe scan") from None

    def score(self, kind: str, name: str, row: ScanRow) -> float | None:
        """A score of a pair, None where it has none."""
        if kind == CONTROL and name in ("fails at M", "fails at 2M"):
            return row.length / self.window if name == "fails at 2M" else 1.0
        if kind == INSIDE and name == EITHER and "distances" in row.inside:
            return max(row.inside["distances"], row.inside.get("keys", -math.inf))
        found = (row.inside if kind == INSIDE else row.long).get(name)
        return None if found is None or not math.isfinite(found) else found


@dataclass(frozen=True)
class _Pairs:
    """Scores and truths of some scans."""

    scores: NDArray[np.float64]
    fails: NDArray[np.bool_]

    @property
    def mixed(self) -> bool:
        """Whether some fail and some hold."""
        return bool(self.fails.any()) and not bool(self.fails.all())


def _is_control(name: str) -> bool:
    return name.startswith("shuffled ") or name.split(".")[0] in (
        "first dims", "random dims", "rotated dims", "paper's rule",
    )  # fmt: skip


def score_names(scans: Sequence[Scanned]) -> list[tuple[str, str]]:
    """(kind, name) of every score that there is."""
    found: dict[tuple[str, str], None] = {}
    for scan in scans:
        for row in scan.rows:
            found |= dict.fromkeys((INSIDE, name) for name in row.inside)
            found |= dict.fromkeys((CONTROL if _is_control(name) else LONG, name) for name in row.long)
    return [*found, (INSIDE, EITHER), (CONTROL, "fails at M"), (CONTROL, "fails at 2M")]


def _pairs(scans: Sequence[Scanned], kind: str, name: str) -> _Pairs:
    found = [(scan.score(kind, name, row), scan.fails(row)) for scan in scans for row in scan.rows]
    known = [(score, fails) for score, fails in found if score is not None]
    return _Pairs(np.array([score for score, _ in known], float), np.array([fails for _, fails in known], bool))


def _auroc(pairs: _Pairs) -> float | None:
    found = auroc(pairs.scores, pairs.fails)
    return None if found is None else float(found)


def _auprc(pairs: _Pairs) -> float | None:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(pairs.fails, pairs.scores)) if pairs.mixed else None


def best_threshold(scores: NDArray[np.float64], fails: NDArray[np.bool_]) -> float | None:
    """The score from which on a failure is said, with the largest share of hits less that of false alarms (Youden);
    halfway to the next lower score. None where all fail, or none, or where no score is any better than silence.
    """
    from sklearn.metrics import roc_curve

    if not fails.any() or fails.all():
        return None
    false, true, cuts = roc_curve(fails, scores)
    cut = float(cuts[int(np.argmax(true - false))])
    if not math.isfinite(cut):  # saying nothing is best
        return None
    below = scores[scores < cut]
    return (cut + float(below.max())) / 2 if len(below) else cut


@dataclass(frozen=True)
class _Judge:
    """What the other models say of a score: from where on a failure is said, and how likely one is.

    Attributes:
        threshold: None where they allow none.
        fitted: a logistic fit; None where they allow none.
    """

    threshold: float | None
    fitted: Any

    @classmethod
    def of(cls, name: str, others: _Pairs) -> _Judge:
        """From their pairs; a rule's threshold was fixed beforehand."""
        from sklearn.linear_model import LogisticRegression

        threshold = RULES[name] if name in RULES else best_threshold(others.scores, others.fails)
        fitted = LogisticRegression(C=100.0).fit(_feature(others.scores), others.fails) if others.mixed else None
        return cls(threshold, fitted)

    def guess(self, mine: _Pairs) -> NDArray[np.float64] | None:
        """The probability of failure of every pair; None where there is none, or nobody to judge."""
        if self.fitted is None or not len(mine.scores):
            return None
        found: NDArray[np.float64] = self.fitted.predict_proba(_feature(mine.scores))[:, 1]
        return found

    def brier(self, mine: _Pairs) -> float | None:
        """Mean squared error of the probability of failure; None where there is none."""
        guess = self.guess(mine)
        return None if guess is None else float(np.square(guess - mine.fails).mean())


def _feature(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed logarithm, so that a few huge scores do not rule."""
    found: NDArray[np.float64] = (np.sign(scores) * np.log1p(np.abs(scores)))[:, None]
    return found


def failure_length(points: Sequence[tuple[int, float]], floor: float, window: int, base: float | None) -> float | None:
    """Tokens at which a score reaches the floor for good, between lengths by a straight line over the logarithm of the
    length; None where the last one does not.

    Args:
        points: (length, score), ascending.
        floor: the threshold.
        window: M.
        base: score at the window; None where nobody knows it: a score that is past the floor at the first length then
            reached it halfway there.
    """
    below = [n for n, (_, score) in enumerate(points) if score < floor]
    if not points or (below and below[-1] == len(points) - 1):
        return None
    after, high = points[below[-1] + 1 if below else 0]
    before, low = points[below[-1]] if below else (window, 2 * floor - high if base is None else base)
    share = 1.0 if high <= low else (floor - low) / (high - low)
    return before * math.exp(share * math.log(after / before))


def _octaves(scan: Scanned, kind: str, name: str, threshold: float) -> list[float]:
    """|log2| of predicted over measured failure length, of every scheme that has both."""
    found = []
    base = 0.0 if name in RISES and kind == INSIDE else None
    for scheme in dict.fromkeys(row.scheme for row in scan.rows):
        mine = sorted((row for row in scan.rows if row.scheme == scheme), key=lambda row: row.length)
        scores = [(row.length, score) for row in mine if (score := scan.score(kind, name, row)) is not None]
        predicted = failure_length(scores, threshold, scan.window, base)
        measured = failure_length([(row.length, scan.measured(row)) for row in mine], scan.floor, scan.window, 0.0)
        if predicted is not None and measured is not None:
            found.append(abs(math.log2(predicted / measured)))
    return found


@dataclass(frozen=True)
class Study:
    """Scans of several models, to be judged.

    Attributes:
        scans: at least two models.
        seed: of permuted labels.
    """

    scans: Sequence[Scanned]
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what leaves nobody to choose on.

        Raises:
            FieldError: scans of fewer than two models.
        """
        if len(self.models) < 2:
            raise FieldError("files", "scans of at least two models, since each is judged by the others", self.models)

    @property
    def models(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(scan.model for scan in self.scans))

    def _judge(self, kind: str, name: str, model: str) -> _Judge:
        """What all other models say of a score."""
        return _Judge.of(name, _pairs([scan for scan in self.scans if scan.model != model], kind, name))

    def row(self, kind: str, name: str, scan: Scanned, judge: _Judge | None = None) -> StudyRow:
        """A score on a scan.

        Args:
            kind: of the score.
            name: of the score.
            scan: the model in question.
            judge: what the other models say, where somebody has it already.
        """
        mine, judge = _pairs([scan], kind, name), judge or self._judge(kind, name, scan.model)
        threshold = judge.threshold
        octaves = [] if threshold is None else _octaves(scan, kind, name, threshold)
        over = None if threshold is None else mine.scores >= threshold
        return StudyRow(
            score=name,
            kind=kind,
            model=scan.model,
            input=scan.input,
            pairs=len(mine.scores),
            failing=int(mine.fails.sum()),
            untold=len(scan.rows) - len(mine.scores),
            auroc=_auroc(mine),
            auprc=_auprc(mine),
            threshold=threshold,
            hits=None if over is None else int((over & mine.fails).sum()),
            false_alarms=None if over is None else int((over & ~mine.fails).sum()),
            brier=judge.brier(mine),
            octaves=float(np.median(octaves)) if octaves else None,
            schemes=len(octaves),
        )

    @cached_property
    def _table(self) -> dict[tuple[str, str], list[StudyRow]]:
        """Every score on every scan, in the order of the scans."""
        found = {}
        for kind, name in score_names(self.scans):
            judges = {model: self._judge(kind, name, model) for model in self.models}
            found[kind, name] = [self.row(kind, name, scan, judges[scan.model]) for scan in self.scans]
        return found

    def choose(self, kind: str, without: str) -> str | None:
        """The score of a kind with the best mean AUROC over all models but one; None where none has any."""
        best: tuple[float, str] | None = None
        for (whose, name), rows in self._table.items():
            if whose != kind or name.split(".")[0] in TRUTH or name in RULES:
                continue
            found = _over([row.auroc for row in rows if row.model != without], _mean)
            if found is not None and (best is None or found > best[0]):
                best = found, name
        return None if best is None else best[1]

    def _permuted(self, scan: Scanned, kind: str, name: str) -> StudyRow:
        """The chosen score where the labels say nothing: the mean of many permutations."""
        mine = _pairs([scan], kind, name)
        rng = np.random.default_rng(self.seed)
        found = [
            one
            for _ in range(PERMUTATIONS)
            if (one := _auroc(_Pairs(mine.scores, rng.permutation(mine.fails)))) is not None
        ]
        return StudyRow(
            "labels permuted", CONTROL, scan.model, scan.input, len(mine.scores), int(mine.fails.sum()),
            len(scan.rows) - len(mine.scores), float(np.mean(found)) if found else None, None, None, None, None, None,
            None, 0, name,
        )  # fmt: skip

    def rows(self) -> Iterator[StudyRow]:
        """Every score on every scan, then those that were chosen on the others, then permuted labels."""
        for rows in self._table.values():
            yield from rows
        for n, scan in enumerate(self.scans):
            for kind in (INSIDE, LONG):
                best = self.choose(kind, scan.model)
                if best is None:
                    continue
                yield replace(self._table[kind, best][n], score=f"chosen {kind}", chosen=best)
                if kind == INSIDE:
                    yield self._permuted(scan, kind, best)

    def calibration(self) -> Iterator[CalibrationRow]:
        """What failed of the pairs that were said to fail with about the same probability, by the other models."""
        for kind, name in CALIBRATED:
            said, fails = [], []
            for scan in self.scans:
                score = self.choose(kind, scan.model) if name == f"chosen {kind}" else name
                if score is None:
                    continue
                mine = _pairs([scan], kind, score)
                guess = self._judge(kind, score, scan.model).guess(mine)
                if guess is not None:
                    said.append(guess)
                    fails.append(mine.fails)
            if said:
                yield from binned(name, kind, np.concatenate(said), np.concatenate(fails))

    def result(self) -> StudyResult:
        """All rows."""
        settings = {
            "models": self.models, "inputs": list(dict.fromkeys(scan.input for scan in self.scans)),
            "pairs": sum(len(scan.rows) for scan in self.scans),
            "failing": sum(scan.fails(row) for scan in self.scans for row in scan.rows), "seed": self.seed,
            "truth": self.scans[0].truth,
        }  # fmt: skip
        rows = Records(self.rows())
        return StudyResult("study", settings, Provenance.now(), rows, calibration=Records(self.calibration()))


def binned(
    name: str, kind: str, said: NDArray[np.float64], fails: NDArray[np.bool_], edges: Sequence[float] = EDGES
) -> Iterator[CalibrationRow]:
    """Pairs by the probability that was said of them; a bin without one is left out.

    Args:
        name: of the score.
        kind: of the score.
        said: probabilities.
        fails: whether it did.
        edges: of the bins, ascending from 0 to 1; a bin holds its lower edge, the last one both.
    """
    at = np.clip(np.searchsorted(edges, said, side="right") - 1, 0, len(edges) - 2)
    for n in range(len(edges) - 1):
        mine = at == n
        pairs, failing = int(mine.sum()), int(fails[mine].sum())
        if pairs:
            low, high = wilson(failing, pairs)
            mean = float(said[mine].mean())
            yield CalibrationRow(name, kind, edges[n], edges[n + 1], pairs, failing, mean, failing / pairs, low, high)


def orders(scan: Scanned) -> list[tuple[str, str, float, int]]:
    """(kind, name, AUROC, pairs) of every score that orders a scan's pairs, the best first; empty where all fail, or
    none. The truth itself is left out.
    """
    found = []
    for kind, name in score_names([scan]):
        pairs = _pairs([scan], kind, name)
        value = _auroc(pairs)
        if value is not None and name.split(".")[0] not in TRUTH:
            found.append((kind, name, value, len(pairs.scores)))
    return sorted(found, key=lambda one: -one[2])


@dataclass(frozen=True)
class Summary:
    """A score over all scans.

    Attributes:
        score: its name.
        kind: "inside", "long" or "control".
        scans: those on which some pairs fail and some hold.
        auroc: mean over them; None where there is none.
        worst: the lowest.
        auprc: mean.
        hits: share of failing pairs that are said to fail, over all scans.
        false_alarms: share of pairs that hold and are said to fail.
        brier: mean over scans.
        octaves: median over scans of their medians.
        untold: share of pairs without the score.
    """

    score: str
    kind: str
    scans: int
    auroc: float | None
    worst: float | None
    auprc: float | None
    hits: float | None
    false_alarms: float | None
    brier: float | None
    octaves: float | None
    untold: float


def _over(values: Sequence[float | None], how: Callable[[Sequence[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return float(how(known)) if known else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def summaries(rows: Sequence[StudyRow]) -> list[Summary]:
    """One per score, the best mean AUROC first."""
    found = []
    for kind, score in dict.fromkeys((row.kind, row.score) for row in rows):
        mine = [row for row in rows if (row.kind, row.score) == (kind, score)]
        said = [row for row in mine if row.hits is not None and row.false_alarms is not None]
        failing = sum(row.failing for row in said)
        holding = sum(row.pairs - row.failing for row in said)
        found.append(
            Summary(
                score, kind, sum(row.auroc is not None for row in mine),
                _over([row.auroc for row in mine], _mean), _over([row.auroc for row in mine], min),
                _over([row.auprc for row in mine], _mean),
                sum(row.hits or 0 for row in said) / failing if failing else None,
                sum(row.false_alarms or 0 for row in said) / holding if holding else None,
                _over([row.brier for row in mine], _mean), _over([row.octaves for row in mine], _median),
                sum(row.untold for row in mine) / max(1, sum(row.untold + row.pairs for row in mine)),
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: -1.0 if one.auroc is None else one.auroc, reverse=True)
