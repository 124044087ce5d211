"""What a model makes of prompts and texts under a scheme: exact answers, written answers, nats per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.schemes import ORIGIN, Scheme, make_scheme
from probe.seam.apply import apply_scheme
from probe.tasks.encoding import first_token
from probe.tasks.nll import nll_per_position
from probe.tasks.passkey import PasskeySample, minimum_length, passkey_sample
from probe.tasks.prefixes import PrefixMemory
from probe.tasks.questions import Question

BATCH_TOKENS = 8192
MORE = 16
"""Tokens that a model may write beyond those of the answer as it is expected."""

T = TypeVar("T")


Answered = PasskeySample | Question
"""A prompt with its answer, ids both."""


def batches(items: Sequence[T], length: int) -> list[Sequence[T]]:
    """Items of `length` tokens each, as many at once as `BATCH_TOKENS` hold, at least one."""
    size = max(1, BATCH_TOKENS // length)
    return [items[start : start + size] for start in range(0, len(items), size)]


def depth_grid(depths: int) -> list[float]:
    """So many depths from 0 to 1, both included; one is the middle."""
    return [0.5] if depths == 1 else [at / (depths - 1) for at in range(depths)]


def spread_depths(samples: int, rng: np.random.Generator, depths: int | None = None) -> list[float]:
    """Where what is hidden stands, the share of filler before it, for each sample.

    Args:
        samples: how many.
        rng: draws.
        depths: None spreads them evenly over [0, 1), so that every decile has its share; a number deals the samples to
            so many depths from 0 to 1, both included (one is the middle).
    """
    if depths is None:
        return [float(depth) for depth in (np.arange(samples) + rng.random(samples)) / samples]
    grid = depth_grid(depths)
    return sorted(grid[at % depths] for at in range(samples))


def draw_passkeys(
    loaded: LoadedModel,
    length: int,
    samples: int,
    seed: int,
    prompt: str = "plain",
    *,
    depths: int | None = None,
    key: str = "digits",
    unit: str = "tokens",
    question: str = "end",
    haystacks: int | None = None,
) -> list[PasskeySample]:
    """Samples at depths as `spread_depths` has them.

    Raises:
        ProbeError: no tokenizer, an unknown kind of prompt or one it does not have, or a length too short for the task.
    """
    tokenizer = loaded.tokenizer_for("task passkey")
    least = minimum_length(tokenizer, prompt=prompt, key=key, unit=unit, question=question)
    if length < least:
        raise FieldError("lengths", hint=f"a pass key needs at least {least} {unit} of this tokenizer, got {length}")
    rng = np.random.default_rng((seed, length))
    places = spread_depths(samples, rng, depths)
    texts = text_draws(seed, length, haystacks)
    return [
        passkey_sample(
            tokenizer, length, depth, rng, prompt=prompt, key=key, unit=unit, question=question, text=texts(number)
        )
        for number, depth in enumerate(places)
    ]


def text_draws(seed: int, length: int, haystacks: int | None) -> Callable[[int], np.random.Generator | None]:
    """For the number of a sample, what draws the text that something is hidden in: samples are dealt to so many texts,
    each anew from its beginning. None where every sample has a text of its own.
    """
    if haystacks is None:
        return lambda number: None
    return lambda number: np.random.default_rng((seed, length, 1, number % haystacks))


def passkey_hits(loaded: LoadedModel, scheme: Scheme, drawn: Sequence[Answered]) -> Bool[Tensor, " samples"]:
    """Whether greedy decoding gives exactly the key: every answer token is the argmax after its true prefix."""
    return passkey_answers(loaded, scheme, drawn)[0]


@torch.no_grad()
def passkey_answers(
    loaded: LoadedModel, scheme: Scheme, drawn: Sequence[Answered], memory: PrefixMemory | None = None
) -> tuple[Bool[Tensor, " samples"], Float[Tensor, " samples"]]:
    """(whether greedy decoding gives exactly the answer, nats per token of the answer), of every sample.

    Samples of different lengths, as an answer in words has, are padded at the left. With a memory they are read one by
    one, each from where it differs from the one before.
    """
    hits, nats = [], []
    if memory is not None:
        for sample in drawn:
            with apply_scheme(loaded.model, scheme, prompt=len(sample.prompt) + len(sample.answer)):
                found = _forced(loaded, [sample], memory)
            hits += found[0]
            nats += found[1]
        return torch.tensor(hits), torch.tensor(nats)
    longest = max(len(sample.prompt) + len(sample.answer) for sample in drawn)
    with apply_scheme(loaded.model, scheme):
        for mine in batches(drawn, longest):
            found = _forced(loaded, mine)
            hits += found[0]
            nats += found[1]
    return torch.tensor(hits), torch.tensor(nats)


def _forced(
    loaded: LoadedModel, mine: Sequence[Answered], memory: PrefixMemory | None = None
) -> tuple[list[bool], list[float]]:
    """One batch: the answer is read, and every token of it should have been the likeliest."""
    longest = max(len(sample.answer) for sample in mine)
    inputs = padded([sample.prompt + sample.answer for sample in mine], loaded.device)
    if memory is not None:
        logits = memory.forced(loaded.model, inputs["input_ids"], longest + 1)
    else:
        logits = loaded.model(**inputs, use_cache=False, logits_to_keep=longest + 1).logits
    hits, nats = [], []
    for row, truth, sample in zip(logits[:, :-1].float(), inputs["input_ids"][:, -longest:], mine, strict=True):
        # A tokenizer may cut answers into different numbers of tokens: only the answer's own count.
        own = slice(longest - len(sample.answer), None)
        hits.append(bool((row[own].argmax(-1) == truth[own]).all()))
        nats.append(float(cross_entropy(row[own], truth[own])))
    return hits, nats


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, Any]:
    """Rows of ids, padded at the left, with a mask where one is needed."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return {"input_ids": ids}
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def written_answers(
    loaded: LoadedModel, scheme: Scheme, drawn: Sequence[Question], memory: PrefixMemory | None = None
) -> list[str]:
    """What greedy decoding writes behind every prompt, up to `MORE` tokens beyond the expected answer's.

    With a memory prompts are read one by one, each from where it differs from the one before.

    Raises:
        ProbeError: no tokenizer.
    """
    said = []
    if memory is not None:
        for one in drawn:
            memory.resume(one.prompt, loaded.model.config, 1)
            with apply_scheme(loaded.model, scheme, prompt=len(one.prompt)):
                said += _written(loaded, [one], past_key_values=memory.cache)
        return said
    with apply_scheme(loaded.model, scheme):
        for mine in batches(drawn, max(len(one.prompt) + len(one.answer) for one in drawn)):
            said += _written(loaded, mine)
    return said


