"""A scheme for an engine that has its own model code and a paged cache: what it needs is the model's configuration.

The engine keeps raw keys in its pages (its rotary turns nothing), and calls `attend` for every layer and sequence. All
that a scheme is comes from the same objects as everywhere: nothing about positions is defined here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from probe.attention.paged import Pages, attend_paged
from probe.errors import FieldError
from probe.models.load import model_window
from probe.schemes import Scheme, parse_scheme
from probe.seam.apply import check_scheme, compiled_by_window
from probe.seam.attend import CompiledScheme
from probe.seam.families import Family, family_of
from probe.seam.positions import Bias, PositionEncoding, Rope

_KEPT = 512
"""Sequences of one step whose plans are kept for its other layers."""


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """A model of this configuration without weights, but with its rotary: what says how positions enter each layer."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    family = family_of(model.config)
    if family.rotary:
        parent, _, leaf = family.rotary.rpartition(".")
        kind = type(model.get_submodule(family.rotary))
        setattr(model.get_submodule(parent), leaf, kind(model.config))
    return model


def follows_input(scheme: Scheme, layers: Sequence[PositionEncoding]) -> bool:
    """Whether what a token sees, or where, depends on the length of the prompt that it is in: then its keys cannot be
    another prompt's, however alike both begin.
    """
    M = scheme.window
    lengths = (M // 2, M, M + 1, 2 * M, 3 * M + 7, 8 * M)
    known = [_choices(scheme, layers, length) for length in lengths]
    return any(choices != known[0] for choices in known)


def _choices(scheme: Scheme, layers: Sequence[PositionEncoding], length: int) -> tuple[object, ...]:
    """Everything of a scheme that may follow the length, for comparison."""
    t = torch.arange(1)
    factors = scheme.scale.factors(t, length, scheme.window)
    angles = []
    for positions in {id(one): one for one in layers}.values():
        if isinstance(positions, Rope):
            angles.append(tuple(positions.encoding(scheme, length).inv_freq.tolist()))
    return (
        scheme.weave_at(length), scheme.visibility_at(length), None if factors is None else factors.tolist(),
        tuple(angles),
    )  # fmt: skip


@dataclass(frozen=True)
class EngineScheme:
    """A scheme on every layer of a model that an engine runs.

    Attributes:
        scheme: the scheme, for the model's window.
        positions: how they entered each layer as it was trained.
        compiled: the scheme of each layer, those of one sliding window share it.
        follows: whether it depends on the prompt's length.
    """

    scheme: Scheme
    positions: tuple[PositionEncoding, ...]
    compiled: tuple[CompiledScheme, ...]
    follows: bool

    @classmethod
    def of(cls, config: PretrainedConfig, text: str, window: int | None = None) -> EngineScheme:
        """The scheme of a text on a model of this configuration.

        Args:
            config: transformers' configuration of the model.
            text: such as "rerope+logn".
            window: trained window M in tokens, where the configuration's is wrong or missing.

        Raises:
            ProbeError: an unknown scheme, a family that does not fit, a scheme that it has no use for, or no window.
        """
        trained = model_window(config) if window is None else window
        if trained is None or trained < 2:
            raise FieldError("window", hint="the model's configuration states no trained window; give one")
        scheme, family = parse_scheme(text, trained), family_of(config)
        model = skeleton(config)
        check_scheme(model, scheme)
        _check_own(family)
        layers, windows = family.layer_positions(model), family.layer_windows(model)
        by_window = compiled_by_window(scheme, windows)
        for compiled in by_window.values():
            compiled.rows = _KEPT
        return cls(scheme, tuple(layers), tuple(by_window[one] for one in windows), follows_input(scheme, layers))

    @property
    def biased(self) -> bool:
        """Whether positions enter as a bias per head."""
        return any(isinstance(one, Bias) for one in self.positions)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "queries heads dim"],
        pages: Pages,
        prompt: int | None,
        scaling: float,
        sinks: Float[Tensor, " heads"] | None = None,
    ) -> Float[Tensor, "queries heads dim"]:
        """Attention of the last positions of one sequence.

        Args:
            layer: 0 is the first.
            query: raw queries, without positions.
            pages: raw keys and values of the whole sequence so far, those of the queries too.
            prompt: tokens of the sequence's prompt, also of those that are still to come; None where the scheme does
                not follow it.
            scaling: factor on the scores.
            sinks: one more term in the denominator, for no key; None: there is none.
        """
        compiled, length = self.compiled[layer], pages.length
        first = length - len(query)
        prompt = length if prompt is None else prompt
        reached = max(length, prompt)
        t = torch.arange(first, length)
        scaled = compiled.scaled(query.transpose(0, 1)[None], t, reached)[0].transpose(0, 1)
        encoding = compiled.encoding(self.positions[layer], reached)
        return attend_paged(scaled, pages, compiled.pieces(first, length, prompt), encoding, scaling, sinks)


def _check_own(family: Family) -> None:
    """Refuse families that write their attention out themselves here: what an engine makes of them is not known.

    Raises:
        FieldError: it is one.
    """
    if family.own is not None:
        raise FieldError("model", hint="its attention is checked under transformers only", value=family.name)
