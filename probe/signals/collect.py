"""Collect signals from passes: means over blocks of positions, added up while the pass runs.

Nothing is kept per position but the likelihood, so that memory grows with the number of blocks and units, not with
positions times width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from probe.attention.blocks import RUN
from probe.attention.dense import ScoreBlock
from probe.errors import ProbeError
from probe.models.load import LoadedModel
from probe.recording.sites import SITES
from probe.schemes import Scheme
from probe.seam.apply import apply_scheme
from probe.seam.chunked_prefill import marked
from probe.seam.observers import observed
from probe.signals.reference import LayerReference
from probe.signals.table import SIGNALS, AttentionSignal, HiddenSignal, OutputSignal, PositionalSignal
from probe.tasks.nll import nll_per_position, not_finite

OUTPUT = 0
"""The "layer" of signals of the output."""
HIDDEN = "hidden"


@dataclass(frozen=True)
class Collected:
    """What passes over some texts gave.

    Attributes:
        values: by signal, [samples, layers, units, blocks], means over blocks of positions; the signals of the output
            have one layer, and of `HiddenSignal`s that are averaged there is one sample, the mean. NaN in a block where
            no query has the signal.
        nll: [samples, positions], nats; the first is NaN.
    """

    values: dict[str, NDArray[np.float32]]
    nll: NDArray[np.float64]


@dataclass
class BlockMeans:
    """Means over blocks of positions of what comes piece by piece, in the order of positions.

    Attributes:
        size: positions of a block.
        length: positions that there will be.
    """

    size: int
    length: int
    _sums: Tensor | None = None
    _counts: Tensor | None = None
    _at: int = 0

    def add(self, values: Float[Tensor, "positions units"], at: int | None = None) -> None:
        """Take the next positions, or those from `at` on; NaN counts for nothing."""
        at = self._at if at is None else at
        if self._sums is None or self._counts is None:
            # Once for all: small tensors that are kept between large ones that are not would hold on to their memory.
            shape = (-(-self.length // self.size), values.shape[1])
            self._sums, self._counts = (torch.zeros(shape, device=values.device) for _ in range(2))
        index, known = (torch.arange(at, at + len(values)) // self.size).to(values.device), values.isfinite()
        self._sums.index_add_(0, index, torch.where(known, values, 0).float())
        self._counts.index_add_(0, index, known.float())
        self._at = at + len(values)

    def mark(self) -> Callable[[], None]:
        """What drops all that is added from now on."""
        if self._sums is None or self._counts is None:
            return lambda: self._set(None, None, 0)
        before = self._sums.clone(), self._counts.clone(), self._at
        return lambda: self._set(*before)

    def _set(self, sums: Tensor | None, counts: Tensor | None, at: int) -> None:
        self._sums, self._counts, self._at = sums, counts, at

    def means(self) -> Float[Tensor, "units blocks"]:
        """The means so far; NaN in a block without a value.

        Raises:
            ProbeError: nothing came.
        """
        if self._sums is None or self._counts is None:
            raise ProbeError("expected values to take means of, got none")
        return (self._sums / self._counts).T.cpu()  # 0 / 0 is NaN


def sample_period(queries: int, most: int | None) -> int | None:
    """Of how many queries a run of `RUN` is looked at, so that about `most` are; None where that is all of them."""
    if most is None or queries <= most:
        return None
    return -(-queries * RUN // most)


class _Pass:
    """One text's pass: what its hooks add up."""

    def __init__(
        self, ids: Int[Tensor, "1 length"], names: Sequence[str], block: int, reference: Sequence[LayerReference],
        attention_from: int, most_queries: int | None = None,
    ) -> None:  # fmt: skip
        self.ids, self.block, self.reference, self.attention_from = ids, block, reference, attention_from
        self.period = sample_period(ids.shape[1] - attention_from, most_queries)
        rows = [SIGNALS[name] for name in names]
        self.hidden = [row for row in rows if isinstance(row, HiddenSignal)]
        self.attention = [row for row in rows if isinstance(row, AttentionSignal)]
        self.output = [row for row in rows if isinstance(row, OutputSignal)]
        self.means: dict[tuple[str, int], BlockMeans] = {}

    def _add(self, name: str, layer: int, values: Float[Tensor, "positions units"], at: int | None = None) -> None:
        self.means.setdefault((name, layer), BlockMeans(self.block, self.ids.shape[1])).add(values, at)

    def see_hidden(self, layer: int, hidden: Float[Tensor, "1 positions width"]) -> None:
        known = self.reference[layer - 1] if self.reference else None
        for row in self.hidden:
            self._add(row.name, layer, row.of(hidden, known)[0])

    def see_scores(self, scores: ScoreBlock) -> None:
        for row in self.attention:
            self._add(row.name, scores.layer, row.of(scores, self.ids)[0].T, scores.first)

    def see_output(self, logits: Float[Tensor, "1 positions vocabulary"], targets: Int[Tensor, "1 positions"]) -> None:
        for row in self.output:
            self._add(row.name, OUTPUT, row.of(logits[0], targets[0])[:, None])

    def mark(self) -> Callable[[], None]:
        undone = [one.mark() for one in self.means.values()]
        known = set(self.means)

        def undo() -> None:
            for each in undone:
                each()
            for key in set(self.means) - known:
                del self.means[key]

        return undo

    @contextmanager
    def watching(self, loaded: LoadedModel) -> Iterator[None]:
        """Inside, the model's layers are watched for what was asked of them."""
        layers = range(1, len(loaded.family.layer_list(loaded.model)) + 1)
        with ExitStack() as undo:
            if self.hidden:
                undo.enter_context(SITES["resid"].recorded(loaded.model, loaded.family, layers, self.see_hidden))
            if self.attention:
                undo.enter_context(observed(loaded.model, self.see_scores, self.attention_from, self.period))
            undo.enter_context(marked(loaded.model, self.mark))
            yield

    def values(self) -> dict[str, NDArray[np.float32]]:
        """By signal, [layers, units, blocks]."""
        found: dict[str, list[NDArray[np.float32]]] = {}
        for name, layer in sorted(self.means):
            found.setdefault(name, []).append(self.means[name, layer].means().numpy())
        return {name: np.stack(layers) for name, layers in found.items()}


