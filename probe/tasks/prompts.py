"""What is put around a task's prompt: nothing, or the chat template that an instruct model was trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from probe.errors import FieldError
from probe.tables import Table
from probe.tasks.encoding import first_token

_HERE = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the prompt while the template is put around it: no template writes it."""


@dataclass(frozen=True)
class Around:
    """Token ids before a prompt, and between it and the answer."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """One row: a way to put a question to a model.

    Attributes:
        name: by which users ask for it.
        help: what it is, in a few words.
        around: from a tokenizer, what stands before and behind the prompt.
    """

    name: str
    help: str
    around: Callable[[PreTrainedTokenizerBase], Around]


def _plain(tokenizer: PreTrainedTokenizerBase) -> Around:
    return Around(first_token(tokenizer, None).ids, ())


def _chat(tokenizer: PreTrainedTokenizerBase) -> Around:
    if not getattr(tokenizer, "chat_template", None):
        raise FieldError("prompt", hint="the model's tokenizer has no chat template; use plain", value="chat")
    said = [{"role": "user", "content": _HERE}]
    text = str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    parts = text.split(_HERE)
    if len(parts) != 2:
        raise FieldError("prompt", hint="the chat template does not put the prompt in one place; use plain")
    # The template's own marks are special tokens, so they are encoded as such; it says itself what comes first.
    before, after = (tuple(tokenizer.encode(part, add_special_tokens=False)) for part in parts)
    return Around(before, after)


PROMPTS: Table[Prompt] = Table(
    "prompt",
    Prompt,
    (
        Prompt("plain", "the text alone, behind what the tokenizer puts first", _plain),
        Prompt("chat", "a user's turn of the model's chat template; the answer begins the reply", _chat),
    ),
)
