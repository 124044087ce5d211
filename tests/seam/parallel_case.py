"""What each of several processes gets of shared prompts: torchrun tests/seam/parallel_case.py OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from probe.errors import ProbeError
from probe.models.load import load_model
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme
from probe.seam.parallel import Ranks, joined

SPECS = ("mesa", "mesa(F=40,L=100)+logn", "star", "rerope")
LENGTHS = (400, 1000, 2100)


def results(ranks: Ranks | None) -> dict[str, torch.Tensor]:
    """Last logits of a prompt, and what is written behind it, under every scheme; of padded rows, not shared, too."""
    torch.set_num_threads(1)
    loaded = load_model("rope", dtype="float64")
    found: dict[str, torch.Tensor] = {}
    for spec in SPECS:
        for length in LENGTHS:
            ids = torch.randint(3, 400, (1, length), generator=torch.Generator().manual_seed(length))
            with torch.no_grad(), apply_scheme(loaded.model, parse_scheme(spec, loaded.window), ranks=ranks):
                after = loaded.model(ids, use_cache=True, logits_to_keep=2)
                found[f"{spec} {length} logits"] = after.logits
                found[f"{spec} {length} keys"] = after.past_key_values.layers[3].keys.clone()
                mask = torch.ones_like(ids)
                made = loaded.model.generate(
                    ids, attention_mask=mask, do_sample=False, max_new_tokens=6, pad_token_id=0
                )
                found[f"{spec} {length} written"] = made
    rows = torch.randint(3, 400, (2, 1300), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(rows)
    mask[1, :200] = 0
    with torch.no_grad(), apply_scheme(loaded.model, parse_scheme("mesa", loaded.window), ranks=ranks):
        found["padded"] = loaded.model(rows, attention_mask=mask, use_cache=True, logits_to_keep=1).logits
        if ranks is not None:
            found["refused"] = torch.tensor(_refused(loaded.model, rows))  # no mask, so that it would be shared
    return found


def _refused(model: torch.nn.Module, rows: torch.Tensor) -> bool:
    try:
        model(rows, use_cache=True)
    except ProbeError as error:
        return "logits of the last chunk only" in str(error)
    return False


if __name__ == "__main__":
    with joined() as ranks:
        assert ranks is not None
        torch.save(results(ranks), Path(sys.argv[1]) / f"{ranks.rank}.pt")
