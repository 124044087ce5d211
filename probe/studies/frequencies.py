"""Which rotary frequencies cause the failure past the window: each alone at unseen distances, and each spared them.

The experiment of `probe causes` inside the window, frequency by frequency. A text whose first tokens are moved away in
position reaches angles that the model has not seen, at every frequency at once. Here only some frequencies see the gap:
one group alone (the others take the tokens as they stand together), which says what that group does by itself, or all
but one group, which says how much of the rise goes when that group's angles are put back into their trained range.

A frequency that turns less than once within the window has angles left that it has never shown
(https://arxiv.org/abs/2310.05209 calls the border the critical dimension); one that turns many times has seen them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor

from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, make_scheme, resolve_schemes
from probe.schemes.cut_out import gap_for_some, without_middle
from probe.seam.apply import check_scheme
from probe.seam.positions import Rope
from probe.studies.causes import Causes, gap_for, kept_tail, paired_interval, without_first
from probe.studies.passes import made_by
from probe.studies.pieces import PieceStore
from probe.tasks.documents import document_batch

ALONE, SPARED, WHOLE = "alone", "spared", "whole"


@dataclass(frozen=True)
class FrequencyRow:
    """What the unseen distances of one group of frequencies do, predicted from passes no longer than the window.

    Attributes:
        scheme: its text.
        length: tokens of the long input that is stood for.
        what: "alone" where only this group sees the gap, "spared" where all but it do, "whole" where all do.
        first: number of its first frequency, 0 is the fastest.
        last: of its last.
        turns: how often its slowest frequency turns within the trained window, under the scheme.
        rise: nats per token over the same text without its first tokens.
        low: lower end of its 95% interval, from resampled blocks of 64 tokens.
        high: upper end.
    """

    scheme: str
    length: int
    what: str
    first: int
    last: int
    turns: float
    rise: float
    low: float
    high: float


def groups_of(half: int, groups: int | None) -> list[tuple[int, int]]:
    """(first, last) of neighbouring frequencies, as equal in number as they divide; None: each by itself.

    Raises:
        FieldError: less than one group, or more than there are frequencies.

    >>> groups_of(5, 2)
    [(0, 2), (3, 4)]
    """
    groups = half if groups is None else groups
    if not 1 <= groups <= half:
        raise FieldError("groups", f"1 to {half}, the frequencies of this model", groups)
    edges = [-(-half * number // groups) for number in range(groups + 1)]
    return [(low, high - 1) for low, high in pairwise(edges)]


@dataclass
class FrequencyStudy:
    """The study of one model, under way: `rows` are those that are done.

    Attributes:
        loaded: a model with RoPE.
        schemes: text, objects or both; none of them weaves.
        length: tokens of the long input that is stood for; None for 2M. It is never run.
        groups: of neighbouring frequencies; None: each by itself.
        samples: texts.
        tail: last tokens that a rise is a mean over; None for a quarter of the window.
        seed: draws where the texts end.
        store: keeps what is measured.
        rows: what is done.
    """

    loaded: LoadedModel
    schemes: Any = ORIGIN
    length: int | None = None
    groups: int | None = None
    samples: int = 2
    tail: int | None = None
    seed: int = 0
    store: PieceStore = field(default_factory=PieceStore)
    rows: list[FrequencyRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything before anything runs.

        Raises:
            ProbeError: a model without RoPE, a scheme that weaves or does not fit, a length inside the window.
        """
        window = self.loaded.window
        # What is asked of a length, a tail and texts is the same as there.
        same = Causes(self.loaded, ORIGIN, self.length, self.samples, self.seed, measure=0, tail=self.tail)
        self.length, self.tail = same.length, same.tail
        kinds = self.loaded.family.layer_positions(self.loaded.model)
        rotary = next((one for one in kinds if isinstance(one, Rope)), None)
        if rotary is None:
            raise FieldError("model", hint=f"{self.loaded.name} has no rotary frequencies", value=self.loaded.name)
        self._inv_freq, self._base = rotary.inv_freq, rotary.base
        self._groups = groups_of(len(self._inv_freq), self.groups)
        self.schemes = resolve_schemes(self.schemes, window)
        assert self.length is not None
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
            gap_for_some(scheme, *gap_for(window, self.length), self._mask([]))

    @property
    def total(self) -> int:
        """Rows that there will be."""
        return len(self.schemes) * (1 + 2 * len(self._groups))

    def _mask(self, groups: Sequence[tuple[int, int]]) -> tuple[bool, ...]:
        return tuple(any(low <= j <= high for low, high in groups) for j in range(len(self._inv_freq)))

    def _turns(self, scheme: Scheme, number: int) -> float:
        """How often a frequency turns within the window, under the scheme at the long length."""
        assert self.length is not None
        window = self.loaded.window
        factors = scheme.frequencies.factors(2 * len(self._inv_freq), self._base, self.length, window)
        return float(self._inv_freq[number] * factors[number]) * window / (2 * math.pi)

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each one was."""
        with self.store.opened(self._settings() | made_by(self.loaded)):
            yield from self._run()

    def _run(self) -> Iterator[str]:
        assert self.length is not None
        window = self.loaded.window
        at, gap = gap_for(window, self.length)
        short = document_batch(self.loaded, window, self.samples, self.seed)
        base = self._tails("base", make_scheme(ORIGIN, window), without_first(self.loaded, short, at))
        for scheme in self.schemes:
            everything = (0, len(self._inv_freq) - 1)
            self._add(scheme, WHOLE, everything, without_middle(scheme, at, gap), short, base)
            yield f"{scheme.spec} all frequencies"
            for group in self._groups:
                others = [one for one in self._groups if one != group]
                for what, moved in ((ALONE, [group]), (SPARED, others)):
                    made = gap_for_some(scheme, at, gap, self._mask(moved))
                    self._add(scheme, what, group, made, short, base)
                    yield f"{scheme.spec} frequencies {group[0]} to {group[1]} {what}"

    def _tails(self, key: str, scheme: Scheme, ids: Tensor) -> Tensor:
        return kept_tail(self.store, key, self.loaded, scheme, ids, self.tail or 1)

    def _add(
        self, scheme: Scheme, what: str, group: tuple[int, int], made: Scheme, short: Tensor, base: Tensor
    ) -> None:
        rise, low, high = paired_interval(
            (self._tails(f"{scheme.spec} {group} {what}", made, short) - base).numpy(), self.seed
        )
        turns = self._turns(scheme, group[1])
        self.rows.append(FrequencyRow(scheme.spec, self.length or 0, what, *group, turns, rise, low, high))

    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.loaded.name, "window": self.loaded.window,
            "schemes": [scheme.spec for scheme in self.schemes], "length": self.length, "groups": len(self._groups),
            "frequencies": len(self._inv_freq), "samples": self.samples, "seed": self.seed, "tail": self.tail,
            "input": "documents",
        }  # fmt: skip

    def result(self, complete: bool) -> Result[FrequencyRow]:
        """The rows so far, with what they were made with."""
        return Result("frequencies", self._settings(), Provenance.now(), Records(self.rows), complete)