def collect(
    loaded: LoadedModel,
    scheme: Scheme,
    ids: Int[Tensor, "samples length"],
    names: Sequence[str],
    block: int,
    reference: Sequence[LayerReference],
    attention_from: int = 0,
    most_queries: int | None = None,
) -> Collected:
    """Pass texts through a model under a scheme, one by one, and collect signals.

    Args:
        loaded: a model with a vocabulary head.
        scheme: it fits the model.
        ids: texts.
        names: of `SIGNALS`; positional ones are made of "hidden" afterwards, by `positional_values`.
        block: positions that a value is a mean over.
        reference: of every layer, from `fit_reference`; empty where no signal goes by it.
        attention_from: first position of which signals of attention are wanted; they cost most.
        most_queries: of about so many queries from there on, evenly spread in short runs, they are a mean over; None
            for all.

    Raises:
        ProbeError: an unknown signal, or a likelihood that is NaN or infinite.
    """
    names = [name for name in names if not isinstance(SIGNALS[name], PositionalSignal)]
    each: dict[str, list[NDArray[np.float32]]] = {}
    nll = []
    with apply_scheme(loaded.model, scheme):
        for row in ids.split(1):
            one = _Pass(row, names, block, reference, attention_from, most_queries)
            with one.watching(loaded):
                found = nll_per_position(loaded.model, row.to(loaded.device), one.see_output)
            nll.append(found[0].double().numpy())
            for name, values in one.values().items():
                _keep(each, name, values, len(ids))
    likelihoods = np.stack(nll)
    if not np.isfinite(likelihoods[:, 1:]).all():
        raise not_finite(scheme.spec)
    return Collected({name: np.stack(values) for name, values in each.items()}, likelihoods)


def _keep(each: dict[str, list[NDArray[np.float32]]], name: str, values: NDArray[np.float32], samples: int) -> None:
    """Keep a text's values, or only their part of the mean over texts."""
    row = SIGNALS[name]
    if isinstance(row, HiddenSignal) and row.averaged:
        values = values / np.float32(samples)
        each[name] = [each[name][0] + values] if name in each else [values]
    else:
        each.setdefault(name, []).append(values)


def positional_values(
    hidden: Float[np.ndarray, "layers width blocks"], inside: Float[np.ndarray, "layers width known"]
) -> dict[str, NDArray[np.float32]]:
    """The positional signals, [1, layers, 1, blocks] each, from means of hidden vectors over texts.

    Args:
        hidden: of the texts in question.
        inside: of the model as trained, inside its window and past its first positions.
    """
    found: dict[str, list[NDArray[np.float32]]] = {}
    for mine, known in zip(hidden, inside, strict=True):
        mean = known.mean(1, keepdims=True)
        parts, trained = (torch.from_numpy(np.ascontiguousarray((one - mean).T)) for one in (mine, known))
        for row in SIGNALS.values():
            if isinstance(row, PositionalSignal):
                found.setdefault(row.name, []).append(row.of(parts, trained)[None].numpy())
    return {name: np.stack(layers)[None] for name, layers in found.items()}
