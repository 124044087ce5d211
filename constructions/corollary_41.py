"""Corollary 4.1: Theorem 3.3 with Stair PE, W(d) = d up to N and N + ceil((d - N)/E) past it, N < M.

The same weights again. Stair's W is subadditive, so G(t) <= t holds as for every such weave; past 2N + E it is
linear in t along each residue class of t modulo E, with its own rate per class (closed_form.py). So o_t does not fall
through H once: near the horizon it passes below and above with period E before it stays below. Both ends are verified.
"""

from __future__ import annotations

from typing import Unpack

from constructions.errors import require
from constructions.theorem_33 import Woven, build_woven, check_band
from constructions.weave import Stair
from constructions.weights import Construction


def build(M: int, H: float, N: int, E: int, **options: Unpack[Woven]) -> Construction:
    """Theorem 3.2's model under Stair PE (paper Eq. 3, Corollary 4.1), 1 <= N < M, E >= 1; options as build_woven.

    Raises:
        ConstructionError: N is not in 1..M-1, E < 1, or as build_woven.
    """
    check_band(N, M)
    require(isinstance(E, int) and E >= 1, "E", "an integer >= 1", E)
    return build_woven("4.1", Stair(N, E), M, H, **options)
