"""Negative log-likelihood per position, without ever holding the logits of the whole input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import FieldError, ProbeError, literal

HEAD_BLOCK = 512


def not_finite(scheme: str) -> ProbeError:
    """The error for a likelihood that is NaN or infinite under a scheme."""
    return FieldError(
        "dtype", hint=f"the likelihood under {literal(scheme)} is NaN or infinite; try float32, and check the weights"
    )


Seer = Callable[[Tensor, Tensor], None]
"""Told of some positions' logits [batch, positions, vocabulary] and the tokens that came [batch, positions]."""


def logits_of(model: PreTrainedModel, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
    """The logits that the model makes of its last hidden states, in its own dtype.

    What some families do to them behind the head is theirs too: Cohere scales, Granite divides, HyperCLOVA X multiplies
    by what Granite divides by, Gemma 2 caps.
    """
    logits: Tensor = model.get_output_embeddings()(hidden)
    config = model.config
    scale, divisor, cap = (
        getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")
    )
    if isinstance(scale, float | int):
        logits = logits * scale
    if divisor:
        logits = logits * divisor if config.model_type == "hyperclovax" else logits / divisor
    return logits if not cap else torch.tanh(logits / cap) * cap


@torch.no_grad()
def nll_per_position(
    model: PreTrainedModel, ids: Int[Tensor, "batch length"], see: Seer = lambda logits, targets: None
) -> Float[Tensor, "batch length"]:
    """NLL in nats, float32 on CPU; entry p scores token p given those before it, so entry 0 is NaN.

    The head runs on `HEAD_BLOCK` positions at a time: memory grows with the input, not with input times vocabulary.

    Args:
        model: with a vocabulary head; its scheme, if any, is applied.
        ids: on the model's device.
        see: told of every block of logits, in the order of positions.
    """
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    losses = torch.full(ids.shape, float("nan"))
    for start in range(0, ids.shape[1] - 1, HEAD_BLOCK):
        stop = min(start + HEAD_BLOCK, ids.shape[1] - 1)
        logits = logits_of(model, hidden[:, start:stop]).float()
        targets = ids[:, start + 1 : stop + 1].to(logits.device)
        block = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        losses[:, start + 1 : stop + 1] = block.cpu()
        see(logits, targets)
    return losses
