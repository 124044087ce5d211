"""Chunked prefill: a long prompt goes through the model a few chunks at a time.

What a token sees is decided by the scheme, from its absolute position and the whole prompt's length, and all earlier
keys are in the cache. So how a prompt is cut into calls changes memory and speed, not one result: chunks of Mesa that
do not depend on each other go through together, as rows of one call that share chunk 0's keys in the cache, as many as
a budget allows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from probe.errors import FieldError, ProbeError, out_of_memory
from probe.schemes.scheme import Scheme
from probe.seam.attributes import attributes
from probe.seam.cache import buffered, truncate, written_by_a_scheme
from probe.seam.given import KEPT, GivenPositions, given_positions
from probe.seam.parallel import Ranks, begin_at, shares
from probe.seam.prompt import PromptState

_BUDGET = {"cpu": 1 << 26, "cuda": 1 << 31}
"""Bytes of activations that a chunk batch may take when it is chosen by itself."""
_SLICED = ("input_ids", "inputs_embeds", "position_ids", "token_type_ids")
"""Arguments with one entry per new token."""
_DIM = {"inputs_embeds": -2}
_PROMPT = "_weavescope_prompt"
"""Attribute of a cache: tokens of the prompt in it."""
_SCHEME = "_weavescope_scheme"
"""Attribute of a cache: text of the scheme that filled it."""


def bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Activations of one token in one layer, roughly: the widest are the MLP's, three times its width, and eight hidden
    states.
    """
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
        raise FieldError("chunk_batch", "auto or an integer >= 1", value)
    return count


def spans(borders: Sequence[int], total: int, batch: int) -> list[tuple[int, int]]:
    """Token ranges [start, stop) of the calls: `batch` middle chunks each, chunk 0 with the first, the last chunk
    alone.

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
        scheme: the scheme.
        prompt: what is known of the prompt of the calls that go on.
        chunk_batch: middle chunks in a call; None for as many as the budget allows.
        keep: hidden states of the prompt's end that the caller reads, 0 for all.
        ranks: processes that share a prompt's middle chunks; None: this one alone.
    """

    scheme: Scheme
    prompt: PromptState
    chunk_batch: int | None = None
    keep: int = 0
    ranks: Ranks | None = None

    @contextmanager
    def on(self, prompt: int, given: GivenPositions | None = None) -> Iterator[None]:
        """Calls inside the context are parts of a prompt of so many tokens, or continue it, at positions given or
        usual.
        """
        with self.prompt.call(prompt, given), written_by_a_scheme():
            yield


Undo = Callable[[], None]
_MARKS: WeakKeyDictionary[nn.Module, list[Callable[[], Undo]]] = WeakKeyDictionary()


