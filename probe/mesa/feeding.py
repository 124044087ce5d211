"""Chunked prefill: a long prompt goes through the model a few chunks at a time.

What a token sees is decided by the scheme, from its absolute position and the whole prompt's length, and all earlier keys are in the
cache. So how a prompt is cut into calls changes memory and speed, not one result: chunks of Mesa that do not depend on
each other go through together, as rows of one call that share chunk 0's keys in the cache, as many as a budget allows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from probe.errors import ProbeError
from probe.mesa.cache import buffered, truncate

_BUDGET = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Bytes of activations that a chunk batch may take when it is chosen by itself."""
_SLICED = ("input_ids", "inputs_embeds", "position_ids", "token_type_ids")
"""Arguments with one entry per new token."""
_DIM = {"inputs_embeds": -2}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Activations of one token in one layer, roughly: the widest are the MLP's, three times its width, and eight hidden states."""
    width = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * width
    return (3 * int(inner) + 8 * width) * dtype.itemsize


def auto_batch(config: PretrainedConfig, dtype: torch.dtype, device: str, rows: int, chunk: int) -> int:
    """Chunks whose activations fit the budget; at least one.

    Args:
        config: the model's.
        dtype: of its activations.
        device: "cpu" or "cuda".
        rows: sequences in the batch.
        chunk: tokens of a chunk.
    """
    budget = _BUDGET.get(device, _BUDGET["cuda"])
    return max(1, budget // (bytes_per_token(config, dtype) * rows * max(1, chunk)))


def check_chunk_batch(value: int | str) -> int | None:
    """The number of chunks in a call, or None for "auto".

    Raises:
        ProbeError: neither "auto" nor an integer >= 1.
    """
    if value == "auto":
        return None
    try:
        count = int(value)
    except ValueError:
        count = 0
    if count < 1:
        raise ProbeError(f"--chunk-batch: expected auto or an integer >= 1, got {value}")
    return count


def spans(borders: Sequence[int], total: int, batch: int) -> list[tuple[int, int]]:
    """Token ranges [start, stop) of the calls: `batch` middle chunks each, chunk 0 with the first, the last chunk alone.

    Args:
        borders: first positions of the middle chunks and, last, of the last chunk; ascending.
        total: tokens of the prompt.
        batch: middle chunks in a call.
    """
    if not borders:
        return [(0, total)]
    last = borders[-1]
    starts = [0, *borders[batch:-1:batch], last]
    stops = [*starts[1:], total]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if stop > start]


