"""Windows of the held-out text: the standard library's files that no embedded model was trained on."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probe.errors import FieldError
from probe.models.load import LoadedModel
from probe.tasks.corpus import documents
from probe.tasks.encoding import encode, first_token


def heldout_tokens(loaded: LoadedModel) -> Int[Tensor, " tokens"]:
    """The held-out split of the standard library as one stream of ids."""
    return _encoded(loaded.tokenizer_for("held-out text"))


@lru_cache(maxsize=1)
def _encoded(tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " tokens"]:
    """Kept for the next length: encoding takes a second."""
    ids: list[int] = []
    for _, text in documents("heldout"):
        ids += encode(tokenizer, text)
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def heldout_batch(loaded: LoadedModel, length: int, samples: int, seed: int) -> Int[Tensor, "samples length"]:
    """[samples, length] windows of held-out text from random places, behind what the tokenizer puts first."""
    stream = heldout_tokens(loaded)
    head = list(first_token(loaded.tokenizer, loaded.model.config).ids)
    body = length - len(head)
    if len(stream) <= body:
        raise FieldError("length", f"less than the {len(stream)} tokens that the held-out text has", length)
    # One start in each of `samples` equal parts of the stream: random, and overlapping as little as they can.
    rng = np.random.default_rng((seed, length))
    starts = ((np.arange(samples) + rng.random(samples)) / samples * (len(stream) - body)).astype(int)
    return torch.stack([torch.cat([torch.tensor(head, dtype=torch.long), stream[s : s + body]]) for s in starts])
