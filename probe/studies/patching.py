"""Do hidden states that leave their range cause the failure? Put back what they were like inside the window, and look.

While a long input runs, the hidden vectors past the window are changed, in one layer or in all: every dimension clamped
into the range that it has inside the window, the positional part replaced by that at the window's end, or, as a
control, as much added in a random direction. If hidden values past their range broke the model (the paper's assumption,
Sec. 3.4), its likelihood would come back. What does bring it back is measured beside it: distances folded back into the
window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.provenance import Provenance
from probe.recording.sites import SITES
from probe.results import Records, Result
from probe.schemes import ORIGIN, Scheme, make_scheme, resolve_schemes
from probe.schemes.cut_out import folded
from probe.seam.apply import apply_scheme, check_scheme
from probe.signals.collect import HIDDEN, collect
from probe.studies.causes import ending, paired_interval, tail_nll, tail_of
from probe.tables import Table
from probe.tasks.inputs import Ids, draw_input
from probe.thresholds.measured import NLL_FLOOR

ALL = 0
"""The "layer" of a patch of all layers at once, and of what is no patch of a layer."""
NOTHING, FOLDED = "nothing", "distances folded"
BLOCKS_PER_WINDOW = 32

Edit = Callable[[Tensor, int], Tensor]
"""Changes hidden vectors [batch, positions, width], the first of which is at a position; called past the window."""


@dataclass(frozen=True)
class LayerKnown:
    """What texts other than those that are patched say of a layer.

    Attributes:
        low: [width], the least value of each dimension inside the window, past its first eighth.
        high: [width], the largest.
        means: [blocks, width], of hidden vectors over texts under the scheme, by block of positions.
        end: [width], of the trained model over the last quarter of the window.
        block: positions of a block.
        seed: of what is random.
    """

    low: Float[Tensor, " width"]
    high: Float[Tensor, " width"]
    means: Float[Tensor, "blocks width"]
    end: Float[Tensor, " width"]
    block: int
    seed: int

    def drift(self, start: int, count: int) -> Float[Tensor, "positions width"]:
        """How far the positional part of some positions is from that at the window's end."""
        at = (torch.arange(start, start + count) // self.block).clamp(max=len(self.means) - 1)
        return self.means[at] - self.end


def _clamped(known: LayerKnown) -> Edit:
    return lambda hidden, _: torch.minimum(torch.maximum(hidden, known.low.to(hidden)), known.high.to(hidden))


def _replaced(known: LayerKnown) -> Edit:
    return lambda hidden, start: hidden - known.drift(start, hidden.shape[1]).to(hidden)


def _disturbed(known: LayerKnown) -> Edit:
    made = torch.Generator().manual_seed(known.seed)
    direction = torch.randn(len(known.end), generator=made)
    direction = direction / direction.norm()
    return lambda hidden, start: (
        hidden + (known.drift(start, hidden.shape[1]).norm(dim=-1, keepdim=True) * direction).to(hidden)
    )


@dataclass(frozen=True)
class Patch:
    """One row: what is done to a layer's hidden vectors past the window.

    Attributes:
        name: by which users ask for it.
        help: what it does, in a few words.
        of: what is known of a layer -> what changes its hidden vectors.
    """

    name: str
    help: str
    of: Callable[[LayerKnown], Edit]


PATCHES: Table[Patch] = Table(
    "patch",
    Patch,
    (
        Patch("clamp", "every dimension into its range inside the window", _clamped),
        Patch("positional", "the positional part into that at the window's end", _replaced),
        Patch("random", "as much as that, in a random direction: a control", _disturbed),
    ),
)


@dataclass(frozen=True)
class PatchRow:
    """The rise of a scheme at a length, with something put back.

    Attributes:
        scheme: its text.
        length: tokens.
        patch: name of the patch; "nothing" for the model as it is; "distances folded" for the scheme with every
            distance folded back into the window.
        layer: that was changed, 1 is the first; 0 for all, or none.
        rise: nats per token, paired with the trained model inside its window; None where it could not be had.
        low: lower end of its 95% interval, from resampled blocks of 64 tokens.
        high: upper end.
        changed: root mean square of what was added to hidden vectors past the window, over that of the vectors; None
            where nothing was.
        untold: why there is no rise.
    """

    scheme: str
    length: int
    patch: str
    layer: int
    rise: float | None = None
    low: float | None = None
    high: float | None = None
    changed: float | None = None
    untold: str | None = None


@dataclass
class Change:
    """How much was changed: sums of squares."""

    added: float = 0.0
    there: float = 0.0

    @property
    def share(self) -> float | None:
        """Of what is there, by root mean square; None where nothing came past the window."""
        return (self.added / self.there) ** 0.5 if self.there else None


@contextmanager
def edited(loaded: LoadedModel, edits: dict[int, Edit], start: int) -> Iterator[Change]:
    """Inside, one text's pass has the outputs of some layers changed from position `start` on.

    Args:
        loaded: the model; its scheme is applied outside.
        edits: by layer, 1 is the first.
        start: first position that is changed.
    """
    change, at = Change(), dict.fromkeys(edits, 0)

    def hook(layer: int) -> Callable[..., Any]:
        def put(_module: nn.Module, _inputs: object, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            first, at[layer] = at[layer], at[layer] + hidden.shape[1]
            keep = max(0, start - first)
            if keep >= hidden.shape[1]:
                return None
            rest = hidden[:, keep:]
            new = edits[layer](rest, first + keep)
            change.added += float((new - rest).double().square().sum())
            change.there += float(rest.double().square().sum())
            made = torch.cat((hidden[:, :keep], new), 1)
            return (made, *output[1:]) if isinstance(output, tuple) else made

        return put

    with ExitStack() as undo:
        for layer in edits:
            module = loaded.family.layer_list(loaded.model)[layer - 1]
            undo.callback(module.register_forward_hook(hook(layer)).remove)
        yield change


@torch.no_grad()
def ranges(
    loaded: LoadedModel, ids: Int[Tensor, "samples length"], burn_in: int
) -> Sequence[tuple[Float[Tensor, " width"], Float[Tensor, " width"]]]:
    """Least and largest value of every dimension of each layer over texts, past the burn-in, of the trained model."""
    layers = range(1, len(loaded.family.layer_list(loaded.model)) + 1)
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def take(layer: int, hidden: Tensor) -> None:
        mine = hidden[0, burn_in:].float()
        low, high = mine.amin(0).cpu(), mine.amax(0).cpu()
        if layer in found:
            low, high = torch.minimum(low, found[layer][0]), torch.maximum(high, found[layer][1])
        found[layer] = low, high

    scheme = make_scheme(ORIGIN, loaded.window)
    with SITES["resid"].recorded(loaded.model, loaded.family, layers, take), apply_scheme(loaded.model, scheme):
        for row in ids.split(1):
            loaded.model.base_model(input_ids=row.to(loaded.device), use_cache=False)
    return [found[layer] for layer in layers]


@dataclass
class Patching:
    """The study of one model, under way: `rows` are those that are done.

    Attributes:
        loaded: a model with a vocabulary head.
        schemes: text, objects or both; they are resolved to objects.
        length: tokens of the long input; None for 2M.
        patches: names in `PATCHES`; None for all.
        layers: 1-based, each changed by itself; None for every one. All at once always comes first.
        input: text, as `draw_input` takes it, or token ids of twice as many texts.
        samples: texts that are patched; as many others say what is known.
        tail: last tokens that a rise is a mean over; None for a quarter of the window.
        seed: draws the texts and the random direction.
        rows: what is done.
    """

    loaded: LoadedModel
    schemes: Any = ORIGIN
    length: int | None = None
    patches: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    input: str | Ids = "documents"
    samples: int = 4
    tail: int | None = None
    seed: int = 0
    rows: list[PatchRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check everything before anything runs.

        Raises:
            ProbeError: a length inside the window, a tail that does not fit, an unknown patch, a layer that is not
                there, a model without a head, a scheme that does not fit the model.
        """
        window, count = self.loaded.window, len(self.loaded.family.layer_list(self.loaded.model))
        if not self.loaded.family.head:
            raise FieldError("model", hint="has no vocabulary head, so that no failure can be measured")
        self.length = 2 * window if self.length is None else self.length
        if self.length <= window:
            raise FieldError("length", f"more than the window of {window} tokens", self.length)
        self.tail = tail_of(self.tail, window)
        if self.samples < 1:
            raise FieldError("samples", "at least 1", self.samples)
        self.patches = tuple(PATCHES) if self.patches is None else tuple(self.patches)
        for name in self.patches:
            PATCHES[name]
        self.layers = range(1, count + 1) if self.layers is None else tuple(self.layers)
        for layer in self.layers:
            if not 1 <= layer <= count:
                raise FieldError("layers", f"1 to {count} (layer 1 is the first)", layer)
        self.schemes = resolve_schemes(self.schemes, window)
        for scheme in self.schemes:
            check_scheme(self.loaded.model, scheme)
        ids = draw_input(self.loaded, self.input, self.length, 2 * self.samples, self.seed).ids
        if len(ids) < 2 * self.samples:
            expected = f"at least {2 * self.samples} texts, for {{samples}} {self.samples} and as many others"
            raise FieldError("input", expected, len(ids))
        self._ids, self._others = ids[: self.samples], ids[self.samples :]

    @property
    def total(self) -> int:
        """Rows that there will be."""
        return len(self.schemes) * (2 + len(self.patches or ()) * (1 + len(self.layers or ())))

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each one was."""
        trained = make_scheme(ORIGIN, self.loaded.window)
        base = self._tails(trained, ending(self.loaded, self._ids, self.loaded.window))
        inside = ending(self.loaded, self._others, self.loaded.window)
        block = max(4, self.loaded.window // BLOCKS_PER_WINDOW)
        spread = ranges(self.loaded, inside, self.loaded.window // 8)
        ends = collect(self.loaded, trained, inside, [HIDDEN], block, []).values[HIDDEN][0]
        for scheme in self.schemes:
            self._add(scheme, NOTHING, ALL, self._tails(scheme, self._ids) - base)
            yield f"{scheme.spec} {NOTHING}"
            self._fold(scheme, base)
            yield f"{scheme.spec} {FOLDED}"
            means = collect(self.loaded, scheme, self._others, [HIDDEN], block, []).values[HIDDEN][0]
            known = [
                LayerKnown(
                    *spread[n], torch.from_numpy(np.ascontiguousarray(means[n].T)),
                    torch.from_numpy(ends[n][:, -BLOCKS_PER_WINDOW // 4 :].mean(1)), block, self.seed,
                )
                for n in range(len(spread))
            ]  # fmt: skip
            for name in self.patches or ():
                for layer in (ALL, *(self.layers or ())):
                    self._patch(scheme, name, layer, known, base)
                    yield f"{scheme.spec} {name} {'all layers' if layer == ALL else f'layer {layer}'}"

    def _patch(self, scheme: Scheme, name: str, layer: int, known: Sequence[LayerKnown], base: Tensor) -> None:
        which = range(1, len(known) + 1) if layer == ALL else [layer]
        edits = {number: PATCHES[name].of(known[number - 1]) for number in which}
        tails, changes = [], []
        for row in self._ids.split(1):
            with edited(self.loaded, edits, self.loaded.window) as change:
                tails.append(self._tails(scheme, row))
            changes.append(change.share or 0.0)
        self._add(scheme, name, layer, torch.cat(tails) - base, sum(changes) / len(changes))

    def _fold(self, scheme: Scheme, base: Tensor) -> None:
        assert self.length is not None
        same = folded(scheme, self.length)
        if same is None:
            why = "its weave goes past the window by itself, so that there is no one way to fold it back"
            self.rows.append(PatchRow(scheme.spec, self.length, FOLDED, ALL, untold=why))
        else:
            self._add(scheme, FOLDED, ALL, self._tails(same, self._ids) - base)

    def _add(self, scheme: Scheme, name: str, layer: int, rises: Tensor, changed: float | None = None) -> None:
        rise, low, high = paired_interval(rises.numpy(), self.seed)
        self.rows.append(PatchRow(scheme.spec, self.length or 0, name, layer, rise, low, high, changed))

    def _tails(self, scheme: Scheme, ids: Tensor) -> Float[Tensor, "samples tail"]:
        assert self.tail is not None
        return tail_nll(self.loaded, scheme, ids, self.tail)

    def result(self, complete: bool) -> Result[PatchRow]:
        """The rows so far, with what they were made with."""
        settings = {
            "model": self.loaded.name, "window": self.loaded.window,
            "schemes": [scheme.spec for scheme in self.schemes], "length": self.length,
            "patches": list(self.patches or ()), "layers": list(self.layers or ()),
            "input": self.input if isinstance(self.input, str) else "ids",
            "samples": self.samples, "tail": self.tail, "seed": self.seed, "floor": NLL_FLOOR,
        }  # fmt: skip
        return Result("patch", settings, Provenance.now(), Records(self.rows), complete)


def recovered(row: PatchRow, rows: Sequence[PatchRow]) -> float | None:
    """Share of the rise that is gone, 1 for all and below 0 for a patch that does harm; None where nothing failed or it
    could not be told.
    """
    whole = next((one for one in rows if (one.scheme, one.patch) == (row.scheme, NOTHING)), None)
    if whole is None or whole.low is None or whole.rise is None or whole.low <= NLL_FLOOR or row.rise is None:
        return None
    return 1 - row.rise / whole.rise