@dataclass
class Feeding:
    """How prompts are fed while a scheme is applied.

    Attributes:
        borders_at: chunk borders of a prompt of so many tokens (empty: not chunked).
        begin: told the number of tokens of a prompt before its first call, None after its last.
        chunk_batch: middle chunks in a call; None for as many as the budget allows.
        keep: hidden states of the prompt's end that the caller reads, 0 for all.
        ranges: token ranges of the last prompt's calls, for the record.
    """

    borders_at: Callable[[int], Sequence[int]]
    begin: Callable[[int | None], None]
    chunk_batch: int | None = None
    keep: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def _sliced(arguments: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The arguments of a call for the new tokens start..stop-1."""
    mine = dict(arguments)
    for name in _SLICED:
        value = mine.get(name)
        if isinstance(value, Tensor):
            mine[name] = value.narrow(_DIM.get(name, -1), start, stop - start)
    mask = mine.get("attention_mask")
    if isinstance(mask, Tensor):
        mine["attention_mask"] = mask[..., :stop]
    return mine


@dataclass
class _Prompt:
    """One prompt on its way through the model: the call, its arguments, and what has come out so far."""

    call: Callable[..., Any]
    arguments: dict[str, Any]
    total: int
    keep: int
    outputs: list[Any]
    ranges: list[tuple[int, int]]

    def feed(self, start: int, stop: int) -> None:
        """One call; out of memory, what it left in the cache is dropped and the halves are tried."""
        try:
            output = self.call(**_sliced(self.arguments, start, stop))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or stop - start < 2:
                raise
        else:
            self._take(output, start, stop)
            return
        truncate(self.arguments["past_key_values"], start)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = (start + stop) // 2
        self.feed(start, middle)
        self.feed(middle, stop)

    def _take(self, output: Any, start: int, stop: int) -> None:
        """Keep an output, less the hidden states that nobody will read."""
        skip = max(0, self.total - self.keep - start) if self.keep else 0
        if skip:
            # A copy, so that the rest is freed; empty where the whole call is dropped.
            output.last_hidden_state = output.last_hidden_state[:, skip:].clone()
        self.outputs.append(output)
        self.ranges.append((start, stop))

    def whole(self) -> Any:
        """All calls' outputs as one: last hidden states of the last `keep` tokens (0: all), the other fields of all."""
        result, parts = self.outputs[-1], [output.last_hidden_state for output in self.outputs]
        result.last_hidden_state = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if result.get("hidden_states") is not None:
            layers = zip(*(output.hidden_states for output in self.outputs), strict=True)
            result.hidden_states = tuple(torch.cat(layer, dim=1) for layer in layers)
        return result


def _tokens(arguments: dict[str, Any]) -> Tensor:
    """The argument that holds the new tokens: [batch, tokens(, width)]."""
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    tokens = ids if ids is not None else embeds
    if not isinstance(tokens, Tensor):
        raise ProbeError("expected input_ids or inputs_embeds, got neither")
    return tokens


def _feed(feeding: Feeding, base: PreTrainedModel, call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """A call of the decoder: continued as it is, a fresh prompt in spans and with a buffered cache."""
    tokens = _tokens(arguments)
    rows, total = tokens.shape[:2]
    cache = arguments.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        return call(**arguments)
    borders = [border for border in feeding.borders_at(total) if border < total]
    wants_cache = arguments.get("use_cache")
    wants_cache = bool(base.config.use_cache if wants_cache is None else wants_cache) or cache is not None
    if not borders and not wants_cache:
        return call(**arguments)
    batch = feeding.chunk_batch or auto_batch(
        base.config, base.dtype, tokens.device.type, rows, borders[1] - borders[0] if len(borders) > 1 else 1
    )
    arguments["past_key_values"] = buffered(DynamicCache(config=base.config) if cache is None else cache, total)
    arguments["use_cache"] = True
    prompt = _Prompt(call, arguments, total, feeding.keep, [], [])
    feeding.begin(total)
    try:
        for start, stop in spans(borders, total, batch):
            prompt.feed(start, stop)
    finally:
        feeding.begin(None)
    feeding.ranges = prompt.ranges
    output = prompt.whole()
    if not wants_cache:
        output.past_key_values = None
    return output


@contextmanager
def fed(model: PreTrainedModel, feeding: Feeding) -> Iterator[None]:
    """Feed every fresh prompt as `feeding` says, inside the context; the instances' `forward` is back afterwards.

    The decoder's forward is replaced (so that its callers see one pass), and the causal LM's only to learn how many positions'
    logits are asked for, so that the hidden states of no others are kept.
    """
    base: PreTrainedModel = model.base_model
    whole, top = base.forward, model.forward
    signature, top_signature = inspect.signature(whole), inspect.signature(top)

    def named(bound: inspect.BoundArguments) -> dict[str, Any]:
        arguments: dict[str, Any] = dict(bound.arguments)
        rest: dict[str, Any] = arguments.pop("kwargs", {})
        return arguments | rest

    @wraps(whole)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return _feed(feeding, base, whole, named(signature.bind(*args, **kwargs)))

    @wraps(top)
    def top_forward(*args: Any, **kwargs: Any) -> Any:
        arguments = top_signature.bind(*args, **kwargs).arguments
        keep = arguments.get("logits_to_keep", 0)
        feeding.keep = keep if isinstance(keep, int) and arguments.get("labels") is None else 0
        try:
            return top(*args, **kwargs)
        finally:
            feeding.keep = 0

    try:
        base.forward = forward
        if model is not base:
            model.forward = top_forward
        yield
    finally:
        for module in {base, model}:
            module.__dict__.pop("forward", None)
