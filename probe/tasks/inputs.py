"""The token sequences a probe runs on: a repeated word or token, a file of ids, a text, the held-out text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probe.defaults import usual_length
from probe.errors import FieldError, literal, unknown
from probe.models.load import LoadedModel
from probe.recording.info import InputRecord
from probe.tables import Table
from probe.tasks.datasets import dataset_texts
from probe.tasks.documents import DOCUMENTS, document_batch, document_window
from probe.tasks.encoding import First, encode, encode_prefix, first_before_repeats, first_token, repeated_unit
from probe.tasks.heldout import heldout_batch

Ids = Sequence[int] | Sequence[Sequence[int]] | NDArray[Any] | Tensor
"""Token ids as they are: of one sequence, or of several of equal length."""


MISSING = "missing"
"""How the note on a first token begins that a model was trained with, and that an input lacks."""


@dataclass(frozen=True)
class Drawn:
    """An input: its ids [samples, length], and what a run writes down of it."""

    ids: Int[Tensor, "samples length"]
    spec: str
    notes: Mapping[str, Any]

    def record(self) -> InputRecord:
        """Spec, size and notes, with the SHA-256 of the ids and what a unigram guess gives on them."""
        digest = hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()
        guess = None if "unit" in self.notes else unigram_nats(self.ids)
        return InputRecord(self.spec, self.ids.shape[1], len(self.ids), digest, self.notes, guess)


def unigram_nats(ids: Tensor) -> float:
    """Nats per token of a guess that knows how often each id comes in these: the entropy of that distribution."""
    share = torch.unique(ids, return_counts=True)[1].double() / ids.numel()
    return float(-(share * share.log()).sum())


@dataclass(frozen=True)
class Request:
    """What is asked of an input kind."""

    loaded: LoadedModel
    spec: str
    value: str
    length: int | None
    samples: int
    seed: int

    @property
    def wanted(self) -> int:
        """Tokens: those asked for, or as many as are usual for the window."""
        return usual_length(self.loaded.window) if self.length is None else self.length


@dataclass(frozen=True)
class InputKind:
    """One row: a way to come by token ids.

    Attributes:
        name: what stands before the colon.
        argument: what stands behind it, in one word; empty where nothing does.
        help: what it is, in a few words.
        draw: from a request, the ids of each sequence, and notes for the run's record.
        several: whether it has more than one sample.
    """

    name: str
    argument: str
    help: str
    draw: Callable[[Request], tuple[Sequence[Sequence[int]] | Tensor, Mapping[str, Any]]]
    several: bool = False

    @property
    def form(self) -> str:
        """How it is written: "word:TEXT"."""
        return f"{self.name}:{self.argument}" if self.argument else self.name


def _tokenizer(ask: Request) -> PreTrainedTokenizerBase:
    return ask.loaded.tokenizer_for(f"input {ask.spec}", "use token:ID or ids:FILE")


def _first(loaded: LoadedModel) -> First:
    return first_token(loaded.tokenizer, loaded.model.config)


def _read(ask: Request) -> str:
    try:
        return Path(ask.value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        said = f"cannot read {literal(ask.value)}: {type(error).__name__}"
        raise FieldError("input", hint=said, value=ask.spec) from None


def _repeated(ask: Request, unit: list[int]) -> tuple[list[list[int]], Mapping[str, Any]]:
    first = first_before_repeats(ask.loaded.tokenizer, ask.loaded.model.config, unit)
    ids = [*first.ids, *unit * (ask.wanted // max(1, len(unit)) + 1)][: ask.wanted]
    return [ids], {"first": first.source, "unit": unit}


def _word(ask: Request) -> tuple[list[list[int]], Mapping[str, Any]]:
    if not ask.value.strip():
        raise FieldError("input", "a word after 'word:'", "none", value=ask.spec)
    return _repeated(ask, repeated_unit(_tokenizer(ask), ask.value, ask.spec))


def _token(ask: Request) -> tuple[list[list[int]], Mapping[str, Any]]:
    try:
        return _repeated(ask, [int(ask.value)])
    except ValueError:
        raise FieldError("input", "an integer token id", repr(ask.value), value=ask.spec) from None


def _ids(ask: Request) -> tuple[list[list[int]], Mapping[str, Any]]:
    try:
        ids = json.loads(_read(ask))
    except json.JSONDecodeError as error:
        raise FieldError("input", f"a JSON list of token ids ({literal(error)})", value=ask.spec) from None
    if not isinstance(ids, list) or not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise FieldError("input", "a JSON list of integers", value=ask.spec)
    given = _given(ids, ask)
    return [given], _as_they_are(ask.loaded, given)


def _as_they_are(loaded: LoadedModel, ids: Sequence[int]) -> Mapping[str, Any]:
    """Notes on ids that somebody has made: whether they begin as the model's texts do."""
    first = _first(loaded)
    if first.ids and tuple(ids[: len(first.ids)]) != first.ids:
        named = ", ".join(map(str, first.ids))
        return {"first": f"{MISSING}: the {first.source} puts {named} before every text, these ids do not begin so"}
    return {"first": "as given"}


