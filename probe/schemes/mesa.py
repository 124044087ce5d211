"""Mesa-Extrapolation as a weave and a visibility (paper Sec. 3, Algs. 1 and 2; https://arxiv.org/abs/2410.15859).

A prompt inside the window, and every position below M of one, is the plain model. A longer prompt is split: chunk 0 is
causal; each middle chunk sees chunk 0 and itself, at positions that follow chunk 0's; the last chunk, and every token
after the prompt, sees all keys by the weave `last`, Stair PE unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from constructions.weave import Anchored, Chunked, Clamp, DualChunk, Folded, Grouped, Linear, Stair, Switched, Weave
from probe.errors import ProbeError
from probe.schemes.scheme import Extent, VisibilityAt, WeaveAt, dual_chunk_sizes, leaky_to_length, published
from probe.schemes.split import Split, check_split, dynamic_split
from probe.schemes.visibility import Blocks, Bottom, Visibility

Parameters = Mapping[str, Any]
DEFAULT_STEP = published(50)
"""E by the window (paper Sec. 2)."""


def split_of(p: Parameters, extent: Extent) -> Split | None:
    """How the prompt is split; None inside the window, where nothing is."""
    if extent.prompt <= extent.window:
        return None
    return dynamic_split(extent.prompt, extent.window, p["F"], p["L"], p["M_max"])


def least_step(N: int, tokens: int, window: int) -> int:
    """The smallest E with which Stair PE keeps every distance below `tokens` inside the window: N + ceil((T - 1 - N)/E)
    <= M - 1.

    Raises:
        ProbeError: N fills the window, so that no E does.
    """
    if window - 1 <= N < tokens - 1:
        raise ProbeError(f"mesa: N: expected at most {window - 2} for a window of {window}, got {N}")
    return max(1, -(-(tokens - 1 - N) // max(1, window - 1 - N)))


def step(p: Parameters, extent: Extent) -> int:
    """E for an input: the user's, or the published one, grown where the input needs it.

    Raises:
        ProbeError: the user's is too small for the input; the message says which E would do.
    """
    least = least_step(p["N"], extent.length, extent.window)
    if not p["E"]:
        return max(DEFAULT_STEP(extent.window), least)
    if p["E"] < least:
        raise ProbeError(
            f"mesa: E = {p['E']} leaves the trained range at {extent.length} tokens: expected E >= {least}, "
            "or no E at all, which then grows to fit"
        )
    return int(p["E"])


def _stair(p: Parameters, extent: Extent) -> Weave:
    return Stair(p["N"], step(p, extent))


def _paper(p: Parameters, extent: Extent) -> Weave:
    return Anchored(_stair(p, extent), max(0, extent.prompt - 1))


def _official(p: Parameters, extent: Extent) -> Weave:
    split, keys = split_of(p, extent), extent.length
    width = split.C if split is not None and split.C else extent.window - p["F"]
    return Folded(p["E"] or DEFAULT_STEP(extent.window), width * ((keys - 1) // width) + 1)


def _self_extend(p: Parameters, extent: Extent) -> Weave:
    """W = N exact keys, and the smallest G from the published step on (or the user's E) that stays in the window."""
    W, far, G = max(1, p["N"]), extent.length - 1, p["E"] or DEFAULT_STEP(extent.window)
    least = next(g for g in range(1, far + 2) if far // g + W - W // g < extent.window or g > far)
    if p["E"] and p["E"] < least:
        raise ProbeError(
            f"mesa: E = {p['E']} leaves the trained range at {far + 1} tokens: expected E >= {least}, or no E at all"
        )
    return Grouped(W, max(G, least))


def _dual_chunk(p: Parameters, extent: Extent) -> Weave:
    return DualChunk(*dual_chunk_sizes(extent.window))


LAST: dict[str, Callable[[Parameters, Extent], Weave]] = {
    "exact": _stair,
    "paper": _paper,
    "official": _official,
    "rerope": lambda p, extent: Clamp(max(1, p["N"])),
    "leaky": lambda p, extent: leaky_to_length(p["N"])(extent),
    "self-extend": _self_extend,
    "dual-chunk": _dual_chunk,
    "plain": lambda p, extent: Linear(),
}
"""What the last chunk, and all after the prompt, uses: a row makes a weave from the parameters and the input.

`exact`: Stair PE for every query (Eq. 3). `paper`: Stair PE for the prompt's last query, the keys positioned once by
it. `official`: the positions of the authors' code. The others are the ablation of Fig. 9 and its neighbours; `plain`
has the positions as trained.
"""


def mesa_weave(p: Parameters) -> WeaveAt:
    """The weave of Mesa for an input."""

    def at(extent: Extent) -> Weave:
        if extent.length <= extent.window:
            return Linear()
        split, after = split_of(p, extent), LAST[p["last"]](p, extent)
        if split is None:
            return Switched(extent.window, Linear(), after)
        return Switched(split.last, Chunked(split.F, split.C) if split.C else Linear(), after)

    return at


def mesa_visibility(p: Parameters) -> VisibilityAt:
    """The chunk-triangular visibility of Mesa for an input."""

    def at(extent: Extent) -> Visibility:
        check_split(extent.window, p["F"], p["L"], p["M_max"])
        split = split_of(p, extent)
        return Bottom(Blocks(split.F, split.C), split.last) if split is not None and split.C else Visibility()

    return at


def mesa(p: Parameters) -> dict[str, object]:
    """Both parts, as a row of the table of schemes needs them.

    Raises:
        ProbeError: an N or E below 0.
    """
    for name in ("N", "E"):
        if p[name] < 0:
            raise ProbeError(f"mesa: {name}: expected an integer >= 0, got {p[name]}")
    return {"weave": mesa_weave(p), "visibility": mesa_visibility(p)}
