"""The theorems' toy transformers as models to probe: `--model construction:3.3(M=32,N=4,length=2000)`.

The same recorder and detectors see them as see an LLM. `origin` is the toy under plain positions, W(d) = d (Theorem
3.2), on which thresholds are calibrated; a weave scheme puts its W into the very same weights, which is what Theorem
3.3 and Corollary 4.1 say of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from constructions import ConstructionError
from constructions.toy import THEOREMS, Parameters, Toy
from constructions.toy import load as load_toy
from probe.errors import FieldError, ProbeError
from probe.schemes.frequencies import Frequencies
from probe.schemes.scheme import ORIGIN, Scale, Scheme
from probe.schemes.visibility import Visibility

PREFIX = "construction:"
LONGEST = 16384
"""Positions: the toy's attention is written out plainly, and its time grows with their square."""
MODEL_TYPE = "construction"
_CALL = re.compile(r"construction:(?P<theorem>[0-9.]+)\s*(\((?P<inner>[^()]*)\))?")
_WEAVES = {"3.3": "rerope(N={N})", "4.1": "stair(N={N},E={E})"}
"""The scheme that makes each theorem of the weights, with the construction's parameters."""


class ToyModel(nn.Module):
    """A toy transformer with the few attributes of a causal LM that the probe reads. It has no vocabulary head."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy
        meta = toy.metadata
        self.config = SimpleNamespace(
            model_type=MODEL_TYPE, hidden_size=meta.width, max_position_embeddings=meta.M, bos_token_id=meta.bos
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.toy.embedding.dtype

    def get_input_embeddings(self) -> Any:
        """What tells the vocabulary's size and the device."""
        return SimpleNamespace(num_embeddings=len(self.toy.embedding), weight=self.toy.embedding)

    def forward(self, input_ids: Int[Tensor, "batch T"]) -> Float[Tensor, "batch T d"]:
        """The residual stream after the last layer.

        Raises:
            ProbeError: more tokens than the construction was built (and its precision checked) for.
        """
        most = self.toy.metadata.default_length
        if input_ids.shape[1] > most:
            raise FieldError(
                "length", hint=f"the construction was built for at most {most} positions, got {input_ids.shape[1]}; "
                f"say construction:{self.toy.metadata.theorem}(length={input_ids.shape[1]})",
            )  # fmt: skip
        stream: Tensor = self.toy(input_ids)
        return stream


ProbedModel = PreTrainedModel | ToyModel
"""What can be probed: a causal LM of transformers, or a toy."""


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def load_construction(name: str, dtype: str, length: int | None) -> tuple[ToyModel, str]:
    """The toy model that `name` describes, and the schemes that show its theorem.

    Args:
        name: `construction:3.3` or `construction:3.3(M=32,H=0.5,N=4,E=4,slope=1,length=2000)`.
        dtype: "auto" (float64), "float64" or "float32".
        length: positions it must be built for, where `name` does not say (default: four windows).

    Raises:
        ProbeError: unknown theorem or parameter, or a value outside its domain or the dtype's precision.
    """
    match = _CALL.fullmatch(name.strip())
    if match is None:
        raise ProbeError(
            f"model {name!r}: expected construction:THEOREM or construction:THEOREM(M=32,N=4), THEOREM one of "
            f"{', '.join(THEOREMS)}"
        )
    pairs = [pair.partition("=") for pair in (match["inner"] or "").split(",") if pair.strip()]
    parameters: dict[str, Any] = {key.strip(): _value(value.strip()) for key, _, value in pairs}
    if parameters.get("recovery", "mlp") != "mlp":
        raise ProbeError(
            f"model {name!r}: the probe puts weaves into the weights of Theorem 3.2, so recovery is 'mlp'; "
            "for others see python -m constructions verify"
        )
    try:
        parameters.setdefault("length", 4 * int(parameters.get("M", Parameters().M)) if length is None else length)
        if not int(parameters["length"]) <= LONGEST:
            raise ConstructionError(f"length: expected at most {LONGEST} positions, got {parameters['length']}")
        toy = load_toy(match["theorem"], "float64" if dtype == "auto" else dtype, **parameters)
    except (ConstructionError, TypeError, ValueError) as error:
        raise ProbeError(f"model {name!r}: {str(error).splitlines()[0]}") from None
    shown = {"N": 4, "E": 4} | parameters
    weave = _WEAVES.get(match["theorem"])
    return ToyModel(toy), ORIGIN + (f",{weave.format(**shown)}" if weave else "")


@contextmanager
def weave_construction(model: ToyModel, scheme: Scheme) -> Iterator[ToyModel]:
    """Run the toy under a scheme's weave inside the context.

    Raises:
        ProbeError: the scheme changes something that an additive position term does not have.
    """
    if (type(scheme.frequencies), type(scheme.visibility), type(scheme.scale)) != (Frequencies, Visibility, Scale):
        raise ProbeError(
            f"scheme {scheme.spec}: a construction has an additive position term and no RoPE; only weaves apply to it"
        )
    attentions: list[Any] = [layer.attn for layer in model.toy.layers]
    before = [attention.weave for attention in attentions]
    weave = scheme.weave_at(model.toy.metadata.default_length)
    try:
        for attention in attentions:
            attention.weave = weave
        yield model
    finally:
        for attention, old in zip(attentions, before, strict=True):
            attention.weave = old