def _text(ask: Request) -> tuple[list[list[int]], Mapping[str, Any]]:
    text, tokenizer, first = _read(ask), _tokenizer(ask), _first(ask.loaded)
    if not text:
        raise FieldError("input", "a file with some text", "an empty one", value=ask.spec)
    ids = encode(tokenizer, text) if ask.length is None else encode_prefix(tokenizer, text, ask.length)
    return [_given([*first.ids, *ids], ask)], {"first": first.source}


def _heldout(ask: Request) -> tuple[Tensor, Mapping[str, Any]]:
    ids = heldout_batch(ask.loaded, max(2, ask.wanted), ask.samples, ask.seed)
    return ids, {"first": _first(ask.loaded).source}


def _documents(ask: Request) -> tuple[Tensor, Mapping[str, Any]]:
    ids = document_batch(ask.loaded, max(2, ask.wanted), ask.samples, ask.seed)
    return ids, {"first": _first(ask.loaded).source, "documents": list(DOCUMENTS)[: ask.samples]}


def _document(ask: Request) -> tuple[Tensor, Mapping[str, Any]]:
    ids = document_batch(ask.loaded, max(2, ask.wanted), ask.samples, ask.seed, [ask.value])
    return ids, {"first": _first(ask.loaded).source}


def _dataset(ask: Request) -> tuple[Tensor, Mapping[str, Any]]:
    tokenizer, first = _tokenizer(ask), _first(ask.loaded)
    texts = dataset_texts(ask.value)[: ask.samples]
    if len(texts) < ask.samples:
        raise FieldError("samples", f"at most the {len(texts)} texts of {ask.spec}", ask.samples)
    shares = np.random.default_rng(ask.seed).random(ask.samples)
    rows = [
        document_window(
            torch.tensor(encode(tokenizer, text)),
            list(first.ids),
            max(2, ask.wanted),
            float(share),
            f"{number}, by length,",
        )
        for number, (text, share) in enumerate(zip(texts, shares, strict=True), 1)
    ]
    return torch.stack(rows), {"first": first.source}


def _given(ids: list[int], ask: Request) -> list[int]:
    if ask.length is not None and len(ids) < ask.length:
        raise FieldError(
            "input", hint=f"has {len(ids)} tokens, {{length}} asks for {ask.length}; give a longer file", value=ask.spec
        )
    return ids[: ask.length]


INPUTS: Table[InputKind] = Table(
    "input kind",
    InputKind,
    (
        InputKind("word", "TEXT", "a word, repeated: nothing but position varies", _word),
        InputKind("token", "ID", "a token id, repeated", _token),
        InputKind("ids", "FILE", "a JSON list of token ids, taken as they are", _ids),
        InputKind("text", "FILE", "a UTF-8 text", _text),
        InputKind("heldout", "", "text that the embedded models were not trained on", _heldout, several=True),
        InputKind("documents", "", "shipped long documents, one after another", _documents, several=True),
        InputKind("dataset", "PATH", "texts of *.jsonl, *.parquet or *.arrow, the longest first; PATH#COLUMN", _dataset,
                  several=True),
        InputKind("document", "NAME", "one of them, such as moby-dick-1", _document, several=True),
    ),
)  # fmt: skip


