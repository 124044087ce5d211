"""The token sequences a probe runs on: a repeated word or token, a file of ids, a text, the held-out text."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probe.errors import FieldError, literal, unknown
from probe.models.load import LoadedModel
from probe.tasks.heldout import heldout_batch

KINDS = ("word:TEXT", "token:ID", "ids:FILE", "text:FILE", "heldout")


def _tokenizer(loaded: LoadedModel, spec: str) -> PreTrainedTokenizerBase:
    return loaded.tokenizer_for(f"input {spec}", "use token:ID or ids:FILE")


def _bos(loaded: LoadedModel) -> list[int]:
    bos = getattr(loaded.tokenizer, "bos_token_id", None)
    bos = bos if bos is not None else loaded.model.config.bos_token_id
    return [bos] if isinstance(bos, int) else []


def _read(path: str, spec: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FieldError("input", hint=f"cannot read {literal(path)}: {type(error).__name__}", value=spec) from None


def _repeated(loaded: LoadedModel, unit: list[int], length: int) -> list[int]:
    bos = _bos(loaded)
    return (bos + unit * (length // max(1, len(unit)) + 1))[:length]


def _listed(path: str, spec: str) -> list[int]:
    try:
        ids = json.loads(_read(path, spec))
    except json.JSONDecodeError as error:
        raise FieldError("input", f"a JSON list of token ids ({error})", value=spec) from None
    if not isinstance(ids, list) or not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise FieldError("input", "a JSON list of integers", value=spec)
    return ids


def _given(ids: list[int], length: int | None, spec: str) -> list[int]:
    if length is not None and len(ids) < length:
        raise FieldError(
            "input", hint=f"has {len(ids)} tokens, {{length}} asks for {length}; give a longer file", value=spec
        )
    return ids[:length]


def _word(loaded: LoadedModel, value: str, spec: str) -> list[int]:
    # A leading space: inside a text that is how the word occurs, and most tokenizers have it whole only so.
    unit: list[int] = _tokenizer(loaded, spec).encode(" " + value, add_special_tokens=False)
    if not value.strip() or not unit:
        raise FieldError("input", "a word after 'word:'", "none", value=spec)
    return unit


def _token(value: str, spec: str) -> list[int]:
    try:
        return [int(value)]
    except ValueError:
        raise FieldError("input", "an integer token id", repr(value), value=spec) from None


def make_input(
    loaded: LoadedModel, spec: str, length: int | None, samples: int = 1, seed: int = 0
) -> Int[Tensor, "samples length"]:
    """Token ids for an input spec, `<bos>` first where the model has one (files of ids are taken as they are).

    A repeated word lets nothing but position vary; `heldout` is ordinary text that the embedded models have not seen, of which
    several samples average out what the tokens say and leave what the position does.

    Args:
        loaded: the model, for its tokenizer and vocabulary.
        spec: one of `KINDS`.
        length: tokens; None takes a file whole, and four windows of anything else.
        samples: sequences to draw; only `heldout` has more than one.
        seed: draws the held-out windows.

    Raises:
        ProbeError: an unreadable, too short or ill-formed input, or ids outside the vocabulary.
    """
    if samples < 1 or (samples > 1 and spec != "heldout"):
        expected = "at least 1" if spec == "heldout" else f"1 for {{input}} {literal(spec)}, which is one sequence"
        raise FieldError("samples", expected, samples)
    kind, _, value = spec.partition(":")
    wanted = 4 * loaded.window if length is None else length
    if spec == "heldout":
        return heldout_batch(loaded, max(2, wanted), samples, seed)
    if kind == "word":
        ids = _repeated(loaded, _word(loaded, value, spec), wanted)
    elif kind == "token":
        ids = _repeated(loaded, _token(value, spec), wanted)
    elif kind == "ids":
        ids = _given(_listed(value, spec), length, spec)
    elif kind == "text":
        text = _tokenizer(loaded, spec).encode(_read(value, spec), add_special_tokens=False)
        ids = _given(_bos(loaded) + text, length, spec)
    else:
        raise unknown("input kind", spec, KINDS)
    _check(loaded, ids, spec)
    return torch.tensor([ids])


def _check(loaded: LoadedModel, ids: list[int], spec: str) -> None:
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    if len(ids) < 2:
        raise FieldError("length", "at least 2 tokens", len(ids))
    outside = [token for token in ids if not 0 <= token < vocabulary]
    if outside:
        raise FieldError(
            "input", hint=f"token id {outside[0]} is outside the vocabulary 0 to {vocabulary - 1}", value=spec
        )
