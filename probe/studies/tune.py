"""What should this model use at this length? Schemes and parameters proposed from short passes, then checked.

Every candidate is screened from inside the window: a short pass-key prompt whose key is moved away in position as far
as it would lie in the long input, one whose filler counts as often as there would be keys, and a short text under both.
None of it runs the long input. Weaves whose positions go past the trained window at that length are left out before
anything runs: the theory's horizon. A third of the prompts decides which candidates get them all, and a quarter of the
checks at the real length which of the best gets them all: what leads only by the few is checked in full before it is
proposed, with its evidence. (Successive halving, Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943, in two
steps each.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_TRY, _SCREEN, _BEGIN, _CHECK = "tried", "screened", "begun", "checked"
FINALISTS = 3
"""Candidates that are checked at the real length, beside the model as trained."""
_TRIED, _BEGUN = 3, 4
"""A third of the prompts is tried first, a quarter of the checks is begun with."""
_GO_ON = 2
"""Twice as many as the finalists get all prompts."""


@dataclass(frozen=True)
class TuneRow:
    """A candidate: what was predicted of it inside the window, and what was measured at the length.

    Attributes:
        scheme: its text.
        largest: the largest relative position that it uses at the length.
        screened: prompts per experiment that it was screened with: all, or the third that is tried first.
        keys: predicted pass keys found, the worse of moved away and among more keys, 0 to 1; None where it was not
            screened.
        answer: predicted nats per token of the right answer, the worse of both.
        rise: predicted rise in nats per token of text, the worse of both.
        correct: pass keys found at the length; None where that was not checked.
        total: of so many.
        low: lower end of that share's 95% interval (Wilson).
        high: upper end.
        nll: nats per token at the length, over as many last tokens as a quarter of the window.
        texts: of so many texts.
        first_correct: pass keys found among those that its check began with.
        first_total: of so many.
        first_nll: nats per token of the texts that it began with.
        screening: seconds that it took to be screened.
        beginning: seconds that the first checks took.
        checking: seconds that all its checks took, those included.
        left_out: why it was not screened; None where it was.
    """

    scheme: str
    largest: float
    screened: int = 0
    keys: float | None = None
    answer: float | None = None
    rise: float | None = None
    correct: int | None = None
    total: int | None = None
    low: float | None = None
    high: float | None = None
    nll: float | None = None
    texts: int = 0
    first_correct: int | None = None
    first_total: int | None = None
    first_nll: float | None = None
    screening: float = 0.0
    beginning: float = 0.0
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


def _spread(count: int, share: int) -> range:
    """One in `share` of so many, evenly spread; at least one."""
    return range(min(share // 2, count - 1), count, share)


@dataclass(frozen=True)
class _Shorts:
    """What a candidate is screened with: prompts whose key is moved away, prompts whose filler counts often, texts, and
    the texts' NLL under the trained model, whole (`base`) and without their first half (`alone`).
    """

    moved: list[PasskeySample]
    among: list[PasskeySample]
    texts: Tensor
    base: Tensor
    alone: Tensor

    @classmethod
    def drawn(cls, work: Tuning) -> _Shorts:
        """All of them."""
        loaded, short = work.loaded, work._short
        draw = np.random.default_rng((work.seed, work.length))
        moved, among = (key_prompts(work._tokenizer, short, work.screened, depths, draw) for depths in (MOVED, AMONG))
        texts = document_batch(loaded, short, work.documents, work.seed)
        trained = make_scheme(ORIGIN, loaded.window)
        base, alone = (work._nll(trained, ids) for ids in (texts, without_first(loaded, texts, short // 2)))
        return cls(moved, among, texts, base, alone)

    @property
    def count(self) -> int:
        """Prompts per experiment."""
        return len(self.moved)

    def few(self) -> _Shorts:
        """A third of them, spread over the depths."""
        places, texts = _spread(self.count, _TRIED), max(1, len(self.texts) // _TRIED)
        return _Shorts(
            [self.moved[at] for at in places], [self.among[at] for at in places],
            self.texts[:texts], self.base[:texts], self.alone[:texts],
        )  # fmt: skip


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
        count, going_on = len(self._candidates), self._going_on()
        begun = count if self.finalists is None else min(count, self.finalists + 1)
        return count + (going_on if going_on < count else 0) + begun + (count if self.finalists is None else 1)

    def _going_on(self) -> int:
        """Candidates that are screened with all prompts."""
        return min(len(self._candidates), _GO_ON * (self.finalists or FINALISTS))

    def run(self) -> Iterator[str]:
        """Screen every candidate, then check the best."""
        # Neither how long it may take nor how many are checked changes a candidate's numbers.
        varied = ("budget", "finalists", "candidates", "proposed")
        settings = {name: value for name, value in self._settings().items() if name not in varied}
        with self.store.opened(settings | made_by(self.loaded)):
            yield from self._screened()
            yield from self._checked()
        self.rows = _ordered(self.rows)

    def _kept(self, step: str, row: TuneRow, measure: Callable[[TuneRow], TuneRow]) -> TuneRow:
        """A candidate after a step as it was kept, or measured now; one that the budget stopped is not kept."""
        key = f"{step} {row.scheme}"
        found = self.store.take(key)
        if found is not None:
            return TuneRow(**found[0])
        after = measure(row)
        if after.left_out != OVER_BUDGET and after != row:
            self.store.keep(key, asdict(after), {})
        return after

    def _replaced(self, step: str, row: TuneRow, measure: Callable[[TuneRow], TuneRow]) -> bool:
        """Take a step with a row, where it stands; whether anything came of it."""
        at = self.rows.index(row)
        self.rows[at] = self._kept(step, row, measure)
        return self.rows[at] != row

    def _screened(self) -> Iterator[str]:
        every = _Shorts.drawn(self)
        going_on = self._going_on()
        first = every if going_on == len(self._candidates) else every.few()
        for scheme in self._candidates:
            row = TuneRow(scheme.spec, largest_position(
                scheme.weave_at(self.length), self.length, scheme.visibility_at(self.length)
            ))  # fmt: skip
            self.rows.append(self._kept(_TRY, row, partial(self._screen, first)))
            yield f"{scheme.spec} tried"
        if first.count == every.count:
            return
        told = [row for row in self.rows if row.keys is not None]
        for row in _ordered(told)[:going_on]:
            self._replaced(_SCREEN, row, partial(self._screen, every))
            yield f"{row.scheme} screened"

    def _screen(self, shorts: _Shorts, row: TuneRow) -> TuneRow:
        began, window, scheme = time.monotonic(), self.loaded.window, self._scheme(row)
        woven = scheme.weave_at(self.length).name != "linear"
        if woven and row.largest > window:
            return replace(row, left_out=f"its positions go up to {row.largest:g}, past the window of {window}")
        if began > self._until:
            return row if row.keys is not None else replace(row, left_out=OVER_BUDGET)
        # Keys that lie past the window there lie past it here; the filler stands for all that is between.
        far, many = (stand_in(scheme, self._short, self.length) for stand_in in (moved_away, among_more))
        assert far is not None
        if many is None:
            return replace(
                row, left_out="not every query sees all that came before it: nothing can be predicted inside the window"
            )
        keys, answers = zip(self._answers(far, shorts.moved), self._answers(many, shorts.among), strict=True)
        rises = (float((self._nll(far, shorts.texts) - shorts.alone).mean()),
                 float((self._nll(many, shorts.texts) - shorts.base).mean()))  # fmt: skip
        return replace(
            row, screened=shorts.count, keys=min(keys), answer=max(answers), rise=max(rises),
            screening=row.screening + time.monotonic() - began,
        )  # fmt: skip

    def _scheme(self, row: TuneRow) -> Scheme:
        return next(one for one in self._candidates if one.spec == row.scheme)

    def _answers(self, scheme: Scheme, prompts: Sequence[PasskeySample]) -> tuple[float, float]:
        """(share of exact answers, nats per token of the right ones)."""
        right, nats = passkey_answers(self.loaded, scheme, prompts)
        return float(right.double().mean()), float(nats.double().mean())

    def _nll(self, scheme: Scheme, ids: Tensor) -> Tensor:
        """NLL of the last quarter of a short text."""
        return tail_nll(self.loaded, scheme, ids, max(1, self._short // 4))

    def _checked(self) -> Iterator[str]:
        self._firsts, self._rest = self._checks(True), self._checks(False)
        for row in self._finalists():
            self._replaced(_BEGIN, row, self._begin)
            yield f"{row.scheme} begun"
        while (leads := self._to_complete()) is not None:
            if not self._replaced(_CHECK, leads, self._complete):
                return  # over the budget
            yield f"{leads.scheme} checked"

    def _finalists(self) -> list[TuneRow]:
        """The model as trained, and the best by what was predicted."""
        told = [row for row in self.rows if row.keys is not None and row.scheme != ORIGIN]
        return [*(row for row in self.rows if row.scheme == ORIGIN), *_ordered(told)[: self.finalists]]

    def _to_complete(self) -> TuneRow | None:
        """The one that leads, where it leads by its first checks alone; of the whole grid, any that has no others."""
        begun = _ordered(row for row in self.rows if row.correct is not None)
        among = begun if self.finalists is None else begun[:1]
        return next((row for row in among if not self._whole(row)), None)

    def _whole(self, row: TuneRow) -> bool:
        return (row.total, row.texts) == (self.checked, self.documents)

    def _begin(self, row: TuneRow) -> TuneRow:
        began = time.monotonic()
        if began > self._until and row.scheme != ORIGIN:
            return row
        keys, texts = self._firsts
        correct, nll = self._measured(row, keys, texts)
        first = replace(row, first_correct=correct, first_total=len(keys), first_nll=nll,
                        beginning=time.monotonic() - began)  # fmt: skip
        return self._with_checks(first, correct, len(keys), nll, len(texts), began)

    def _complete(self, row: TuneRow) -> TuneRow:
        began = time.monotonic()
        if began > self._until:
            return row
        keys, texts = self._rest
        correct, nll = self._measured(row, keys, texts)
        assert row.correct is not None and row.total is not None and row.nll is not None
        whole = (row.nll * row.texts + nll * len(texts)) / (row.texts + len(texts))
        return self._with_checks(
            row, row.correct + correct, row.total + len(keys), whole, row.texts + len(texts), began
        )  # fmt: skip

    def _with_checks(self, row: TuneRow, correct: int, total: int, nll: float, texts: int, began: float) -> TuneRow:
        low, high = wilson(correct, total)
        return replace(
            row, correct=correct, total=total, low=low, high=high, nll=nll, texts=texts,
            checking=row.checking + time.monotonic() - began,
        )  # fmt: skip

    def _checks(self, first: bool) -> tuple[list[PasskeySample], Tensor]:
        """Pass keys and texts that a check begins with, or the rest of them."""
        keys = draw_passkeys(self.loaded, self.length, self.checked, self.seed + 1)
        begun = _spread(len(keys), _BEGUN)
        texts = document_batch(self.loaded, self.length, self.documents, self.seed + 1)
        few = max(1, len(texts) // _BEGUN)
        mine = [key for at, key in enumerate(keys) if (at in begun) == first]
        return mine, texts[:few] if first else texts[few:]

    def _measured(self, row: TuneRow, keys: Sequence[PasskeySample], texts: Tensor) -> tuple[int, float]:
        """(pass keys found, nats per token), each 0 where there is nothing to be asked."""
        scheme = self._scheme(row)
        correct = round(self._answers(scheme, keys)[0] * len(keys)) if keys else 0
        nll = float(tail_nll(self.loaded, scheme, texts, self.loaded.window // 4).mean()) if len(texts) else 0.0
        return correct, nll

    @property
    def proposed(self) -> TuneRow | None:
        """The best of those that were checked; None where none was."""
        checked = [row for row in self.rows if row.correct is not None]
        return _ordered(checked)[0] if checked else None

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
    """Screening against the whole grid; None where not every candidate that was screened was checked in full."""
    told = [row for row in rows if row.keys is not None]
    if len(told) <= finalists + 1 or len({row.total for row in told}) > 1:
        return None
    if any(row.correct is None or row.first_correct is None for row in told):
        return None
    blind = [replace(row, correct=None, total=None, nll=None) for row in told if row.scheme != ORIGIN]
    first = {row.scheme for row in _ordered(blind)[:finalists]} | {ORIGIN}
    whole = {row.scheme: row for row in told}
    mine, completed = _raced([row for row in told if row.scheme in first])
    best = _ordered(told)[0]
    grid = sum(row.checking for row in told)
    spent = sum(row.screening for row in told) + sum(whole[name].beginning for name in first)
    spent += sum(whole[name].checking - whole[name].beginning for name in completed)
    return AgainstGrid(
        finalists, _share(best), best.nll or math.nan, _share(mine), mine.nll or math.nan, spent / grid
    )  # fmt: skip


def _raced(whole: Sequence[TuneRow]) -> tuple[TuneRow, set[str]]:
    """The one that is proposed of those, and which had to be checked in full for it."""
    known = {
        row.scheme: replace(row, correct=row.first_correct, total=row.first_total, nll=row.first_nll, texts=0)
        for row in whole
    }
    completed: set[str] = set()
    while (best := _ordered(known.values())[0]).scheme not in completed:
        completed.add(best.scheme)
        known[best.scheme] = next(row for row in whole if row.scheme == best.scheme)
    return best, completed


def _share(row: TuneRow) -> float:
    return (row.correct or 0) / (row.total or 1)


def _ordered(rows: Iterable[TuneRow]) -> list[TuneRow]:
    """The best first. Likelihoods are compared on the same texts: all of them where every row has them, else those that
    checks begin with.
    """
    found = list(rows)
    begun = len({row.texts for row in found if row.correct is not None}) > 1
    return sorted(found, key=lambda row: _rank(replace(row, nll=row.first_nll) if begun else row))


def _rank(row: TuneRow) -> tuple[float, ...]:
    """The better the smaller: checked before screened before left out. Of what was checked, keys found, then the
    likelihood; of what was screened, with all prompts before with a third, keys predicted, then how surprising the
    right answer is, then the likelihood.

    Nats within 0.05 count as equal, so that what is noise of a few prompts and texts does not decide, and a rise to a
    thousandth; of equals the one that is named first wins, the simpler in `candidates`.
    """
    answer = round((row.answer or 0.0) / 0.05)
    if row.correct is not None and row.total:
        return (0, -row.correct / row.total, round((row.nll or 0.0) / 0.05), answer)
    if row.keys is not None:
        return (1, -row.screened, -row.keys, answer, round(row.rise or 0.0, 3))
    return (2, 0, 0, 0)