def _written(loaded: LoadedModel, mine: Sequence[Question], **options: Any) -> list[str]:
    """One batch: each prompt is continued."""
    tokenizer = loaded.tokenizer_for("a task that is answered in writing")
    ends = getattr(loaded.model.generation_config, "eos_token_id", None)
    pad = next(iter(ends), 0) if isinstance(ends, list | tuple) else ends or 0
    inputs = padded([one.prompt for one in mine], loaded.device)
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    made = loaded.model.generate(
        **inputs, **options, do_sample=False, max_new_tokens=max(len(one.answer) for one in mine) + MORE,
        pad_token_id=pad, num_beams=1, temperature=None, top_p=None, top_k=None,
    )  # fmt: skip
    # Each is cut to its own share, so that what is found does not depend on its neighbours.
    rows = zip(made[:, inputs["input_ids"].shape[1] :], mine, strict=True)
    return [str(tokenizer.decode(row[: len(one.answer) + MORE], skip_special_tokens=True)) for row, one in rows]


def heldout_nll(loaded: LoadedModel, scheme: Scheme, ids: Tensor, tick: Callable[[], None] = lambda: None) -> Tensor:
    """NLL per position of every window, [samples, length], nats; entry 0 is NaN."""
    rows = []
    with apply_scheme(loaded.model, scheme):
        for mine in ids.split(max(1, BATCH_TOKENS // ids.shape[1])):
            rows.append(nll_per_position(loaded.model, mine.to(loaded.device)))
            tick()
    return torch.cat(rows)


def windowed_nll(loaded: LoadedModel, ids: Int[Tensor, "samples length"]) -> Float[Tensor, "samples length"]:
    """NLL per position of the model as trained under a context cut to its window, nats; entry 0 is NaN.

    Inside the window it is the likelihood of the text itself. Past it, half a window at a time is scored behind the
    half before it, so that every token has half a window of context at least and no distance is unseen. What the
    tokenizer puts first stays first.
    """
    window = loaded.window
    head, step = len(first_token(loaded.tokenizer, loaded.model.config).ids), max(1, window // 2)
    trained = make_scheme(ORIGIN, window)
    found = torch.full(ids.shape, float("nan"))
    found[:, :window] = heldout_nll(loaded, trained, ids[:, :window])
    for start in range(window, ids.shape[1], step):
        stop = min(start + step, ids.shape[1])
        cut = torch.cat((ids[:, :head], ids[:, stop - window + head : stop]), 1)
        found[:, start:stop] = heldout_nll(loaded, trained, cut)[:, start - stop :]
    return found
