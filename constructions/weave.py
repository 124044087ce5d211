"""Weave functions: the relative position W that a (query, key) pair gets in place of its distance (paper Eq. 2).

Each function is written with arithmetic and comparisons (`+ - * // % > ==`) alone, so one definition serves Python
ints, NumPy arrays and torch tensors, elementwise and with broadcasting. Positions are 0-based; `d = t - i >= 0`.
Nothing here knows about masks: a value for i > t is meaningless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

Positions = Any
"""Token positions: an int, a NumPy array or a torch tensor of integers."""
Tensor = Any
"""A torch tensor; nothing here imports torch."""


class WeaveError(ValueError):
    """A weave parameter is outside its domain."""


def _require(ok: bool, what: str, expected: str, got: object) -> None:
    if not ok:
        raise WeaveError(f"{what}: expected {expected}, got {got}")


def _require_int(weave: Weave, name: str, least: int) -> None:
    value = getattr(weave, name)
    is_int = isinstance(value, int) and not isinstance(value, bool)
    _require(is_int and value >= least, f"{weave.name}: {name}", f"an integer >= {least}", value)


@dataclass(frozen=True)
class Part:
    """Some queries over a contiguous range of keys each, where W is a difference of two positions.

    So inside a part W(t, i) = q_pos[t] - k_pos[i], and ordinary attention over rotated queries and keys computes it.

    Attributes:
        queries: positions t, ascending, a tensor [queries] of integers.
        q_pos: where each query is put, [queries].
        k_pos: where each key is put, [keys], for all keys.
        lo: first key of each query's range, [queries], not decreasing.
        hi: end of each query's range, exclusive, [queries], not decreasing.
        times: how often each of these keys counts; once, but in experiments with copies.
    """

    queries: Tensor
    q_pos: Tensor
    k_pos: Tensor
    lo: Tensor
    hi: Tensor
    times: int = 1


def _band(t: Tensor, i: Tensor, width: int) -> Part:
    """The exact part: the `width` nearest keys, the query's own included."""
    return Part(t, t, i, (t - width + 1).clamp(min=0), t + 1)


def _far(t: Tensor, q_pos: Tensor, k_pos: Tensor, width: int) -> Part:
    """Everything farther back than the band of `width` keys."""
    return Part(t, q_pos, k_pos, 0 * t, (t - width + 1).clamp(min=0))


@dataclass(frozen=True)
class Weave:
    """A weave function of a query position t and a key position i.

    `subadditive` says whether W(a + b) <= W(a) + W(b), the property under which the theorems bound the horizon;
    `by_distance` whether W depends on t - i alone.
    """

    name: ClassVar[str]
    by_distance: ClassVar[bool] = True
    subadditive: ClassVar[bool] = True

    def __call__(self, t: Positions, i: Positions) -> Positions:
        """The relative position of key i for query t."""
        return self.of(t - i)

    def of(self, d: Positions) -> Positions:
        """W(d), for weaves that depend on the distance alone.

        Raises:
            WeaveError: this weave depends on t and i, not on their difference alone.
        """
        raise WeaveError(f"{self.name} depends on the query and key positions, not on their distance alone")

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """How the weave falls into parts: together they hold each key up to the query's own exactly once.

        Args:
            t: query positions, ascending, a torch tensor [queries].
            i: key positions 0, 1, ..., a torch tensor [keys].

        Raises:
            WeaveError: this weave says no parts.
        """
        raise WeaveError(
            f"weave {self.name}: expected a method `parts`, and {type(self).__name__} has none; backend dense runs any"
        )

    def parameters(self) -> dict[str, float]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Linear(Weave):
    """W(d) = d: the positions as trained."""

    name: ClassVar[str] = "linear"

    def of(self, d: Positions) -> Positions:
        """d."""
        return d

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """One, of all keys."""
        return [Part(t, t, i, 0 * t, t + 1)]