def inputs_help() -> str:
    """How inputs are written, for help texts: "word:TEXT, token:ID, ..."."""
    return ", ".join(row.form for row in INPUTS.values())


def _kind(spec: str) -> tuple[InputKind, str]:
    """The row of a spec, and what stands behind its colon.

    Raises:
        ProbeError: there is no such kind.
    """
    name, colon, value = spec.partition(":")
    if name not in INPUTS or bool(colon) != bool(INPUTS[name].argument):
        raise unknown("input kind", spec, [row.form for row in INPUTS.values()])
    return INPUTS[name], value


def draw_input(
    loaded: LoadedModel, spec: str | Ids, length: int | None = None, samples: int = 1, seed: int = 0
) -> Drawn:
    """Token ids for an input, with what a run writes down of them.

    A repeated word lets nothing but position vary; `heldout` is ordinary text that the embedded models have not seen,
    of which several samples average out what the tokens say and leave what the position does.

    Args:
        loaded: the model, for its tokenizer and vocabulary.
        spec: text that names one of `INPUTS`, such as "word:hello"; or token ids, which are taken as they are.
        length: tokens; None takes a file or ids whole, and `usual_length` of anything else.
        samples: sequences to draw, of inputs that have several.
        seed: draws the held-out windows.

    Raises:
        ProbeError: an unreadable, too short or ill-formed input, or ids outside the vocabulary.
    """
    if not isinstance(spec, str):
        return _as_given(loaded, spec, length)
    kind, value = _kind(spec)
    if samples < 1 or (samples > 1 and not kind.several):
        expected = "at least 1" if kind.several else f"1 for {{input}} {literal(spec)}, which is one sequence"
        raise FieldError("samples", expected, samples)
    rows, notes = kind.draw(Request(loaded, spec, value, length, samples, seed))
    return Drawn(_checked(loaded, rows, spec), spec, notes)


def make_input(
    loaded: LoadedModel, spec: str | Ids, length: int | None = None, samples: int = 1, seed: int = 0
) -> Int[Tensor, "samples length"]:
    """The token ids of `draw_input` alone."""
    return draw_input(loaded, spec, length, samples, seed).ids


def _as_given(loaded: LoadedModel, ids: Ids, length: int | None) -> Drawn:
    """Ids that somebody has already: [length] or [samples, length]."""
    try:
        found = torch.as_tensor(ids).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise FieldError(
            "input", "token ids of one sequence, or of several of equal length", type(ids).__name__
        ) from None
    found = found[None] if found.ndim == 1 else found
    if found.ndim != 2 or found.is_floating_point() or found.dtype == torch.bool:
        raise FieldError("input", "whole numbers [length] or [samples, length]", f"{found.dtype} {tuple(found.shape)}")
    if length is not None and found.shape[1] < length:
        raise FieldError("input", hint=f"has {found.shape[1]} tokens, {{length}} asks for {length}; give more ids")
    checked = _checked(loaded, found.long()[:, :length], "ids")
    return Drawn(checked, "ids", _as_they_are(loaded, checked[0].tolist()))


def _check_not_constant(ids: Tensor, spec: str) -> None:
    """Refuse ids on which no position could be told from another, by any scheme.

    Raises:
        FieldError: a sequence of one token alone.
    """
    if bool((ids == ids[:, :1]).all(1).any()):
        raise FieldError(
            "input",
            hint="all its tokens are alike, and so every hidden state would be, at any position; put another first",
            value=spec,
        )


def _checked(loaded: LoadedModel, rows: Sequence[Sequence[int]] | Tensor, spec: str) -> Int[Tensor, "samples length"]:
    """The ids as a tensor, once they are known to be the model's.

    Raises:
        FieldError: fewer than two, or one outside the vocabulary.
    """
    ids = rows if isinstance(rows, Tensor) else torch.tensor([list(row) for row in rows])
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    if ids.shape[1] < 2:
        raise FieldError("length", "at least 2 tokens", ids.shape[1])
    if spec == "ids" or spec.startswith("ids:"):
        _check_not_constant(ids, spec)
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        raise FieldError(
            "input", hint=f"token id {int(outside[0])} is outside the vocabulary 0 to {vocabulary - 1}", value=spec
        )
    return ids
