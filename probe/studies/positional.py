"""How much of a model's hidden vectors is position: the share of their variance that texts have in common by position.

Vectors of several texts at the same positions are taken apart by an analysis of variance with two factors, position and
text, without replication, summed over dimensions: what all texts share at a position (Dong et al. 2024,
https://arxiv.org/abs/2405.18009, equation 3), what a text shares at all positions, and the rest. The share of position
is omega squared (Hays 1963), which chance leaves at 0, and not at one over the number of texts. Once inside the window,
once past it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probe.defaults import usual_length
from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.recording.sites import SITES
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, resolve_schemes
from probe.seam.apply import apply_scheme, check_scheme
from probe.seam.chunked_prefill import marked
from probe.studies.passes import made_by
from probe.studies.pieces import PieceStore
from probe.tasks.inputs import Ids, draw_input

INSIDE, PAST = "inside", "past"
POSITIONS = 64
"""Positions of each side whose vectors are compared, evenly spread: neighbours are alike."""


@dataclass(frozen=True)
class PositionalRow:
    """How much of a layer's output is position.

    Attributes:
        scheme: its text.
        layer: 1 is the first.
        where: "inside" the window, past the burn-in; or "past" it.
        share: of the variance that is position's, 0 to 1 (a little below 0 by chance).
        low: lower end of its 95% interval, from leaving out each text in turn.
        high: upper end.
        text: share of the variance that is the text's.
    """

    scheme: str
    layer: int
    where: str
    share: float
    low: float
    high: float
    text: float


def shares(vectors: Float[np.ndarray, "texts positions width"]) -> tuple[float, float]:
    """(share of position, share of text) of the variance: omega squared of each factor, over all dimensions."""
    texts, positions, _ = vectors.shape
    grand = vectors.mean((0, 1))
    by_position, by_text = vectors.mean(0) - grand, vectors.mean(1) - grand
    total = float(np.square(vectors - grand).sum())
    position, text = texts * float(np.square(by_position).sum()), positions * float(np.square(by_text).sum())
    rest = max(0.0, total - position - text) / ((texts - 1) * (positions - 1))
    whole = max(total + rest, 1e-30)
    return (position - (positions - 1) * rest) / whole, (text - (texts - 1) * rest) / whole


def share_interval(vectors: Float[np.ndarray, "texts positions width"]) -> tuple[float, float, float, float]:
    """(share of position, low, high, share of text), with the 95% interval of a jackknife over texts."""
    share, text = shares(vectors)
    count = len(vectors)
    without = np.array([shares(np.delete(vectors, one, 0))[0] for one in range(count)])
    error = float(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))
    return share, share - 1.96 * error, share + 1.96 * error, text


@dataclass
class Positional:
    """The study of one model, under way: `rows` are those that are done.

    Attributes:
        loaded: the model.
        schemes: text, objects or both; they are resolved to objects.
        length: tokens of a text; None for `usual_length`.
        input: text, as `draw_input` takes it, or token ids.
        samples: texts, at least 3.
        seed: draws them.
        store: keeps the passes that are done.
        rows: what is done.
    """

    loaded: LoadedModel
    schemes: Any = ORIGIN
    length: int | None = None
    input: str | Ids = "documents"
    samples: int = 8
    seed: int = 0
    store: PieceStore = field(default_factory=PieceStore)
    rows: list[PositionalRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything before anything runs.

        Raises:
            ProbeError: too short a length, fewer than 3 texts, a scheme that does not fit the model.
        """
        window = self.loaded.window
        self.length = usual_length(window) if self.length is None else self.length
        if self.length < window + 8:
            raise FieldError("length", f"at least {window + 8}, the window and 8 more", self.length)
        self._drawn = draw_input(self.loaded, self.input, self.length, self.samples, self.seed)
        if len(self._drawn.ids) < 3:
            raise FieldError("samples", "at least 3, since what they have in common is asked", len(self._drawn.ids))
        self.schemes = resolve_schemes(self.schemes, window)
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
            scheme.weave_at(self.length)

    @property
    def total(self) -> int:
        """Lines that `run` will say."""
        return len(self.schemes)

    @property
    def positions(self) -> dict[str, list[int]]:
        """Those that are looked at, by side."""
        window, length = self.loaded.window, self.length or 0
        sides = {INSIDE: (window // 8, window), PAST: (window, length)}
        return {
            where: sorted({int(at) for at in np.linspace(first, last - 1, min(POSITIONS, last - first))})
            for where, (first, last) in sides.items()
        }

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each scheme was."""
        made_with = self._settings() | made_by(self.loaded) | {"sha256": self._drawn.record().sha256}
        del made_with["schemes"]
        with self.store.opened(made_with):
            for scheme in self.schemes:
                self.rows.extend(self._row(scheme))
                yield scheme.spec

    def _row(self, scheme: Scheme) -> list[PositionalRow]:
        def measured() -> dict[str, NDArray[Any]]:
            return {"shares": self._shares(scheme)}

        found = self.store.once(scheme.spec, measured)["shares"]
        return [
            PositionalRow(scheme.spec, layer + 1, where, *(float(value) for value in found[side, layer]))
            for side, where in enumerate((INSIDE, PAST))
            for layer in range(found.shape[1])
        ]

    def _shares(self, scheme: Scheme) -> Float[np.ndarray, "sides layers numbers"]:
        wanted = self.positions
        taken = self._vectors(scheme, [*wanted[INSIDE], *wanted[PAST]])
        border = len(wanted[INSIDE])
        sides = [
            [share_interval(layer[:, part]) for layer in taken] for part in (slice(None, border), slice(border, None))
        ]
        return np.array(sides)

    @torch.no_grad()
    def _vectors(self, scheme: Scheme, positions: Sequence[int]) -> list[Float[np.ndarray, "texts positions width"]]:
        """Of every layer's output, float64."""
        loaded = self.loaded
        layers = range(1, len(loaded.family.layer_list(loaded.model)) + 1)
        each: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        parts: dict[int, list[Tensor]] = {}

        def take(layer: int, hidden: Tensor) -> None:
            parts.setdefault(layer, []).append(hidden[0].float().cpu())

        def mark() -> Any:
            counts = {layer: len(found) for layer, found in parts.items()}

            def undo() -> None:
                for layer, found in parts.items():
                    del found[counts.get(layer, 0) :]

            return undo

        with (
            SITES["resid"].recorded(loaded.model, loaded.family, layers, take),
            marked(loaded.model, mark),
            apply_scheme(loaded.model, scheme),
        ):
            for row in self._drawn.ids.split(1):
                parts.clear()
                loaded.model.base_model(input_ids=row.to(loaded.device), use_cache=False)
                for layer, found in parts.items():
                    each[layer].append(torch.cat(found)[list(positions)])
        return [torch.stack(each[layer]).double().numpy() for layer in layers]

    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.loaded.name, "window": self.loaded.window, "length": self.length,
            "schemes": [scheme.spec for scheme in self.schemes], "input": self._drawn.spec,
            "samples": len(self._drawn.ids), "seed": self.seed, "positions": POSITIONS,
        }  # fmt: skip

    def result(self, complete: bool) -> Result[PositionalRow]:
        """The rows so far, with what they were made with."""
        return Result("positional", self._settings(), Provenance.now(), Records(self.rows), complete)


def positional_rows(result: Any) -> list[PositionalRow]:
    """The rows of a result.

    Raises:
        FieldError: it is no result of `probe positional`.
    """
    try:
        return [PositionalRow(**row) for row in result["rows"]]
    except (KeyError, TypeError):
        raise FieldError("file", hint="expected the JSON of probe positional") from None
