"""The same weights and tokens through both sides, and how far their logits are apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import ProbeError
from probe.foreign import Process, save_model
from probe.models.random import Shape, bench_model
from probe.peers.cases import Case, Peer, Theirs
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme

SAME = 1e-4
"""Of the largest logit: float32 rounding, in another order. Both sides are called equal up to here."""
SHARPEN = 8.0
"""Factor on the random weights of queries and keys, so that attention looks at positions."""
Logits = Float[Tensor, "length vocabulary"]


@dataclass(frozen=True)
class Difference:
    """Largest differences of logits, relative to the largest logit.

    Attributes:
        inside: of the positions inside the window.
        past: of those past it.
        first: the first position that differs by more than `SAME`; None where none does.
    """

    inside: float
    past: float
    first: int | None

    @property
    def largest(self) -> float:
        """Over all positions."""
        return max(self.inside, self.past)


def difference(mine: Logits, other: Logits, window: int) -> Difference:
    """How far logits are apart, position by position.

    Raises:
        ProbeError: they are not of the same shape, or not finite.
    """
    if mine.shape != other.shape:
        raise ProbeError(f"logits: ours have the shape {tuple(mine.shape)}, theirs {tuple(other.shape)}")
    if not bool(mine.isfinite().all() and other.isfinite().all()):
        raise ProbeError("logits: expected finite numbers")
    off = (mine - other).abs().amax(-1) / mine.abs().max()
    far = (off > SAME).nonzero().flatten().tolist()
    inside, past = off[:window], off[window:]
    return Difference(inside.max().item(), past.max().item() if len(past) else 0.0, far[0] if far else None)


def verdict(found: Difference, expected: str) -> str:
    """In words: equal, or differs and whether that is known. What is neither equal nor known is in capitals."""
    same = found.largest <= SAME
    if same:
        return "EQUAL, expected: " + expected if expected else "equal"
    return f"differs: {expected}" if expected else "DIFFERS"


class Ours:
    """Our side: the model of a folder, which runs under any scheme."""

    def __init__(self, folder: Path, window: int, ids: list[int]) -> None:
        self.model = bench_model(str(folder), device="cpu", dtype="float32", window=window, seed=0).model
        self.window, self.ids = window, torch.tensor(ids)[None]

    def logits(self, spec: str, case: Case) -> Logits:
        """Logits under a scheme, tokens coming as the case says; with an empty scheme, of the stock model in one call.

        Raises:
            ProbeError: no such scheme.
        """
        ids, first = self.ids[:, : case.length], case.first if spec else case.length
        scheme = parse_scheme(spec, self.window) if spec else None
        applied = (
            apply_scheme(self.model, scheme, prompt=case.length if case.whole else None) if scheme else nullcontext()
        )
        made, cache = [], None
        with applied, torch.no_grad():
            for part in [ids[:, :first], *ids[:, first:].split(1, 1)] if first < case.length else [ids]:
                out = self.model(part, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                made.append(out.logits[0])
        return torch.cat(made)


def theirs(process: Process, folder: Path, case: Case) -> Logits:
    """The authors' logits.

    Raises:
        ProbeError: their code failed; the message says how.
    """
    out = folder / "logits.npy"
    request = {
        "folder": str(folder), "out": str(out), "length": case.length, "prompt": case.first,
        "theirs": dict(case.theirs),
    }  # fmt: skip
    answer = process.ask(request)
    if "error" in answer:
        raise ProbeError(f"their code failed: {answer['error']}")
    return torch.from_numpy(np.load(out))


@dataclass(frozen=True)
class Comparison:
    """One case on one model. Differences are of logits, relative to the largest; None where their code failed.

    Attributes:
        kv_heads: key heads of the model.
        name: of the case, like all that follow up to `differs`.
        ours: the scheme.
        theirs: the parameters of the authors' code.
        control: our scheme with a parameter off by one.
        length: tokens T.
        prompt: of them, how many in the first call.
        whole: ours was told that all T are the prompt.
        differs: why the two are known to differ.
        inside: largest difference at positions inside the window.
        past: likewise past it.
        first: the first position that differs by more than `SAME`; None where none does.
        verdict: in words.
        off_by_one: how far the control is from theirs.
        stock: how far the model without a scheme is from theirs.
    """

    kv_heads: int
    name: str
    ours: str
    theirs: Theirs
    control: str
    length: int
    prompt: int
    whole: bool
    differs: str
    inside: float | None = None
    past: float | None = None
    first: int | None = None
    verdict: str = ""
    off_by_one: float | None = None
    stock: float | None = None


def compared(case: Case, kv_heads: int, ours: Ours, process: Process, folder: Path) -> Comparison:
    """Run one case through both sides; where one failed, the verdict says why."""
    made = Comparison(
        kv_heads, case.name, case.ours, dict(case.theirs), case.control, case.length, case.first, case.whole,
        case.differs,
    )  # fmt: skip
    try:
        other = theirs(process, folder, case)
        found = difference(ours.logits(case.ours, case), other, ours.window)
    except ProbeError as error:
        return replace(made, verdict=str(error))
    return replace(
        made, inside=found.inside, past=found.past, first=found.first, verdict=verdict(found, case.differs),
        off_by_one=difference(ours.logits(case.control, case), other, ours.window).largest,
        stock=difference(ours.logits("", case), other, ours.window).largest,
    )  # fmt: skip


def comparisons(
    peer: Peer, shape: Shape, cases: list[Case], process: Process, folder: Path, seed: int
) -> Iterator[Comparison]:
    """Every case, on a model with as many key heads as query heads, then, for a grouped peer, with half of them."""
    for kv_heads in (shape.heads, shape.heads // 2) if peer.grouped else (shape.heads,):
        made = folder / f"kv{kv_heads}"
        made.mkdir()
        tokens = max(case.length for case in cases)
        drawn = save_model(replace(shape, kv_heads=kv_heads), made, tokens, seed, SHARPEN)
        ours = Ours(made, shape.window, drawn)
        for case in cases:
            yield compared(case, kv_heads, ours, process, made)
