"""Weaving ALiBi on the key alone, one row of biases for all queries, against weaving it on t - i, on the trained ALiBi
model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from constructions.weave import Clamp, Weave
from probe.models.load import LoadedModel, load_model
from probe.schemes.scheme import Scheme
from probe.seam.apply import apply_scheme
from probe.tasks.scoring import draw_passkeys


@dataclass(frozen=True)
class KeyOnly(Weave):
    """min(end - i, N), whatever the query."""

    N: int
    end: int
    name: ClassVar[str] = "key-only"

    def __call__(self, t, i):
        return (self.end - i).clamp(max=self.N) + 0 * t


@torch.no_grad()
def found(loaded: LoadedModel, key_only: bool, length: int, samples: int) -> float:
    """Share of pass keys found under N = M/4."""
    right = 0
    for sample in draw_passkeys(loaded, length, samples, seed=1):
        ids, count = torch.tensor([sample.prompt + sample.answer]), len(sample.answer)
        weave = KeyOnly(128, ids.shape[1] - 1) if key_only else Clamp(128)
        with apply_scheme(loaded.model, Scheme("woven", loaded.window, weave=weave), backend="dense"):
            logits = loaded.model(ids, use_cache=False, logits_to_keep=count + 1).logits
        right += bool((logits[0, :-1].argmax(-1) == ids[0, -count:]).all())
    return right / samples


@pytest.mark.parametrize(("key_only", "least", "most"), [(False, 0.9, 1.0), (True, 0.0, 0.5)])
def test_a_key_only_weave_breaks_what_a_weave_per_query_keeps(key_only: bool, least: float, most: float) -> None:
    assert least <= found(load_model("alibi"), key_only, 512, 10) <= most
