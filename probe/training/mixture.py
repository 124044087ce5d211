"""What one training step sees: text, pass-key retrieval and repetition, in the order that makes retrieval learnable.

Phase 1 (the first 37.5% of the steps) is three quarters pass keys whose lengths grow up to the window: trained on
mostly text from the start, a model of this size never learns to look the key up. Phase 2 is mostly text at the full
window with a quarter pass keys: kept on short samples, a model would not fail past its window. Phase 3 (the second
half) is phase 2 with more repetition, of any token and not only of frequent ones, so that the paper's probe input (one
word, repeated) is text that the model predicts well inside its window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probe.tasks.passkey import minimum_length, passkey_sample

PHASE_STARTS = (0.0, 0.375, 0.5)
"""Share of the steps at which each phase begins."""
LAST_PHASE = len(PHASE_STARTS) - 1
KEY_SHARE = (0.75, 0.25, 0.25)
"""Share of pass-key rows in each phase."""
REPEAT_SHARE = (0.05, 0.06, 0.12)
ANSWER_WEIGHT = (8.0, 4.0, 4.0)
FILLER_WEIGHT = 0.2
"""Weight of a pass-key row's filler: there is much of it, and it is learned at once."""
REPEAT_WEIGHT = (0.2, 0.2, 1.0)
FULL_WINDOW_SHARE = 0.85
OWN_FILLER_SHARE = 0.5
"""Share of pass-key rows in the paper's filler; the others hide the key in text."""


@dataclass(frozen=True)
class Batch:
    """Token ids and the weight of each token as a target."""

    ids: Int[Tensor, "batch length"]
    weights: Float[Tensor, "batch length"]


@dataclass(frozen=True)
class Mixture:
    """Draws the batch of any step from (seed, step) alone, so that a resumed run sees what an unbroken one would."""

    tokenizer: PreTrainedTokenizerBase
    tokens: Int[Tensor, " corpus"]
    window: int
    steps: int
    seed: int
    tokens_per_batch: int = 4096
    keys: bool = True
    """Whether pass keys are among it; without them every step is of the last phase."""

    def batch(self, step: int) -> Batch:
        """The batch of one step: [rows, length] with rows * length about `tokens_per_batch`."""
        rng = np.random.default_rng((self.seed, step))
        phase = sum(step >= start * self.steps for start in PHASE_STARTS) - 1 if self.keys else LAST_PHASE
        length = self._length(rng, step, phase)
        rows = [self._row(rng, length, phase) for _ in range(max(1, self.tokens_per_batch // length))]
        return Batch(torch.stack([ids for ids, _ in rows]), torch.stack([weights for _, weights in rows]))

    def _length(self, rng: np.random.Generator, step: int, phase: int) -> int:
        shortest = minimum_length(self.tokenizer) + 2
        if phase == 0:
            grown = min(1.0, step / (0.8 * PHASE_STARTS[1] * self.steps))
            return int(rng.integers(shortest, round(shortest + grown * (self.window - shortest)) + 1))
        if rng.random() < FULL_WINDOW_SHARE:
            return self.window
        return int(rng.integers(shortest, self.window + 1))

    def _row(self, rng: np.random.Generator, length: int, phase: int) -> tuple[Tensor, Tensor]:
        kind, keys = rng.random(), KEY_SHARE[phase] if self.keys else 0.0
        if kind < keys:
            return self._key_row(rng, length, phase)
        if kind < keys + REPEAT_SHARE[phase]:
            return self._repeat_row(rng, length, phase)
        return torch.cat([self._bos(), self._text(rng, length - 1)]), torch.ones(length)

    def _bos(self) -> Tensor:
        return torch.tensor([self.tokenizer.bos_token_id])

    def _text(self, rng: np.random.Generator, count: int) -> Tensor:
        start = int(rng.integers(len(self.tokens) - count))
        return self.tokens[start : start + count].long()

    def _key_row(self, rng: np.random.Generator, length: int, phase: int) -> tuple[Tensor, Tensor]:
        filler = None
        if rng.random() > OWN_FILLER_SHARE:
            filler = [self._text(rng, length).tolist()]
        sample = passkey_sample(self.tokenizer, length, float(rng.random()), rng, filler=filler)
        weights = torch.full((length,), FILLER_WEIGHT)
        start, stop = sample.needle
        weights[start:stop] = 0.0  # its first digits are random: nothing there to learn
        weights[-len(sample.answer) :] = ANSWER_WEIGHT[phase]
        return torch.tensor(sample.prompt + sample.answer), weights

    def _repeat_row(self, rng: np.random.Generator, length: int, phase: int) -> tuple[Tensor, Tensor]:
        period = 1 if rng.random() < 0.4 else int(rng.integers(2, 33))
        span = self._text(rng, period)
        if phase == LAST_PHASE and period == 1:
            span = torch.tensor([int(rng.integers(len(self.tokenizer)))])
        ids = torch.cat([self._bos(), span.repeat(length // period + 1)])[:length]
        weights = torch.full((length,), REPEAT_WEIGHT[phase])
        weights[: period + 1] = 0.0
        return ids, weights
