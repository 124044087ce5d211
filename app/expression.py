"""A reader's own weave W(d): arithmetic on d, N, E and M, parsed and never executed as code."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from constructions.weave import Positions, Weave
from probe.errors import ProbeError

LONGEST = 200
"""Characters of an expression."""

DEEPEST = 30
"""Parts within parts of one."""

NAMES = ("d", "N", "E", "M")

_Array = NDArray[np.float64]

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide, ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod, ast.Pow: np.power,
}  # fmt: skip
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal, ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}  # fmt: skip
_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int]] = {
    "min": (np.minimum, 2), "max": (np.maximum, 2), "floor": (np.floor, 1), "ceil": (np.ceil, 1), "abs": (np.abs, 1),
    "sqrt": (np.sqrt, 1), "log": (np.log, 1),
}  # fmt: skip
"""What can be called, and with how many arguments."""

SYNTAX = (
    "arithmetic (+ - * / // % **), comparisons, min(a,b), max(a,b), floor, ceil, abs, sqrt and log of d, N, E, M and "
    "numbers, such as min(d, N) + max(d - N, 0) / E"
)


def _refuse(why: str) -> ProbeError:
    return ProbeError(f"W(d): {why}; expected {SYNTAX}")


def parse(text: str) -> ast.expr:
    """The tree of an expression, in which there is nothing but arithmetic.

    Raises:
        ProbeError: it does not parse, is too long, or holds anything else.
    """
    if len(text) > LONGEST:
        raise _refuse(f"{len(text)} characters are more than {LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _refuse("cannot be read") from None
    _check(tree, 0)
    return tree


def _check(node: ast.expr, depth: int) -> None:
    if depth > DEEPEST:
        raise _refuse("too many parts within parts")
    for part in _parts(node):
        _check(part, depth + 1)


def _parts(node: ast.expr) -> list[ast.expr]:
    """The parts of a node that is arithmetic.

    Raises:
        ProbeError: it is anything else.
    """
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return [left, right]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return [operand]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return [left, right]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            if len(args) != _FUNCTIONS[name][1]:
                raise _refuse(f"{name} takes {_FUNCTIONS[name][1]} argument(s), got {len(args)}")
            return list(args)
        case ast.Name(id=name) if name in NAMES:
            return []
        case ast.Constant(value=bool()):
            raise _refuse("True and False are no numbers here")
        case ast.Constant(value=int() | float()):
            return []
        case _:
            raise _refuse(f"{ast.unparse(node)[:40]!r} is not known here")


def evaluate(tree: ast.expr, values: Mapping[str, Any]) -> _Array:
    """The value of a parsed expression, in float64: no number in it can grow past what 8 bytes hold."""
    match tree:
        case ast.BinOp(left=left, op=op, right=right):
            found = _BINARY[type(op)](evaluate(left, values), evaluate(right, values))
        case ast.UnaryOp(op=op, operand=operand):
            value = evaluate(operand, values)
            found = -value if isinstance(op, ast.USub) else value
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            found = _COMPARE[type(op)](evaluate(left, values), evaluate(right, values))
        case ast.Call(func=ast.Name(id=name), args=args):
            found = _FUNCTIONS[name][0](*(evaluate(argument, values) for argument in args))
        case ast.Name(id=name):
            found = values[name]
        case ast.Constant(value=value) if isinstance(value, int | float):
            found = _number(value)
        case _:
            raise _refuse("cannot be computed")
    return np.asarray(found, dtype=np.float64)


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _refuse("a number is too large") from None


@dataclass(frozen=True)
class OwnWeave(Weave):
    """W(d) of an expression.

    Raises:
        ProbeError: it does not parse, or W is not a finite number >= 0 at some distance up to `farthest`.
    """

    text: str
    N: int
    E: int
    M: int
    farthest: int
    name: ClassVar[str] = "own"
    _table: _Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tree = parse(self.text)
        d = np.arange(self.farthest + 1, dtype=np.float64)
        with np.errstate(all="ignore"):
            table = np.broadcast_to(
                evaluate(tree, {"d": d, "N": float(self.N), "E": float(self.E), "M": float(self.M)}), d.shape
            )
        bad = np.flatnonzero(~np.isfinite(table) | (table < 0))
        if len(bad):
            at = int(bad[0])
            raise ProbeError(f"W(d): expected a finite number >= 0 at every distance, got {table[at]:g} at d = {at}")
        object.__setattr__(self, "_table", table)

    @override
    def of(self, d: Positions) -> Positions:
        """From a table of every distance."""
        found = self._table[np.asarray(d, dtype=np.int64)]
        return float(found) if np.ndim(found) == 0 else found
