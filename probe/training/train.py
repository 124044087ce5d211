"""Train an embedded model: `probe train rope`.

Deterministic from its seed (the batches from (seed, step) alone; the arithmetic for one machine and thread count),
resumable from its last checkpoint, on CPU or GPU. The hidden matrices are trained with Muon, which reaches the same
loss in fewer steps than AdamW, the embeddings and norms with AdamW.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from probe.errors import FieldError, ProbeError
from probe.models.embedded import EmbeddedModel
from probe.models.load import pick_device
from probe.tasks.corpus import documents
from probe.training.mixture import Batch, Mixture
from probe.training.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Recipe:
    """Everything a training run depends on beside the model's row.

    Raises:
        FieldError: no steps.
    """

    seed: int = 0
    steps: int = 6000
    tokens_per_batch: int = 4096
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup: int = 150
    cooldown: float = 0.25
    """Share of the steps over which the learning rate falls linearly to zero at the end."""
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise FieldError("steps", "at least 1", self.steps)


def schedule(recipe: Recipe, step: int) -> float:
    """Learning-rate factor at a step: linear warm-up, flat, linear to zero."""
    left = (recipe.steps - step) / max(1.0, recipe.cooldown * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, left)


def encode_corpus(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The training split as one stream of ids, int16, a document end between files."""
    ids: list[int] = []
    for _, text in documents("train"):
        ids += tokenizer.encode(text, add_special_tokens=False)
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids, dtype=torch.int16)


def prepare_corpus(cache: Path) -> tuple[PreTrainedTokenizerBase, Tensor]:
    """Tokenizer and encoded corpus, made once and kept beside the checkpoints."""
    ids_file = cache / "corpus.npy"
    if not ids_file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer(text for _, text in documents("train"))
        tokenizer.save_pretrained(cache / "tokenizer")
        np.save(ids_file, encode_corpus(tokenizer).numpy())
    return AutoTokenizer.from_pretrained(cache / "tokenizer"), torch.from_numpy(np.load(ids_file))


def optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and not any(part in name for part in ("embed", "wte", "lm_head"))
        (matrices if hidden else rest).append(parameter)
    decay = recipe.weight_decay
    return [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def weighted_loss(logits: Float[Tensor, "batch length vocab"], batch: Batch) -> Float[Tensor, ""]:
    """Mean of the next-token losses under the batch's target weights, in nats."""
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _step(model: nn.Module, opts: list[torch.optim.Optimizer], batch: Batch, rate: float) -> float:
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = rate
    with torch.autocast(batch.ids.device.type, torch.bfloat16):
        logits = model(input_ids=batch.ids, use_cache=False).logits
    loss = weighted_loss(logits, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        opt.step()
        opt.zero_grad()
    return float(loss.detach())


def _save_checkpoint(
    path: Path, step: int, seconds: float, model: nn.Module, opts: list[torch.optim.Optimizer]
) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {"step": step, "seconds": seconds, "model": model.state_dict(), "opts": [opt.state_dict() for opt in opts]},
        part,
    )
    part.replace(path)


def _load_checkpoint(
    path: Path, model: nn.Module, opts: list[torch.optim.Optimizer], device: torch.device
) -> tuple[int, float]:
    """Restore a checkpoint if there is one: the steps done, and the seconds they took."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["opts"], strict=True):
        opt.load_state_dict(saved)
    return int(state["step"]), float(state["seconds"])


def train(row: EmbeddedModel, recipe: Recipe, work: Path, device: str = "auto") -> PreTrainedModel:
    """Train one row to the end, resuming from `work` if a checkpoint is there, and save its folder.

    Args:
        row: the model.
        recipe: how.
        work: folder of checkpoints and the encoded corpus; it is made.
        device: as `load_model` takes it.

    Raises:
        ProbeError: no such device, or the loss became NaN or infinite; the last checkpoint is kept.
    """
    where = pick_device(device)
    tokenizer, corpus = prepare_corpus(work / "corpus")
    torch.manual_seed(recipe.seed)
    config = row.config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(where).train()
    opts = optimizers(model, recipe)
    checkpoint = work / f"{row.name}.pt"
    start, spent = _load_checkpoint(checkpoint, model, opts, where)
    mixture = Mixture(tokenizer, corpus, row.window, recipe.steps, recipe.seed, recipe.tokens_per_batch, row.keys)
    began, smooth = time.monotonic() - spent, math.nan
    bar = tqdm(
        range(start, recipe.steps), initial=start, total=recipe.steps, desc=row.name, file=sys.stderr, mininterval=5
    )
    for step in bar:
        drawn = mixture.batch(step)
        batch = Batch(drawn.ids.to(where), drawn.weights.to(where))
        loss = _step(model, opts, batch, recipe.learning_rate * schedule(recipe, step))
        if not math.isfinite(loss):
            raise ProbeError(f"loss is {loss} at step {step}; {checkpoint} holds the last good state")
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        bar.set_postfix(loss=f"{smooth:.3f}", length=batch.ids.shape[1], refresh=False)
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            _save_checkpoint(checkpoint, step + 1, time.monotonic() - began, model, opts)
    _save_folder(row, recipe, model, tokenizer, corpus, seconds=time.monotonic() - began, resumed_at=start)
    return model


def _save_folder(
    row: EmbeddedModel, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Tensor,
    *, seconds: float, resumed_at: int,
) -> None:  # fmt: skip
    """Write the Hugging Face folder and `training.json`, the record of how it came to be."""
    tokenizer.model_max_length = row.window
    if row.keys:
        model.save_pretrained(row.folder)
    else:  # half the size; the config still says float32, which is what they are loaded as
        model.half().save_pretrained(row.folder)
        path = row.folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(row.folder)
    record = {
        "model": row.name, "recipe": asdict(recipe), "parameters": sum(p.numel() for p in model.parameters()),
        "corpus_tokens": len(corpus), "seconds": round(seconds), "resumed_at": resumed_at,
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    (row.folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def use_threads(count: int | None) -> None:
    """Set the CPU threads; None leaves torch's own choice.

    Raises:
        FieldError: fewer than one.
    """
    if count is None:
        return
    if count < 1:
        raise FieldError("threads", "at least 1", count)
    torch.set_num_threads(count)