@contextmanager
def marked(model: nn.Module, mark: Callable[[], Undo]) -> Iterator[None]:
    """Let someone who watches the layers of `model` drop what a call told that then ran out of memory.

    Args:
        model: the causal LM or its decoder.
        mark: called before each call of a prompt; what it returns is called if that call fails and is tried again in
            halves.
    """
    marks = _MARKS.setdefault(getattr(model, "base_model", model), [])
    marks.append(mark)
    try:
        yield
    finally:
        marks.remove(mark)


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
    marks: Sequence[Callable[[], Undo]] = ()
    outputs: list[Any] = field(default_factory=list)

    def feed(self, start: int, stop: int) -> None:
        """One call; out of memory, what it left in the cache and with who watches is dropped, and the halves are tried.

        Raises:
            ProbeError: more is to come, and the model left no keys in the cache.
        """
        undo = [mark() for mark in self.marks]
        try:
            output = self.call(**_sliced(self.arguments, start, stop))
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not out_of_memory(error) or stop - start < 2:
                raise
        else:
            self._check_cached(stop)
            self._take(output, start, stop)
            return
        for back in undo:
            back()
        truncate(self.arguments["past_key_values"], start)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = (start + stop) // 2
        self.feed(start, middle)
        self.feed(middle, stop)

    def _check_cached(self, stop: int) -> None:
        """Without the keys so far the next call would see none of them, and nobody would notice."""
        held = self.arguments["past_key_values"].get_seq_length()
        if stop < self.total and held != stop:
            raise ProbeError(
                f"a prompt fed in chunks needs a cache: expected {stop} tokens in it, got {held}; "
                "gradient checkpointing, which keeps none, has to be off"
            )

    def _take(self, output: Any, start: int, stop: int) -> None:
        """Keep an output, less the hidden states that nobody will read."""
        skip = max(0, self.total - self.keep - start) if self.keep else 0
        if skip:
            # A copy, so that the rest is freed; empty where the whole call is dropped.
            output.last_hidden_state = output.last_hidden_state[:, skip:].clone()
        self.outputs.append(output)

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
    """A call of the decoder: continued as it is, a fresh prompt in spans and with a buffered cache.

    The cache carries the length of its prompt, so that several caches can be continued in turns.

    Raises:
        ProbeError: a cache that something else filled.
    """
    tokens, cache = _tokens(arguments), arguments.get("past_key_values")
    held = 0 if cache is None else cache.get_seq_length()
    rows, new = tokens.shape[:2]
    cached = cache is not None or bool(_or_default(arguments, "use_cache", base.config))
    given = None if feeding.prompt.usual else given_positions(arguments, held, new, rows, cached)
    if held == 0:
        return _fresh(feeding, base, call, arguments, given)
    _check_cache(feeding, cache)
    if getattr(cache, _PROMPT) > held:
        # Cropped into its prompt: what comes now ends the prompt.
        setattr(cache, _PROMPT, feeding.prompt.whole(held + new))
    with feeding.on(getattr(cache, _PROMPT), given):
        output = call(**arguments)
    _keep_positions(cache, given)
    return output


def _check_cache(feeding: Feeding, cache: Any) -> None:
    """Refuse a cache whose keys are not this scheme's.

    Raises:
        ProbeError: the stock model filled it (its keys are rotated), or another scheme did (its lower layers saw
            something else).
    """
    filled = getattr(cache, _SCHEME, None)
    if filled == feeding.scheme.spec:
        return
    by = "the model as it is, whose keys are rotated" if filled is None else f"scheme {filled}"
    raise ProbeError(
        f"past_key_values: expected a cache that scheme {feeding.scheme.spec} filled, got one filled under {by}; "
        "start from an empty cache inside the context"
    )


def _keep_positions(cache: Any, given: GivenPositions | None) -> None:
    """Leave positions that were given with the cache, for the calls that continue it."""
    if given is not None:
        setattr(cache, KEPT, given.positions)


def _fresh(
    feeding: Feeding,
    base: PreTrainedModel,
    call: Callable[..., Any],
    arguments: dict[str, Any],
    given: GivenPositions | None,
) -> Any:
    """The first pass of a prompt. At positions that were given it is not cut: nothing is known of its chunks."""
    config, cache = base.config, arguments.get("past_key_values")
    rows, total = _tokens(arguments).shape[:2]
    prompt = feeding.prompt.whole(total)
    borders = [] if given else [border for border in feeding.scheme.borders_at(prompt) if border < total]
    wants_cache = bool(_or_default(arguments, "use_cache", config)) or cache is not None
    if not borders and not wants_cache:
        with feeding.on(prompt, given):
            return call(**arguments)
    cache = buffered(DynamicCache(config=config) if cache is None else cache, total, raw=True)
    setattr(cache, _PROMPT, prompt)
    setattr(cache, _SCHEME, feeding.scheme.spec)
    as_tuple = not _or_default(arguments, "return_dict", config)
    arguments |= {"past_key_values": cache, "use_cache": True, "return_dict": True}
    chunk = borders[1] - borders[0] if len(borders) > 1 else 1
    batch = feeding.chunk_batch or auto_batch(config, base.dtype, base.device.type, rows, chunk)
    fed_prompt = _Prompt(call, arguments, total, feeding.keep, _MARKS.get(base, ()))
    with feeding.on(prompt, given):
        # The chunks of a padded row are others, and see across the borders of the whole.
        if feeding.ranks is not None and len(borders) > 2 and not _padded(arguments):
            _feed_shared(feeding.ranks, fed_prompt, borders, batch)
        else:
            for start, stop in spans(borders, total, batch):
                fed_prompt.feed(start, stop)
    _keep_positions(cache, given)
    output = fed_prompt.whole()
    if not wants_cache:
        output.past_key_values = None
    return output.to_tuple() if as_tuple else output


