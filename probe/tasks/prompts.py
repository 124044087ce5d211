"""What is put around a task's text: a chat template or nothing, and on which side of it the question stands."""

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


@dataclass(frozen=True)
class Placement:
    """One row: where the question stands.

    Attributes:
        name: by which users ask for it.
        help: where that is, in a few words.
        before: whether it is asked before the text that it is about.
        after: whether it is asked behind it.
    """

    name: str
    help: str
    before: bool
    after: bool


PLACEMENTS: Table[Placement] = Table(
    "place of the question",
    Placement,
    (
        Placement("end", "behind the text", before=False, after=True),
        Placement("both", "before the text, and again behind it", before=True, after=True),
        Placement("start", "before the text only; the answer begins behind it", before=True, after=False),
    ),
)
"""Under Mesa every chunk of a prompt sees its beginning and itself: a question at the start is seen by all of them."""