@dataclass(frozen=True)
class Clamp(Weave):
    """ReRoPE: W(d) = min(d, N) (paper Sec. 2; https://kexue.fm/archives/9708)."""

    N: int
    name: ClassVar[str] = "clamp"

    def __post_init__(self) -> None:
        _require_int(self, "N", 1)

    def of(self, d: Positions) -> Positions:
        """min(d, N)."""
        return d - (d - self.N) * (d > self.N)

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """The band, and the keys beyond it, which all lie N back."""
        width = self.N + 1
        return [_band(t, i, width), _far(t, 0 * t + self.N, 0 * i, width)]


@dataclass(frozen=True)
class Leaky(Weave):
    """Leaky ReRoPE: W(d) = d up to w, then w + (d - w)/k (paper Sec. 2; https://kexue.fm/archives/9728)."""

    w: int
    k: float
    name: ClassVar[str] = "leaky"

    def __post_init__(self) -> None:
        _require_int(self, "w", 0)
        _require(math.isfinite(self.k) and self.k >= 1, "leaky: k", "a finite number >= 1", self.k)

    def of(self, d: Positions) -> Positions:
        """d up to w, then w + (d - w)/k."""
        far = d > self.w
        return d * (1 - 1 * far) + (self.w + (d - self.w) / self.k) * far

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """The band, and the keys beyond it at positions divided by k."""
        width = self.w + 1
        return [_band(t, i, width), _far(t, self.w + (t - self.w).double() / self.k, i.double() / self.k, width)]


