"""What should this model use at this length? Schemes and parameters proposed from short passes, then checked.

Every candidate is screened from inside the window: a short pass-key prompt whose key is moved away in position as far
as it would lie in the long input, one whose filler counts as often as there would be keys, and a short text under both.
None of it runs the long input. Weaves whose positions go past the trained window at that length are left out before
anything runs: the theory's horizon. The best are then checked at the real length, on a few prompts, and the winner is
proposed with its evidence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from probe.errors import FieldError, ProbeError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, make_scheme, parse_scheme, resolve_schemes
from probe.schemes.cut_out import largest_position
from probe.seam.apply import check_scheme
from probe.studies.causes import tail_nll, without_first
from probe.studies.passes import made_by
from probe.studies.pieces import PieceStore
from probe.studies.short_keys import AMONG, MOVED, among_more, key_prompts, moved_away, short_length
from probe.tasks.documents import document_batch
from probe.tasks.intervals import wilson
from probe.tasks.passkey import PasskeySample
from probe.tasks.scoring import draw_passkeys, passkey_answers

SHARES = (0.125, 0.25, 0.5, 0.75)
"""Bands tried, as shares of the window."""

OVER_BUDGET = "the budget was used up"
_SCREEN, _CHECK = "screened", "checked"
FINALISTS = 3
"""Candidates that are checked at the real length, beside the model as trained."""


@dataclass(frozen=True)
class TuneRow:
    """A candidate: what was predicted of it inside the window, and what was measured at the length.

    Attributes:
        scheme: its text.
        largest: the largest relative position that it uses at the length.
        keys: predicted pass keys found, the worse of moved away and among more keys, 0 to 1; None where it was not
            screened.
        answer: predicted nats per token of the right answer, the worse of both.
        rise: predicted rise in nats per token of text, the worse of both.
        correct: pass keys found at the length; None where that was not checked.
        total: of so many.
        low: lower end of that share's 95% interval (Wilson).
        high: upper end.
        nll: nats per token at the length, over as many last tokens as a quarter of the window.
        screening: seconds that it took to be screened.
        checking: seconds that it took to be checked.
        left_out: why it was not screened; None where it was.
    """

    scheme: str
    largest: float
    keys: float | None = None
    answer: float | None = None
    rise: float | None = None
    correct: int | None = None
    total: int | None = None
    low: float | None = None
    high: float | None = None
    nll: float | None = None
    screening: float = 0.0
    checking: float = 0.0
    left_out: str | None = None


def candidates(window: int, length: int, rotates: bool) -> list[str]:
    """Schemes that are tried, as text: every weave at several bands, with and without log-n, and frequencies."""
    bands = sorted({max(2, round(share * window)) for share in SHARES})
    woven = [f"{name}({band}={width})" for name, band in (("rerope", "N"), ("leaky-rerope", "w")) for width in bands]
    woven += [f"stair(N={width},E={_step(window, length, width)})" for width in bands[:3]]
    woven += [f"self-extend(W={width},G={_group(window, length, width)})" for width in bands[1:3]]
    found = [ORIGIN, f"{ORIGIN}+logn", *(text for one in woven for text in (one, f"{one}+logn"))]
    return found + (["dynamic-ntk", "dynamic-ntk+logn", "yarn", "pi", "ntk"] if rotates else [])


def _step(window: int, length: int, width: int) -> int:
    """The least E with which Stair PE stays inside the window at the length, or the published one where it does."""
    return max(50 * window // 4096, math.ceil((length - 1 - width) / (window - 1 - width)), 1)


def _group(window: int, length: int, width: int) -> int:
    """The least G with which Self-Extend stays inside the window at the length."""
    group = 2
    while (length - 1) // group + width - width // group >= window and group < length:
        group += 1
    return group


@dataclass
class Tuning:
    """The search for one model and length, under way: `rows` are the candidates that are done, the best first at the
    end.

    Attributes:
        loaded: the model, with a tokenizer.
        length: tokens.
        schemes: candidates, as text, objects or both; None for those of `candidates`.
        budget: seconds for screening and checking; candidates that it does not reach are left out and named. None for
            no limit.
        screened: samples per experiment and candidate.
        checked: pass keys per finalist at the length.
        finalists: candidates that are checked at the length, beside the model as trained; None for all, the whole grid.
        documents: texts.
        seed: draws keys and texts.
        store: keeps the candidates that are done; what is taken from there counts nothing against a budget.
        rows: what is done.
    """

    loaded: LoadedModel
    length: int
    schemes: Any = None
    budget: float | None = None
    screened: int = 6
    checked: int = 8
    documents: int = 2
    seed: int = 0
    finalists: int | None = FINALISTS
    store: PieceStore = field(default_factory=PieceStore)
    rows: list[TuneRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything before anything runs.

        Raises:
            ProbeError: a length inside the window, no tokenizer, a candidate that does not parse or fit the model.
        """
        window = self.loaded.window
        if self.length <= window:
            raise FieldError(
                "length", f"more than the window of {window} tokens; inside it nothing needs tuning", self.length
            )
        for name in ("screened", "checked", "documents"):
            if getattr(self, name) < 1:
                raise FieldError(name, "at least 1", getattr(self, name))
        self._tokenizer = self.loaded.tokenizer_for("tune")
        if self.schemes is None:
            self.schemes = ",".join(candidates(window, self.length, self._fits("dynamic-ntk")))
        found = {
            scheme.spec: scheme for scheme in (make_scheme(ORIGIN, window), *resolve_schemes(self.schemes, window))
        }
        self._candidates = list(found.values())
        for scheme in self._candidates:
            check_scheme(self.loaded.model, scheme)
        self._short = short_length(window, self._tokenizer)
        self._until = math.inf if self.budget is None else time.monotonic() + self.budget
        document_batch(self.loaded, self.length, self.documents, self.seed)

    def _fits(self, spec: str) -> bool:
        try:
            check_scheme(self.loaded.model, parse_scheme(spec, self.loaded.window))
        except ProbeError:
            return False
        return True

    @property
    def total(self) -> int:
        """Steps that there will be, about."""
        return len(self._candidates) + (len(self._candidates) if self.finalists is None else self.finalists + 1)

    def run(self) -> Iterator[str]:
        """Screen every candidate, then check the best."""
        # Neither how long it may take nor how many are checked changes a candidate's numbers.
        varied = ("budget", "finalists", "candidates", "proposed")
        settings = {name: value for name, value in self._settings().items() if name not in varied}
        with self.store.opened(settings | made_by(self.loaded)):
            yield from self._run()

    def _kept(self, key: str, measure: Callable[[], TuneRow]) -> TuneRow:
        """A candidate as it was kept, or measured now; one that the budget left out is not kept."""
        found = self.store.take(key)
        if found is not None:
            return TuneRow(**found[0])
        row = measure()
        if row.left_out != OVER_BUDGET and not (key.startswith(_CHECK) and row.correct is None):
            self.store.keep(key, asdict(row), {})
        return row

    def _run(self) -> Iterator[str]:
        draw = np.random.default_rng((self.seed, self.length))
        self._moved, self._among = (
            key_prompts(self._tokenizer, self._short, self.screened, depths, draw) for depths in (MOVED, AMONG)
        )
        self._texts = document_batch(self.loaded, self._short, self.documents, self.seed)
        trained = make_scheme(ORIGIN, self.loaded.window)
        self._base = self._nll(trained, self._texts)
        self._alone = self._nll(trained, without_first(self.loaded, self._texts, self._short // 2))
        for scheme in self._candidates:
            self.rows.append(self._kept(f"{_SCREEN} {scheme.spec}", partial(self._screen, scheme)))
            yield f"{scheme.spec} screened"
        for row in self._finalists():
            at = self.rows.index(row)
            self.rows[at] = self._kept(f"{_CHECK} {row.scheme}", partial(self._check, row))
            yield f"{row.scheme} checked"
        self.rows.sort(key=_rank)

    def _screen(self, scheme: Scheme) -> TuneRow:
        began, window = time.monotonic(), self.loaded.window
        largest = largest_position(scheme.weave_at(self.length), self.length, scheme.visibility_at(self.length))
        row = TuneRow(scheme.spec, largest)
        woven = scheme.weave_at(self.length).name != "linear"
        if woven and largest > window:
            return replace(row, left_out=f"its positions go up to {largest:g}, past the window of {window}")
        if began > self._until:
            return replace(row, left_out=OVER_BUDGET)
        # Keys that lie past the window there lie past it here; the filler stands for all that is between.
        far, many = (stand_in(scheme, self._short, self.length) for stand_in in (moved_away, among_more))
        assert far is not None
        if many is None:
            return replace(
                row, left_out="not every query sees all that came before it: nothing can be predicted inside the window"
            )
        keys, answers = zip(self._answers(far, self._moved), self._answers(many, self._among), strict=True)
        rises = (float((self._nll(far, self._texts) - self._alone).mean()),
                 float((self._nll(many, self._texts) - self._base).mean()))  # fmt: skip
        return replace(
            row, keys=min(keys), answer=max(answers), rise=max(rises), screening=time.monotonic() - began,
        )  # fmt: skip

    def _answers(self, scheme: Scheme, prompts: Sequence[PasskeySample]) -> tuple[float, float]:
        """(share of exact answers, nats per token of the right ones)."""
        right, nats = passkey_answers(self.loaded, scheme, prompts)
        return float(right.double().mean()), float(nats.double().mean())

    def _nll(self, scheme: Scheme, ids: Tensor) -> Tensor:
        """NLL of the last quarter of a short text."""
        return tail_nll(self.loaded, scheme, ids, max(1, self._short // 4))

    def _finalists(self) -> list[TuneRow]:
        """The model as trained, and the best by what was predicted."""
        screened = [row for row in self.rows if row.keys is not None and row.scheme != ORIGIN]
        best = sorted(screened, key=_rank)[: self.finalists]
        return [*(row for row in self.rows if row.scheme == ORIGIN), *best]

    def _check(self, row: TuneRow) -> TuneRow:
        began = time.monotonic()
        if began > self._until and row.scheme != ORIGIN:
            return row
        scheme = next(one for one in self._candidates if one.spec == row.scheme)
        keys = draw_passkeys(self.loaded, self.length, self.checked, self.seed + 1)
        found, _ = self._answers(scheme, keys)
        correct = round(found * len(keys))
        low, high = wilson(correct, len(keys))
        texts = document_batch(self.loaded, self.length, self.documents, self.seed + 1)
        nll = float(tail_nll(self.loaded, scheme, texts, self.loaded.window // 4).mean())
        return replace(
            row, correct=correct, total=len(keys), low=low, high=high, nll=nll,
            checking=time.monotonic() - began,
        )  # fmt: skip

    @property
    def proposed(self) -> TuneRow | None:
        """The best of those that were checked; None where none was."""
        checked = [row for row in self.rows if row.correct is not None]
        return min(checked, key=_rank) if checked else None

    def _settings(self) -> dict[str, Any]:
        best = self.proposed
        return {
            "model": self.loaded.name, "window": self.loaded.window, "length": self.length, "budget": self.budget,
            "screened": self.screened, "checked": self.checked, "finalists": self.finalists,
            "documents": self.documents, "seed": self.seed,
            "short": self._short, "candidates": len(self._candidates), "proposed": best.scheme if best else None,
        }  # fmt: skip

    def result(self, complete: bool) -> Result[TuneRow]:
        """The rows so far, with what they were made with."""
        return Result("tune", self._settings(), Provenance.now(), Records(self.rows), complete)


@dataclass(frozen=True)
class AgainstGrid:
    """What screening reaches of what checking everything does.

    Attributes:
        finalists: how many that screening puts first are taken to be checked.
        best_keys: share of pass keys that the best of the whole grid finds.
        best_nll: its nats per token.
        keys: share that the best of those finalists finds.
        nll: its nats per token.
        cost: seconds of screening all and checking the finalists over those of checking all, 0 to 1 and more.
    """

    finalists: int
    best_keys: float
    best_nll: float
    keys: float
    nll: float
    cost: float


def against_grid(rows: Sequence[TuneRow], finalists: int = FINALISTS) -> AgainstGrid | None:
    """Screening against the whole grid; None where not every candidate that was screened was checked."""
    told = [row for row in rows if row.keys is not None]
    if len(told) <= finalists + 1 or any(row.correct is None for row in told):
        return None
    blind = [replace(row, correct=None, total=None, nll=None) for row in told if row.scheme != ORIGIN]
    first = {row.scheme for row in sorted(blind, key=_rank)[:finalists]} | {ORIGIN}
    taken = [row for row in told if row.scheme in first]
    best, mine = min(told, key=_rank), min(taken, key=_rank)
    grid = sum(row.checking for row in told)
    spent = sum(row.screening for row in told) + sum(row.checking for row in taken)
    return AgainstGrid(
        finalists, _share(best), best.nll or math.nan, _share(mine), mine.nll or math.nan, spent / grid
    )  # fmt: skip


def _share(row: TuneRow) -> float:
    return (row.correct or 0) / (row.total or 1)


def _rank(row: TuneRow) -> tuple[float, ...]:
    """The better the smaller: checked before screened before left out. Of what was checked, keys found, then the
    likelihood; of what was screened, keys predicted, then how surprising the right answer is, then the likelihood.

    Nats within 0.05 count as equal, so that what is noise of a few prompts and texts does not decide.
    """
    if row.correct is not None and row.total:
        return (0, -row.correct / row.total, round((row.nll or 0.0) / 0.05), row.answer or 0.0)
    if row.keys is not None:
        return (1, -row.keys, round((row.answer or 0.0) / 0.05), row.rise or 0.0)
    return (2, 0, 0, 0)
