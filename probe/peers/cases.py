"""Which code is compared, and how: parameters of ours and of theirs that mean the same, and what is known to differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import FieldError, unknown

Theirs = Mapping[str, Any]
WINDOW, LENGTH = 64, 320
"""Of the tiny model: five windows of tokens, unless told otherwise."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: what goes through the model and how.
        ours: the scheme.
        theirs: the parameters of the authors' code, as `driver` takes them.
        control: our scheme with a parameter off by one: how large such a slip would show.
        length: tokens T.
        prompt: of them, how many in one call; the rest follow one by one. 0: all.
        whole: ours is told that all T are the prompt, for parameters that follow the length.
        differs: why the two are known to differ; empty where they should be equal.
    """

    name: str
    ours: str
    theirs: Theirs
    control: str
    length: int
    prompt: int = 0
    whole: bool = False
    differs: str = ""

    @property
    def first(self) -> int:
        """Tokens of the first call."""
        return self.prompt or self.length


@dataclass(frozen=True)
class Peer:
    """Somebody's released code.

    Attributes:
        repository: where it is.
        licence: its licence.
        file: the file that is compared, below the checkout.
        releases: of transformers that it runs on.
        cases: the comparisons for a window M and T tokens.
        window: M unless told otherwise.
        length: T unless told otherwise, in tokens; 0 where the cases have lengths of their own.
        grouped: it also runs with fewer key heads than query heads.
    """

    repository: str
    licence: str
    file: Path
    releases: tuple[str, ...]
    cases: Callable[[int, int], list[Case]]
    window: int = WINDOW
    length: int = LENGTH
    grouped: bool = True


LOGN = "they always scale queries past M by log-n"
ONE_CALL, DECODED = "one call", "a call of {} tokens, then one by one"


def _both(
    length: int, prompt: int, ours: str, theirs: Theirs, control: str, note: str = "", whole: bool = False
) -> list[Case]:
    """All tokens in one call; a prompt and then single tokens."""
    note = f"; {note}" if note else ""
    return [
        Case(ONE_CALL + note, ours, theirs, control, length),
        Case(DECODED.format(prompt) + note, ours, theirs, control, length, prompt, whole),
    ]


def _rerope(M: int, T: int) -> list[Case]:
    N = M // 4
    theirs = {"training_length": M, "window": N}
    ours, control = f"rerope(N={N})", f"rerope(N={N + 1})"
    bare = Case(f"{ONE_CALL}; ours without log-n", ours, theirs, control, T, differs=LOGN)
    return [*_both(T, M + M // 2, f"{ours}+logn", theirs, f"{control}+logn"), bare]


def _leaky(M: int, T: int) -> list[Case]:
    """Their factor is a whole number, ours (T - w)/(M - w): the length is one for which that is whole."""
    w = M // 4
    k = (T - w) // (M - w)
    T = w + k * (M - w)
    theirs = {"training_length": M, "window": w, "scaling_factor": k}
    ours, control, prompt = f"leaky-rerope(w={w})+logn", f"leaky-rerope(w={w + 1})+logn", M + M // 2
    bare = Case(
        f"{ONE_CALL}; ours without log-n", f"leaky-rerope(w={w})", theirs, f"leaky-rerope(w={w + 1})", T, differs=LOGN
    )
    follows = Case(
        DECODED.format(prompt) + "; ours not told T", ours, theirs, control, T, prompt,
        differs="our k follows the length as tokens come, theirs is fixed",
    )  # fmt: skip
    return [*_both(T, prompt, ours, theirs, control, whole=True), follows, bare]


def _self_extend(M: int, T: int) -> list[Case]:
    W, G, prompt = M // 4, 4, M + M // 2
    theirs = {"group_size": G, "window_size": W, "scale_base": -1, "mask": T}
    ours, control = f"self-extend(W={W},G={G})", f"self-extend(W={W + 1},G={G})"
    odd = W + 2
    return [
        *_both(T, prompt, ours, theirs, control),
        Case(f"{ONE_CALL}; log-n", f"{ours}+logn", {**theirs, "scale_base": M}, f"{control}+logn", T),
        Case(
            f"{ONE_CALL}; G does not divide W", f"self-extend(W={odd},G={G})", {**theirs, "window_size": odd},
            f"self-extend(W={odd + 1},G={G})", T,
            differs="they take W - W/G, ours is W - floor(W/G): far queries sit between two positions",
        ),
    ]  # fmt: skip


def _self_extend_legacy(M: int, T: int) -> list[Case]:
    G, prompt, made = 4, M + M // 2, []
    for W, note in ((M // 4, ""), (M // 4 + 2, "G does not divide W")):
        theirs = {"group_size_1": G, "group_size_2": W}
        made += _both(T, prompt, f"self-extend(W={W},G={G})", theirs, f"self-extend(W={W + 1},G={G})", note)
    return made


def _streaming(M: int, T: int) -> list[Case]:
    x, recent, made = 4, M - 4, []
    for evict, y in (("after", recent + 1), ("before", recent)):
        theirs = {"start_size": x, "recent_size": recent, "evict": evict}
        ours, control = f"streaming-llm(x={x},y={y})", f"streaming-llm(x={x},y={y + 1})"
        made.append(Case(f"one by one, evicted {evict} each token", ours, theirs, control, T, 1))
    prompt = 2 * M
    return [
        *made,
        Case(
            DECODED.format(prompt), ours, theirs, control, T, prompt,
            differs="tokens of one call see each other all, and none is evicted between them",
        ),
    ]  # fmt: skip


def _lm_infinite(M: int, T: int) -> list[Case]:
    x, made = max(1, M // 6), []
    for local, length, note in ((M, T, "local = M"), (M // 2, T - 3, "local = M/2, T no multiple of it")):
        theirs = {"local_branch": local, "global_branch": x}
        ours, control = (f"lm-infinite(n_global={x},n_local={n})" for n in (local, local + 1))
        made += _both(length, M + M // 2, ours, theirs, control, note)
    return made


def _dual_chunk(M: int, T: int) -> list[Case]:
    c, near, prompt = M * 3 // 4, M // 8, M + M // 2
    s = c - near
    released = {"pretraining_length": M, "local_window_size": near, "merge": "bfloat16", "mscale": True}
    exact = released | {"merge": "float32"}
    ours, control = f"dual-chunk(s={s},c={c})", f"dual-chunk(s={s},c={c + 1})"
    tempered = f"+mscale(s={math.sqrt(T / M):.15g})" if T > M else ""
    return [
        Case(f"{ONE_CALL}; merged in float32", ours + tempered, exact, control + tempered, T),
        *_both(T, prompt, ours, exact | {"mscale": False}, control, "merged in float32, no temperature"),
        Case(
            f"{ONE_CALL}; as released", ours + tempered, released, control + tempered, T,
            differs="chunks are merged with weights rounded to bfloat16",
        ),
        Case(
            f"{ONE_CALL}; as released, ours without mscale", ours, released, control, T,
            differs="they multiply cos and sin by 0.05 ln(T/M) + 1 where T > M, and so all scores by its square",
        ),
        Case(
            DECODED.format(prompt) + "; merged in float32", ours + tempered, exact, control + tempered, T, prompt,
            differs="their temperature follows the tokens so far, and cached keys keep that of their time",
        ),
    ]  # fmt: skip


def _mesa(M: int, T: int) -> list[Case]:
    """Lengths for which DynamicSplit comes out alike. The remainder for the last chunk is fixed at 200 in theirs."""
    F, E = 25, 12
    theirs = {
        "train_length": M, "first_chunk": F, "first_chunk_cache": 1, "last_context": 128, "max_token_len": 0,
        "push_width": E,
    }  # fmt: skip

    def scheme(L: int, step: int = E) -> str:
        return f"mesa(F={F},L={L},E={step},M_max=200,last=official)"

    def both(length: int, prompt: int, L: int, logn: bool, note: str) -> list[Case]:
        tail = "+logn" if logn else ""
        parameters = theirs | {"last_context": L, "logn": logn}
        return _both(length, prompt, scheme(L) + tail, parameters, scheme(L, E + 1) + tail, note)

    released = theirs | {"max_token_len": 50, "first_chunk_cache": 100, "logn": False}
    return [
        *both(600, 560, 128, True, "one middle chunk, with log-n"),
        *both(2100, 2060, 370, False, "four middle chunks, their log-n off"),
        Case(
            f"{ONE_CALL}; four middle chunks, with log-n", scheme(370) + "+logn",
            theirs | {"last_context": 370, "logn": True},
            scheme(370, E + 1) + "+logn", 2100,
            differs="our log-n follows the position, theirs the number of keys: they have none in the middle chunks",
        ),
        Case(
            f"{ONE_CALL}; chunks as released, their log-n off", scheme(128), released, scheme(128, E + 1), 2100,
            differs="their DynamicSplit counts 50 tokens more and leaves 100 of each chunk's window free",
        ),
    ]  # fmt: skip


PEERS: dict[str, Peer] = {
    "rerope": Peer("github.com/bojone/rerope", "none", Path("rerope_patch.py"), ("4.31",), _rerope),
    "leaky-rerope": Peer("github.com/bojone/rerope", "none", Path("leaky_rerope_patch.py"), ("4.31",), _leaky),
    "self-extend": Peer(
        "github.com/datamllab/LongLM", "MIT", Path("self_extend_patch/Llama.py"), ("4.38",), _self_extend
    ),
    "self-extend-legacy": Peer(
        "github.com/datamllab/LongLM", "MIT", Path("legacy_patch_before_4_38/llama_self_extend_patch.py"),
        ("4.33", "4.32"), _self_extend_legacy,
    ),
    "streaming-llm": Peer(
        "github.com/mit-han-lab/streaming-llm", "MIT", Path("streaming_llm/pos_shift/modify_llama.py"), ("4.33",),
        _streaming,
    ),
    "lm-infinite": Peer(
        "github.com/Glaciohound/LM-Infinite", "MIT", Path("models/llama.py"), ("4.38",), _lm_infinite, grouped=False
    ),
    "dual-chunk": Peer(
        "github.com/HKUNLP/ChunkLlama", "Apache-2.0", Path("chunkllama_attn_replace.py"), ("4.37",), _dual_chunk
    ),
    "mesa": Peer(
        "github.com/soacker/Mesa-Extrapolation", "none", Path("methods/mesa_extrapolation.py"), ("4.31",), _mesa,
        window=512, length=0,
    ),
}  # fmt: skip


def peer_named(name: str) -> Peer:
    """The peer of that name.

    Raises:
        ProbeError: there is none.
    """
    if name not in PEERS:
        raise unknown("peer", name, PEERS)
    return PEERS[name]


def cases(name: str, window: int | None = None, length: int | None = None) -> list[Case]:
    """The comparisons of a peer; None for a default.

    Raises:
        ProbeError: sizes too small to show anything, or a peer whose sizes are fixed.
    """
    peer = peer_named(name)
    if not peer.length:
        if window is not None or length is not None:
            raise FieldError(
                "peer", hint="its cases have a window and lengths of their own; leave {window} and {length} out",
                value=name,
            )  # fmt: skip
        return peer.cases(peer.window, 0)
    M = peer.window if window is None else window
    T = length if length is not None else peer.length if window is None else 5 * M
    if M < 32 or M % 16:
        raise FieldError("window", "a multiple of 16 from 32 on", M)
    if T < 3 * M:
        raise FieldError("length", f"at least three windows, {3 * M} tokens", T)
    return peer.cases(M, T)