def _padded(arguments: dict[str, Any]) -> bool:
    """Whether a call has a mask that hides something."""
    mask = arguments.get("attention_mask")
    return isinstance(mask, Tensor) and not bool(mask.all())


def _feed_shared(ranks: Ranks, prompt: _Prompt, borders: Sequence[int], batch: int) -> None:
    """A prompt of which this process reads chunk 0, its share of the middle chunks, and the last chunk.

    Raises:
        ProbeError: hidden states or logits of middle chunks are asked for, which other processes have.
    """
    first, last, cache = borders[0], borders[-1], prompt.arguments["past_key_values"]
    if not 0 < prompt.keep <= prompt.total - last or prompt.arguments.get("output_hidden_states"):
        raise ProbeError(
            "chunk-parallel prefill: expected logits of the last chunk only, as generate() asks for; give "
            f"logits_to_keep=1 to {prompt.total - last}, and no output_hidden_states"
        )
    prompt.feed(0, first)
    dealt = shares(borders, ranks.count)
    start, stop = dealt[ranks.rank]
    begin_at(cache, start)
    mine = [border for border in borders if start <= border < stop]
    for at, end in pairwise([*mine[::batch], stop]):
        prompt.feed(at, end)
    ranks.exchange(cache, dealt, last)
    prompt.feed(last, prompt.total)


def _or_default(arguments: dict[str, Any], name: str, config: PretrainedConfig) -> Any:
    """An argument, or where it is not given the configuration's value of that name."""
    value = arguments.get(name)
    return getattr(config, name) if value is None else value


def _named(bound: inspect.BoundArguments) -> dict[str, Any]:
    """All arguments of a call by name."""
    arguments: dict[str, Any] = dict(bound.arguments)
    rest: dict[str, Any] = arguments.pop("kwargs", {})
    return arguments | rest


def _check_no_weights_asked(arguments: dict[str, Any], config: PretrainedConfig) -> None:
    """Refuse what would come back empty.

    Raises:
        ProbeError: attention weights are asked for.
    """
    asked = arguments.get("output_attentions")
    if getattr(config, "output_attentions", False) if asked is None else asked:
        raise ProbeError(
            "output_attentions: fused attention has no weights to give; leave it out, and compute them by "
            "the weights of the blocks of scores that probe.seam.observers.observed hands out"
        )


@contextmanager
def fed(model: PreTrainedModel, feeding: Feeding) -> Iterator[None]:
    """Feed every fresh prompt as `feeding` says, inside the context; each `forward` is as before afterwards.

    The decoder's forward is replaced (so that its callers see one pass), and the causal LM's only to learn how many
    positions' logits are asked for, so that the hidden states of no others are kept.

    Raises:
        ProbeError: in a pass, attention weights are asked for.
    """
    base: PreTrainedModel = model.base_model
    whole, top = base.forward, model.forward
    signature, top_signature = inspect.signature(whole), inspect.signature(top)

    @wraps(whole)
    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = _named(signature.bind(*args, **kwargs))
        _check_no_weights_asked(arguments, base.config)
        return _feed(feeding, base, whole, arguments)

    @wraps(top)
    def top_forward(*args: Any, **kwargs: Any) -> Any:
        arguments = top_signature.bind(*args, **kwargs).arguments
        keep = arguments.get("logits_to_keep", 0)
        feeding.keep = keep if isinstance(keep, int) and arguments.get("labels") is None else 0
        try:
            return top(*args, **kwargs)
        finally:
            feeding.keep = 0

    with ExitStack() as undo:
        undo.enter_context(attributes(base, forward=forward))
        if model is not base:
            undo.enter_context(attributes(model, forward=top_forward))
        yield
