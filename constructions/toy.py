"""The public way to a toy transformer: load('3.3', M=32, N=4) is a torch module with what a recorder needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from constructions import corollary_41, theorem_31, theorem_32, theorem_33
from constructions.errors import require
from constructions.precision import check_precision
from constructions.transformer import Transformer
from constructions.weights import BOS_TOKEN, READ, STATE, Construction, Fillers

THEOREMS = ("3.1", "3.2", "3.3", "4.1")


@dataclass(frozen=True)
class Parameters:
    """Every choice that a theorem's construction has. N and E are used where the theorem has them."""

    M: int = 32
    H: float = 0.5
    N: int = 4
    E: int = 4
    slope: float = 1.0
    length: int | None = None
    recovery: str = "mlp"
    convention: str = "corrected"
    capacity: int | None = None
    fillers: Fillers = field(default_factory=Fillers)


def build(theorem: str, p: Parameters) -> Construction:
    """The construction of a theorem.

    Raises:
        ConstructionError: an unknown theorem, or a parameter outside its domain.
    """
    require(theorem in THEOREMS, "theorem", " | ".join(THEOREMS), theorem)
    if theorem == "3.1":
        return theorem_31.build(p.M, p.H, p.convention, p.fillers)
    if theorem == "3.2":
        return theorem_32.build(p.M, p.H, p.slope, p.capacity, p.convention, p.fillers)
    options = theorem_33.Woven(
        slope=p.slope,
        length=p.length,
        capacity=p.capacity,
        recovery=p.recovery,
        convention=p.convention,
        fillers=p.fillers,
    )
    if theorem == "3.3":
        return theorem_33.build(p.M, p.H, p.N, **options)
    return corollary_41.build(p.M, p.H, p.N, p.E, **options)


@dataclass(frozen=True)
class Metadata:
    """What a recorder needs. Positions are 0-based, so the statement's T is the position.

    o_t stands in the residual stream after layer `layer` (0-based) at dimension `dim`, and in that layer's attention
    output at `proof_dim` (dimension 3 of the paper, where the stream also holds the recovered position). `H` is the
    threshold, `M` the training window: o > H at positions below M.
    """

    theorem: str
    M: int
    H: float
    default_length: int
    layer: int
    layers: int
    width: int
    bos: int
    ordinary: tuple[int, ...]
    dim: int = READ
    proof_dim: int = STATE


class Toy(Transformer):
    """A theorem's model with its metadata. Hooks: `layers[n]` (residual stream), `layers[n].attn`, `layers[n].mlp`."""

    def __init__(self, built: Construction, dtype: str, length: int):
        super().__init__(built, dtype)
        words = len(built.weights.embedding)
        layers = len(built.weights.layers)
        self.metadata = Metadata(
            theorem=built.theorem,
            M=built.M,
            H=built.H,
            default_length=length,
            layer=layers - 1,
            layers=layers,
            width=built.d,
            bos=BOS_TOKEN,
            ordinary=tuple(range(1, words)),
        )


def load(theorem: str, dtype: str = "float64", **parameters: Any) -> Toy:
    """A theorem's toy transformer, ready to run and to hook. Parameters are the fields of Parameters.

    Call it with tokens [batch, T], <bos> first; it returns the residual stream [batch, T, d].

    Raises:
        ConstructionError: an unknown theorem, parameter or dtype, a value outside its domain or past dtype's precision.
    """
    unknown = set(parameters) - set(Parameters.__dataclass_fields__)
    require(not unknown, "parameters", ", ".join(Parameters.__dataclass_fields__), ", ".join(sorted(unknown)))
    chosen = Parameters(**parameters)
    built = build(theorem, chosen)
    length = 2 * chosen.M + 8 if chosen.length is None else chosen.length
    require(length >= 2, "length", "at least 2 positions", length)
    check_precision(built, dtype, length)
    return Toy(built, dtype, length)
