"""What a number type costs: a model under every scheme in float32, bfloat16, float16, beside the same in float64.

The weights are rounded to the type first and the reference has the rounded ones, so that only the arithmetic differs:
what is seen is what a scheme's own additions (turning twice, merging pieces by log-sum-exp, scaling by log-n) add to
what the stock model loses in that type anyway. The reference computes rotary angles in float64 too, which the stock
model does not: angles in float32 are off by up to 2^-24 of themselves, 0.6 radians at ten million tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax

from probe.errors import FieldError, unknown
from probe.models.load import DTYPES, LoadedModel
from probe.provenance import Provenance
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, make_scheme, resolve_schemes
from probe.seam.apply import apply_scheme, check_scheme, fitting
from probe.tasks.inputs import Ids, draw_input
from probe.tasks.nll import logits_of

STOCK = "stock"
"""The model as transformers runs it, nothing applied."""
USUAL = ("float32", "bfloat16", "float16")
_BLOCK = 512
"""Positions whose logits are held at once."""


_Outputs = tuple[Float[Tensor, "positions width"], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PrecisionRow:
    """A scheme in a number type, beside the same in float64.

    Attributes:
        scheme: its text, or "stock".
        dtype: of weights and arithmetic.
        error: root mean square of what the last layer's output differs by, relative to that of the output.
        nats: mean of what the log-probability of the next token differs by.
        most: the largest such difference.
        same: share of positions with the same most likely token, 0 to 1.
        ratio: of the error to the stock model's in the same type; None where that has none.
        untold: why nothing could be told; None where it could.
    """

    scheme: str
    dtype: str
    error: float | None = None
    nats: float | None = None
    most: float | None = None
    same: float | None = None
    ratio: float | None = None
    untold: str | None = None


def cast(model: Any, dtype: torch.dtype) -> Any:
    """A copy with weights of another type. What a checkpoint does not hold (rotary frequencies) stays as it is, as it
    does when transformers loads a model in that type.
    """
    found = copy.deepcopy(model).to(dtype)
    for mine, original in zip(found.modules(), model.modules(), strict=True):
        for name in original._non_persistent_buffers_set:
            setattr(mine, name, getattr(original, name))
    return found


@dataclass
class Precision:
    """The comparison of one model, under way: `rows` are those that are done.

    Attributes:
        loaded: the model; its own weights' type does not matter as long as it has more digits than those asked for.
        schemes: text, objects or both; None for every preset that fits.
        dtypes: names, of `DTYPES` without float64.
        length: tokens; None for twice the window, at most 2048.
        input: text, as `draw_input` takes it, or token ids.
        seed: of the text.
        exact_angles: compute rotary angles in float64 in every type; the stock model does not.
        rows: what is done.
    """

    loaded: LoadedModel
    schemes: Any = None
    dtypes: Sequence[str] = USUAL
    length: int | None = None
    input: str | Ids = "documents"
    seed: int = 0
    exact_angles: bool = False
    rows: list[PrecisionRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything before anything runs.

        Raises:
            ProbeError: a type that is none or float64, a length of less than 8 tokens, a model without a head, a scheme
                that does not fit.
        """
        if not self.loaded.family.head:
            raise FieldError("model", hint="has no vocabulary head, so that no token is likelier than another")
        for name in self.dtypes:
            if name not in DTYPES:
                raise unknown("dtype", name, USUAL)
            if name == "float64":
                raise FieldError("dtypes", "some of " + ", ".join(USUAL), "float64, which they are compared with")
        if not self.dtypes:
            raise FieldError("dtypes", "at least one", "none")
        window = self.loaded.window
        self.length = min(2 * window, 2048) if self.length is None else self.length
        if self.length < 8:
            raise FieldError("length", "at least 8", self.length)
        self._drawn = draw_input(self.loaded, self.input, self.length, 1, self.seed)
        if self.schemes is None:
            self.schemes = fitting(self.loaded.model, window, "rerope+logn", "mesa+logn")
        self.schemes = resolve_schemes(self.schemes, window)
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
            scheme.weave_at(self.length)

    @property
    def total(self) -> int:
        """Rows that there will be."""
        return len(self.dtypes) * (1 + len(self.schemes))

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each one was."""
        for name in self.dtypes:
            low = cast(self.loaded.model, DTYPES[name])
            high = cast(low, torch.float64)
            # What the stock model loses is lost against exact angles too, so its reference is `origin`, not itself.
            origin = make_scheme(ORIGIN, self.loaded.window)
            trained = self._outputs(high, origin, True)
            stock: float | None = None
            for scheme in (None, *self.schemes):
                plain = scheme is None or scheme.spec == origin.spec
                exact = trained if plain else self._outputs(high, scheme, True)
                row = self._row(name, scheme, low, exact, stock)
                stock = row.error if scheme is None else stock
                self.rows.append(row)
                yield f"{row.scheme} in {name}"

    def _row(
        self, name: str, scheme: Scheme | None, low: Any, reference: _Outputs, stock: float | None
    ) -> PrecisionRow:
        said = STOCK if scheme is None else scheme.spec
        try:
            hidden, scores = self._outputs(low, scheme, self.exact_angles)
        except RuntimeError as failed:
            if scheme is not None:
                raise
            # An MPT whose bias is a table of M rows, for one.
            return PrecisionRow(said, name, untold=f"transformers does not run it at this length: {failed}")
        if not bool(hidden.isfinite().all()):
            return PrecisionRow(said, name, untold=f"NaN or infinite in {name}")
        exact, right = reference
        if not bool(exact.isfinite().all()):
            return PrecisionRow(said, name, untold="NaN or infinite in float64")
        error = float((hidden - exact).norm() / exact.norm())
        off = (scores[0] - right[0]).abs()
        return PrecisionRow(
            said, name, error, float(off.mean()), float(off.max()), float((scores[1] == right[1]).double().mean()),
            1.0 if scheme is None else error / stock if stock else None,
        )  # fmt: skip

    @torch.no_grad()
    def _outputs(self, model: Any, scheme: Scheme | None, exact_angles: bool) -> _Outputs:
        """(the last layer's output, (log-probability of every next token, most likely token)), float64 on the CPU."""
        ids = self._drawn.ids[:1].to(self.loaded.device)
        if scheme is None:
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        else:
            with apply_scheme(model, scheme, exact_angles=exact_angles):
                hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden[0].double().cpu(), self._scored(model, hidden[:, :-1], ids[0, 1:])

    @staticmethod
    def _scored(model: Any, hidden: Tensor, targets: Int[Tensor, " positions"]) -> tuple[Tensor, Tensor]:
        found, best = [], []
        for part, mine in zip(hidden.split(_BLOCK, dim=1), targets.split(_BLOCK), strict=True):
            logits = log_softmax(logits_of(model, part)[0].double(), dim=-1)
            found.append(logits.gather(1, mine[:, None])[:, 0].cpu())
            best.append(logits.argmax(dim=-1).cpu())
        return torch.cat(found), torch.cat(best)

    def result(self, complete: bool) -> Result[PrecisionRow]:
        """The rows so far, with what they were made with."""
        settings = {
            "model": self.loaded.name, "window": self.loaded.window, "length": self.length,
            "schemes": [scheme.spec for scheme in self.schemes], "dtypes": list(self.dtypes),
            "input": self._drawn.spec, "seed": self.seed, "exact_angles": self.exact_angles,
        }  # fmt: skip
        return Result("precision", settings, Provenance.now(), Records(self.rows), complete)
