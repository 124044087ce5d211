"""Positions that the caller of a model gives: gaps, offsets, interpolated and packed sequences.

Where they are 0, 1, 2, ... nothing of this is used. Otherwise every (query, key) pair of a call gets W of the positions
given, by the dense definition: exact, and quadratic in memory. What sees what goes by the order of the tokens, as in
the stock model; sinks, windows and blocks of a scheme go by the positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from transformers.masking_utils import find_packed_sequence_indices

from constructions.weave import Linear, Weave
from probe.attention.dense import MAX_LENGTH
from probe.errors import FieldError
from probe.schemes.visibility import Visibility

KEPT = "_weavescope_positions"
"""Attribute of a cache: positions of the tokens in it, [batch, tokens], where they were given."""


@dataclass(frozen=True)
class GivenPositions:
    """Positions of all tokens so far, and which of them belong to one packed sequence; on the CPU.

    Attributes:
        positions: [batch, tokens], whole numbers or not.
        sequences: [batch, tokens], equal for tokens of one packed sequence; None where nothing is packed.
    """

    positions: Shaped[Tensor, "batch tokens"]
    sequences: Int[Tensor, "batch tokens"] | None = None

    @property
    def length(self) -> int:
        """What schemes whose parameters follow the length are made for: one more than the last position, rounded up."""
        return max(1, math.floor(float(self.positions.max())) + 1)

    def row(self, number: int, keys: int) -> tuple[Shaped[Tensor, " keys"], Int[Tensor, " keys"] | None]:
        """Positions, and packed sequences, of the first `keys` tokens of one row."""
        mine = None if self.sequences is None else self.sequences[number, :keys]
        return self.positions[number, :keys], mine

    def mask(
        self,
        number: int,
        keys: int,
        queries: int,
        weave: Weave,
        visibility: Visibility,
        real: Bool[Tensor, " keys"],
        by_order: bool = False,
    ) -> Bool[Tensor, "queries keys"]:
        """Which keys each of the last `queries` tokens of a row sees.

        Args:
            number: of the row.
            keys: tokens so far.
            queries: tokens of the call.
            weave: of the scheme.
            visibility: of the scheme.
            real: keys that are no padding.
            by_order: whether the visibility is a window of the model's own, which goes by the order of the tokens.

        Raises:
            FieldError: a token that comes later has an earlier position, and the scheme is not the model as trained.
        """
        positions, sequences = self.row(number, keys)
        at = torch.arange(keys)
        sees = (at[None] <= at[keys - queries :, None]) & real[None]
        if sequences is not None:
            sees &= sequences[None] == sequences[keys - queries :, None]
        ahead = positions[None] > positions[keys - queries :, None]
        plain = isinstance(weave, Linear) and (by_order or type(visibility) is Visibility)
        if not plain and bool((sees & ahead).any()):
            raise FieldError(
                "position_ids",
                "positions that do not fall from token to token, for a scheme with a weave or a visibility of its own",
                hint="packed sequences are told apart by the stock model's rule: without a mask, with use_cache=False",
            )
        if by_order:
            sees &= visibility.sees(at[keys - queries :, None], at[None])
        elif type(visibility) is not Visibility:
            sees &= visibility.sees(positions[keys - queries :, None], positions[None])
        return sees


def _default(mask: Tensor | None, held: int, new: int, rows: int) -> Int[Tensor, "rows new"]:
    """The positions that tokens have where nobody gives any: their number, padding left out."""
    if mask is None or mask.ndim != 2:
        return torch.arange(held, held + new).expand(rows, -1)
    return (mask.cpu().long().cumsum(-1) - 1)[:, -new:]


def given_positions(arguments: dict[str, Any], held: int, new: int, rows: int, cached: bool) -> GivenPositions | None:
    """What a call of the decoder says of positions; None where they are those that every call has.

    Args:
        arguments: of the call, by name.
        held: tokens in the cache.
        new: tokens of the call.
        rows: sequences.
        cached: whether the call has a cache, with which the stock model looks for no packed sequences.

    Raises:
        FieldError: positions of another shape, or more of them than the dense definition takes.
    """
    given, before = arguments.get("position_ids"), getattr(arguments.get("past_key_values"), KEPT, None)
    if given is None and before is None:
        return None
    mask = arguments.get("attention_mask")
    usual = _default(mask, held, new, rows)
    mine = usual
    if given is not None:
        if given.ndim != 2 or given.shape[1] != new or given.shape[0] not in (1, rows):
            raise FieldError("position_ids", f"shape ({rows}, {new})", tuple(given.shape))
        mine = given.cpu().expand(rows, -1)
    if before is None and _same(mine, usual, mask):
        return None
    if held + new > MAX_LENGTH:
        raise FieldError("position_ids", f"at most {MAX_LENGTH} tokens with positions of one's own", held + new)
    past = torch.arange(held).expand(rows, -1) if before is None else before[:, :held]
    positions = torch.cat((past.to(mine.dtype) if held else mine[:, :0], mine), dim=1)
    packed = find_packed_sequence_indices(mine) if mask is None and not cached else None
    return GivenPositions(positions, packed)


def _same(mine: Tensor, usual: Tensor, mask: Tensor | None) -> bool:
    """Whether given positions are the usual ones, or with padding at the left their tokens' numbers in the row."""
    if mask is None or mask.ndim != 2:
        return torch.equal(mine, usual.to(mine.dtype))
    real = mask[:, -mine.shape[1] :].cpu().bool()
    plain = torch.arange(mask.shape[1] - mine.shape[1], mask.shape[1]).expand(len(mine), -1)
    return any(bool((mine == one)[real].all()) for one in (usual, plain))