@dataclass(frozen=True)
class Stair(Weave):
    """Stair PE: W(d) = d up to N, then N + ceil((d - N)/E) (paper Eq. 3).

    The ceiling makes every step end, not begin, on a multiple of E past N.
    """

    N: int
    E: int
    name: ClassVar[str] = "stair"

    def __post_init__(self) -> None:
        _require_int(self, "N", 0)
        _require_int(self, "E", 1)

    def of(self, d: Positions) -> Positions:
        """d up to N, then N + ceil((d - N)/E)."""
        far = d > self.N
        step = self.N - (self.N - d) // self.E  # -((-x) // E) is ceil(x / E) in integers
        return d * (1 - 1 * far) + step * far

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """The band, and a far part for each residue of t - N modulo E.

        Write t - N = a*E + r. Then N + ceil((t - N - i)/E) = (N + a) - floor((i - r)/E): for the queries of one residue
        the keys have one position each, so no pair is visited twice.
        """
        width = self.N + 1
        parts = [_band(t, i, width)]
        for residue in range(self.E):
            mine = t[(t > self.N) & ((t - self.N) % self.E == residue)]
            if len(mine):
                steps = self.N + (mine - self.N) // self.E
                parts.append(_far(mine, steps, (i - residue) // self.E, width))
        return parts


@dataclass(frozen=True)
class Grouped(Weave):
    """Self-Extend: d below W; else (t//G + W - W//G) - i//G (paper App. G; https://arxiv.org/abs/2401.01325).

    All divisions are floors, as in the source's text and pseudocode. Its released code for Llama takes W - W/G with a
    true division, which moves far keys by part of a position where G does not divide W. Depends on t and i, not on d
    alone, and is therefore not subadditive as a function of d.
    """

    W: int
    G: int
    name: ClassVar[str] = "grouped"
    by_distance: ClassVar[bool] = False
    subadditive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_int(self, "W", 1)
        _require_int(self, "G", 1)

    def __call__(self, t: Positions, i: Positions) -> Positions:
        """t - i below W, else (t//G + W - W//G) - i//G."""
        near = (t - i) < self.W
        grouped = t // self.G + self.W - self.W // self.G - i // self.G
        return (t - i) * (1 * near) + grouped * (1 - 1 * near)

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """The band, and the keys beyond it in groups."""
        shift = self.W - self.W // self.G
        return [_band(t, i, self.W), _far(t, t // self.G + shift, i // self.G, self.W)]


@dataclass(frozen=True)
class DualChunk(Weave):
    """Dual chunk attention: keys at i mod s; the query at a position that its chunk and the key's decide.

    The query sits at t mod s for keys of its own chunk of s tokens, at min((t mod s) + s, c) for the chunk before, and
    at c for all that is earlier (https://arxiv.org/abs/2402.17463). The source numbers the largest position c - 1 in
    its equations and c in its code (ChunkLlama); here c is that position itself. Distances up to min(s, c - s) are
    exact. Not monotone: W falls by s - 1 from one chunk's first key to the last of the chunk before.
    """

    s: int
    c: int
    name: ClassVar[str] = "dual-chunk"
    by_distance: ClassVar[bool] = False
    subadditive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_int(self, "s", 1)
        _require_int(self, "c", self.s)  # a smaller c would put a query before its keys

    def __call__(self, t: Positions, i: Positions) -> Positions:
        """The query's position for this pair of chunks, less i mod s."""
        within, chunks = t % self.s, t // self.s - i // self.s
        after = within + self.s
        after = after - (after - self.c) * (after > self.c)
        return within * (chunks == 0) + after * (chunks == 1) + self.c * (chunks > 1) - i % self.s

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """The query's own chunk, the one before it, and the rest."""
        within, own, k_pos = t % self.s, t // self.s * self.s, i % self.s
        previous = (own - self.s).clamp(min=0)
        return [
            Part(t, within, k_pos, own, t + 1),
            Part(t, (within + self.s).clamp(max=self.c), k_pos, previous, own),
            Part(t, 0 * t + self.c, k_pos, 0 * t, previous),
        ]


@dataclass(frozen=True)
class CacheIndex(Weave):
    """Streaming-LLM: positions are indices into a cache of x sinks and the y most recent keys.

    The query's own key is one of the y. Up to the moment the cache is full the index is the position; from then on the
    query stays at x + y - 1, a sink at its own index, and a recent key t - i below the query. So W = min(t, x + y - 1)
    - i for a sink (i < x), and t - i for the rest (https://arxiv.org/abs/2309.17453, Sec. 3.2). Whether the query's own
    key counts is not said: the authors' perplexity script drops a key after each token (so one key more is seen, at
    position x + y), their chat script before each prompt. Only the latter keeps x + y = M inside the window. For a key
    that the cache has dropped the value is t - i and means nothing.
    """

    x: int
    y: int
    name: ClassVar[str] = "cache-index"
    by_distance: ClassVar[bool] = False
    subadditive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_int(self, "x", 0)
        _require_int(self, "y", 1)

    def __call__(self, t: Positions, i: Positions) -> Positions:
        """min(t, x + y - 1) - i for sinks, t - i for the rest."""
        past = t - (self.x + self.y - 1)
        return t - i - past * (past > 0) * (i < self.x)

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """Sinks, seen from the end of the cache, and the rest."""
        last = t.clamp(max=self.x + self.y - 1)
        after_sinks = 0 * t + self.x
        return [Part(t, last, i, 0 * t, (t + 1).clamp(max=self.x)), Part(t, t, i, after_sinks, t + 1)]


@dataclass(frozen=True)
class Switched(Weave):
    """One weave for the queries before position `start`, another from there on: bottom attention's positions."""

    start: int
    before: Weave
    after: Weave
    name: ClassVar[str] = "switched"
    by_distance: ClassVar[bool] = False
    subadditive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_int(self, "start", 0)

    def __call__(self, t: Positions, i: Positions) -> Positions:
        """before(t, i) where t < start, else after(t, i)."""
        early = t < self.start
        return self.before(t, i) * (1 * early) + self.after(t, i) * (1 - 1 * early)

    def parameters(self) -> dict[str, float]:
        """`start`, and the parameters of the two weaves as before.NAME and after.NAME."""
        parts = {"before": self.before, "after": self.after}
        nested = {f"{part}.{key}": value for part, weave in parts.items() for key, value in weave.parameters().items()}
        return {"start": self.start} | nested

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """Each weave's parts, for its own queries."""
        early = t < self.start
        chosen = ((self.before, t[early]), (self.after, t[~early]))
        return [part for weave, mine in chosen if len(mine) for part in weave.parts(mine, i)]


@dataclass(frozen=True)
class Chunked(Weave):
    """Mesa's middle chunks: each lies where it would if it followed chunk 0 directly (paper Alg. 1).

    Chunk 0 is the first F tokens, the others have C each. A pair inside one chunk has its distance; a query of chunk c
    > 0 sits at F + (t - F) mod C for the keys of chunk 0, which sit at i. For any other pair, which Mesa does not see,
    the value is what those positions give and means nothing. All positions are below F + C.
    """

    F: int
    C: int
    name: ClassVar[str] = "chunked"
    by_distance: ClassVar[bool] = False
    subadditive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_int(self, "F", 1)
        _require_int(self, "C", 1)

    def positions(self, t: Positions) -> Positions:
        """Where a token lies: t in chunk 0, else F + (t - F) mod C."""
        return t - (t - self.F) // self.C * self.C * (t > self.F)

    def __call__(self, t: Positions, i: Positions) -> Positions:
        """Difference of the two positions."""
        return self.positions(t) - self.positions(i)

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """One: every token has one position."""
        return [Part(t, self.positions(t), self.positions(i), 0 * t, t + 1)]


@dataclass(frozen=True)
class Anchored(Weave):
    """Positions given once, as token `end` sees them: what Mesa's authors describe for the last chunk.

    Up to `end` every token lies W(end - i) behind it, and W(t, i) = W(end - i) - W(end - t): exact for the query `end`,
    approximate for those before it. Later queries see W(t - i).
    """

    inner: Weave
    end: int
    name: ClassVar[str] = "anchored"
    by_distance: ClassVar[bool] = False
    subadditive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_int(self, "end", 0)

    def __call__(self, t: Positions, i: Positions) -> Positions:
        """inner(max(t, end) - i) - inner(max(t, end) - t)."""
        last = t + (self.end - t) * (t < self.end)
        return self.inner(last, i) - self.inner(last, t)

    def parameters(self) -> dict[str, float]:
        """`end`, and the parameters of the inner weave as inner.NAME."""
        return {"end": self.end} | {f"inner.{key}": value for key, value in self.inner.parameters().items()}

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """One position per token up to `end`, then the inner weave's parts."""
        early = t[t <= self.end]
        late = self.inner.parts(t[t > self.end], i) if len(early) < len(t) else []
        if not len(early):
            return late
        q_pos, k_pos = (-self.inner(0 * x + self.end, x.clamp(max=self.end)) for x in (early, i))
        return [Part(early, q_pos, k_pos, 0 * early, early + 1), *late]


@dataclass(frozen=True)
class Folded(Weave):
    """One position per token: j from `b` on, below it b - 1 - floor((b - 1 - j)/E).

    What the official code of Mesa does in place of Stair PE (https://github.com/soacker/Mesa-Extrapolation), with
    b = C*floor((K - 1)/C) + 1 for K keys and chunks of C: the stair ends at a chunk border, wherever the query is.
    """

    E: int
    b: int
    name: ClassVar[str] = "folded"
    by_distance: ClassVar[bool] = False
    subadditive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_int(self, "E", 1)
        _require_int(self, "b", 1)

    def positions(self, j: Positions) -> Positions:
        """Where a token lies; may be negative far back, since only differences enter."""
        folded = self.b - 1 - (self.b - 1 - j) // self.E
        return j + (folded - j) * (j < self.b)

    def __call__(self, t: Positions, i: Positions) -> Positions:
        """Difference of the two positions."""
        return self.positions(t) - self.positions(i)

    def parts(self, t: Tensor, i: Tensor) -> list[Part]:
        """One: every token has one position."""
        return [Part(t, self.positions(t), self.positions(i), 0 * t, t + 1)]


WEAVES: dict[str, type[Weave]] = {
    kind.name: kind
    for kind in (
        Linear, Clamp, Leaky, Stair, Grouped, DualChunk, CacheIndex, Switched, Chunked, Anchored, Folded
    )
}  # fmt: skip
