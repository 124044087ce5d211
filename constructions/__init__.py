"""Weave functions and the theorems on length extrapolation as toy transformers with hand-built weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constructions.errors import ConstructionError

if TYPE_CHECKING:
    from constructions.toy import Toy

__all__ = ["ConstructionError", "load"]


def load(theorem: str, dtype: str = "float64", **parameters: Any) -> Toy:
    """The toy transformer of Theorem '3.1', '3.2', '3.3' or Corollary '4.1'; see constructions.toy.load.

    Raises:
        ConstructionError: an unknown theorem, parameter or dtype, or a value outside its domain.
    """
    from constructions import toy  # not at import: the weave functions alone should load without torch and mpmath

    return toy.load(theorem, dtype, **parameters)
