"""The `pieces` backend: every piece is fast ordinary attention, merged by log-sum-exp, never a T x T matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.attention.decode import attend_one
from probe.attention.encoding import Encoding
from probe.attention.kernels import Partial, attend, merge_
from probe.attention.placing import placed
from probe.attention.plan import Call, Index, Planner, Stage, plan
from probe.errors import ProbeError
from probe.schemes.pieces import Compiled, PlanName

QUERY_BLOCK = {"cpu": 256, "cuda": 2048}
"""Queries per masked kernel call by kind of device."""


def _planned(pieces: Compiled, first: int, block: int, encoding: Encoding) -> list[Stage]:
    """The plan of these pieces, kept beside them for the other layers."""
    raw_zero = not encoding.turns(torch.zeros(1))
    # A bias is taken relative to a query near by, so that with one no call may span many queries.
    planner = Planner(block, whole=not encoding.biased)
    name = PlanName(Stage, (block, encoding.biased, raw_zero))
    return pieces.planned(name, lambda: plan(pieces, first, planner, raw_zero))


def _taken(x: Tensor, rows: Index) -> Tensor:
    return x[:, :, rows] if isinstance(rows, slice) else x.index_select(2, placed(rows, x))


@dataclass
class _Keys:
    """Keys with their positions in: one buffer, in which a stage turns only what the stages before left elsewhere."""

    raw: Tensor
    value: Tensor
    encoding: Encoding
    turned: Tensor | None = None
    picked: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def of(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Keys and values for the calls of a stage. Stages come in the order of the plan."""
        if stage.only is not None:
            return self._only(stage.only, stage.k_pos)
        if stage.raw or not self.encoding.turns(torch.ones(1)):
            return self.raw, self.value
        if self.turned is None:
            self.turned = torch.empty(self.raw.shape, dtype=self.raw.dtype, device=self.raw.device)
        if isinstance(stage.update, slice):
            self.encoding.turned(self.raw[:, :, stage.update], stage.update_pos, self.turned[:, :, stage.update])
        elif stage.update is not None:
            changed = placed(stage.update, self.raw)
            self.turned.index_copy_(2, changed, self.encoding.turned(_taken(self.raw, changed), stage.update_pos))
        return self.turned, self.value

    def _only(self, only: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Some keys and their values; stages that follow one another may share them."""
        if self.picked is None or self.picked[0] is not only:
            self.picked = None
            key, value = _taken(self.raw, only), _taken(self.value, only)
            self.picked = only, (self.encoding.turned(key, k_pos), value)
        return self.picked[1]


@dataclass
class _Result:
    """The outputs so far and the log-sum-exp behind them."""

    out: Tensor
    lse: Tensor

    def add(self, call: Call, part: Partial) -> None:
        """A call's part, merged with what its queries have."""
        into = call.into
        if call.fresh and isinstance(into, slice) and into == slice(0, self.out.shape[2], 1):
            self.out, self.lse = part
        elif isinstance(into, slice):
            mine = self.out[:, :, into], self.lse[:, :, into]
            if call.fresh:
                mine[0].copy_(part[0])
                mine[1].copy_(part[1])
            else:
                merge_(mine, part)
        else:
            rows = placed(into, self.out)
            if not call.fresh:
                part = merge_((self.out.index_select(2, rows), self.lse.index_select(2, rows)), part)
            self.out.index_copy_(2, rows, part[0])
            self.lse.index_copy_(2, rows, part[1])


def _called(
    query: Tensor, key: Tensor, value: Tensor, stage: Stage, call: Call, encoding: Encoding, scaling: float
) -> Partial:
    """One kernel call, with the bias of its queries."""
    q_pos = stage.q_pos[call.rows]
    reference = float(q_pos[-1])
    q, k, v = query[:, :, call.rows], key[:, :, call.keys], value[:, :, call.keys]
    bias = encoding.bias(stage.k_pos[call.keys], reference, query)
    out, lse = attend(q, k, v, scaling, call.mask, bias, call.causal)
    offset = encoding.offset(q_pos, reference, query)
    lse = lse if offset is None else lse + offset
    return (out, lse) if stage.times == 1 else (out, lse + math.log(stage.times))


def attend_pieces(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    pieces: Compiled,
    encoding: Encoding,
    scaling: float,
    block: int | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries dim"]:
    """Attention of a whole scheme over raw (unrotated) queries and keys.

    Args:
        query: the last `queries` positions of the `keys` positions; their heads are a multiple of the keys' heads.
        key: raw keys.
        value: values.
        pieces: the scheme compiled for exactly these queries and keys, with the plan of its calls, so that layers which
            pass the same object share it.
        encoding: how positions enter, at the scheme's frequencies.
        scaling: factor on the scores.
        block: queries per masked kernel call; default by device. A single query is decoded (`probe.attention.decode`),
            unless this is given.
        sinks: one more term in the denominator of every row, for no key; None: there is none.

    Raises:
        ProbeError: at a backward pass.
    """
    with torch.no_grad():
        if query.shape[2] == 1 and block is None:
            out = attend_one(query, key, value, pieces, encoding, scaling, sinks)
        else:
            out = _attend_many(query, key, value, pieces, encoding, scaling, block, sinks)
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return _NoGradient.apply(out, query, key, value) if wanted else out


class _NoGradient(torch.autograd.Function):
    """Kernels give no gradient of a log-sum-exp, so merged pieces have none: a backward pass must not pass them by."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *inputs: Tensor) -> Tensor:
        """The output, which now needs the gradient it cannot have."""
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Always an error."""
        raise ProbeError("backend pieces: expected inference only, got a backward pass; use the backend 'dense'")


def _attend_many(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Compiled,
    encoding: Encoding,
    scaling: float,
    block: int | None,
    sinks: Tensor | None,
) -> Tensor:
    """The planned calls, stage by stage."""
    block = block or QUERY_BLOCK.get(query.device.type, 256)
    keys = _Keys(key, value, encoding)
    result = _Result(_empty(query), _no_lse(query))
    for stage in _planned(pieces, key.shape[2] - query.shape[2], block, encoding):
        turned_k, v = keys.of(stage)
        turned_q = encoding.turned(_taken(query, stage.rows), stage.q_pos)
        for call in stage.calls:
            result.add(call, _called(turned_q, turned_k, v, stage, call, encoding, scaling))
    if sinks is not None:  # exp(lse) of exp(lse) + exp(sink) is left for the keys
        share = torch.sigmoid(result.lse - sinks.to(result.lse.dtype)[:, None])
        result.out *= share[..., None].to(result.out.dtype)
    return result.out


def _empty(query: Tensor) -> Tensor:
    """Zeros in the layout that the model's next step reads: positions before heads."""
    batch, heads, queries, dim = query.shape
    return query.new_zeros(batch, queries, heads, dim).transpose(1, 2)


def _no_lse(query: Tensor) -> Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    return torch.full(query.shape[:3], float("-inf"), device=query.device, dtype=dtype)
