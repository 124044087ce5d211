"""Acceptance of an embedded model, on fresh samples: `probe accept rope`.

Measures what the model must do (find the pass key everywhere in its window, predict text equally well all over the
second half of the window) and what it must not (go on doing so past the window), and writes the numbers into the model
card.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probe.errors import FieldError
from probe.models.embedded import EmbeddedModel
from probe.models.load import LoadedModel, load_model
from probe.schemes import ORIGIN, make_scheme
from probe.tasks.heldout import heldout_batch
from probe.tasks.scoring import draw_passkeys, heldout_nll, passkey_hits

KEY_LENGTHS = (128, 256, 384, 512)
LEAST_ACCURACY = 0.95
LEAST_RISE = 0.3
"""Nats: by how much the likelihood must be worse at three to four windows than inside."""
WINDOWS_PAST = 4


def passkey_numbers(loaded: LoadedModel, samples: int, seed: int) -> list[dict[str, Any]]:
    """Exact-match accuracy at each length, over all depths and in each depth decile."""
    scheme, rows = make_scheme(ORIGIN, loaded.window), []
    for length in (*KEY_LENGTHS, 2 * loaded.window, 4 * loaded.window):
        hits = passkey_hits(loaded, scheme, draw_passkeys(loaded, length, samples, seed)).double()
        deciles = [round(float(part.mean()), 4) for part in hits.tensor_split(10)]
        rows.append({"length": length, "samples": samples, "accuracy": float(hits.mean()), "deciles": deciles})
    return rows


def _mean_and_error(values: Tensor) -> dict[str, float]:
    """Mean over samples with its standard error."""
    return {
        "mean": round(float(values.mean()), 4),
        "standard_error": round(float(values.std() / len(values) ** 0.5), 4),
    }


def slope_per_window(nll: Tensor, start: int, stop: int, window: int) -> Tensor:
    """Least-squares slope of each sample's NLL over positions start..stop-1, in nats per window."""
    x = torch.arange(start, stop, dtype=torch.float64)
    x = x - x.mean()
    return (nll[:, start:stop].double() * x).sum(-1) / (x * x).sum() * window


def nll_numbers(loaded: LoadedModel, samples: int, seed: int) -> dict[str, Any]:
    """NLL of held-out text by position: level and slope inside the window, rise past it, over independent samples."""
    window = loaded.window
    ids = heldout_batch(loaded, WINDOWS_PAST * window, samples, seed)
    nll = heldout_nll(loaded, make_scheme(ORIGIN, window), ids).double()
    inside = nll[:, window // 2 : window].mean(-1)
    spans = {
        f"{k}M to {k + 1}M": nll[:, k * window : (k + 1) * window].mean(-1) - inside for k in range(1, WINDOWS_PAST)
    }
    return {
        "samples": samples,
        "second_half": _mean_and_error(inside),
        "slope_per_window": _mean_and_error(slope_per_window(nll, window // 2, window, window)),
        "rise": {name: _mean_and_error(rise) for name, rise in spans.items()},
    }


def verdicts(keys: Sequence[dict[str, Any]], nll: dict[str, Any], must_fail: bool) -> dict[str, bool]:
    """What was asked for, each with whether it holds; `must_fail`: whether the model has to break past its window.

    There are no `keys` of a model that was not taught to find them.
    """
    inside = [row for row in keys if row["length"] in KEY_LENGTHS]
    slope = nll["slope_per_window"]
    found = {}
    if inside:
        found[f"pass key >= {LEAST_ACCURACY:.0%} at {', '.join(map(str, KEY_LENGTHS))}"] = all(
            r["accuracy"] >= LEAST_ACCURACY for r in inside
        )
        found[f"pass key >= {LEAST_ACCURACY:.0%} in every depth decile"] = all(
            min(r["deciles"]) >= LEAST_ACCURACY for r in inside
        )
    found["NLL flat in the second half of the window (slope within two standard errors of 0)"] = (
        abs(slope["mean"]) <= 2 * slope["standard_error"]
    )
    if must_fail:
        last = list(nll["rise"].values())[-1]
        found[f"NLL at {WINDOWS_PAST - 1}M to {WINDOWS_PAST}M is at least {LEAST_RISE} nats worse"] = (
            last["mean"] - 2 * last["standard_error"] >= LEAST_RISE
        )
    return found


def measure(row: EmbeddedModel, *, samples: int, windows: int, seed: int) -> dict[str, Any]:
    """All acceptance numbers of an embedded model.

    Args:
        row: the model.
        samples: pass keys per length.
        windows: held-out ones.
        seed: of both.

    Raises:
        ProbeError: it is not trained, or there are too few samples to say anything.
    """
    for name, count, least in (("samples", samples, 10), ("windows", windows, 2)):
        if count < least:
            raise FieldError(name, f"at least {least}", count)
    loaded = load_model(row.name, device="cpu", dtype="float32")
    keys = passkey_numbers(loaded, samples, seed) if row.keys else []
    nll = nll_numbers(loaded, windows, seed)
    return {
        "model": row.name,
        "seed": seed,
        "passkey": keys,
        "nll": nll,
        "holds": verdicts(keys, nll, row.name == "rope"),
    }


_KEY_TITLES = ("| pass key, tokens | exact | worst depth decile | samples |", "|---|---|---|---|")
_NO_KEYS = "It was not taught to find pass keys, and is not asked for them."


def card(row: EmbeddedModel, numbers: dict[str, Any], training: dict[str, Any]) -> str:
    """The model card as Markdown."""
    recipe, nll = training["recipe"], numbers["nll"]
    key_lines = [
        f"| {r['length']} | {r['accuracy']:.1%} | {min(r['deciles']):.0%} | {r['samples']} |"
        for r in numbers["passkey"]
    ]
    rises = [f"| {name} | {rise['mean']:+.3f} ± {rise['standard_error']:.3f} |" for name, rise in nll["rise"].items()]
    checks = [f"- [{'x' if held else ' '}] {name}" for name, held in numbers["holds"].items()]
    slope, level = nll["slope_per_window"], nll["second_half"]
    return "\n".join([
        "---", "license: apache-2.0", "library_name: transformers", "---", "",
        f"# weavescope `{row.name}`", "",
        f"{row.summary}. Positions: {row.positions}. Trained window M = {row.window} tokens, "
        f"{training['parameters']:,} parameters, float32{'' if row.keys else ' stored as float16'}, byte-level BPE of "
        "1024 tokens in which every digit is its own token.", "",
        "A small language model made to be *probed*: it is trained on windows of exactly M tokens at most, so that "
        "what happens past M is extrapolation and nothing else. It is not meant to write text.", "",
        "## Training", "",
        "Text: the Python standard library's sources and docstrings (the files held out by a hash of their path "
        f"excepted), {training['corpus_tokens']:,} tokens, mixed with "
        f"{'pass-key retrieval and repetition' if row.keys else 'repetition'}. "
        f"{recipe['steps']} steps of {recipe['tokens_per_batch']} tokens, seed {recipe['seed']}, Muon and AdamW at "
        f"{recipe['learning_rate']:g}, bfloat16 autocast, {training['threads']} CPU thread(s), "
        f"Python {training['python']}, torch {training['torch']}, "
        f"transformers {training['transformers']}. Make it again: `probe train {row.name}`.", "",
        "## Measured", "",
        f"By `probe accept {row.name} --seed {numbers['seed']}` on fresh samples, the model as trained.", "",
        *([*_KEY_TITLES, *key_lines, ""] if key_lines else [_NO_KEYS, ""]),
        f"Held-out text, {nll['samples']} windows of {WINDOWS_PAST}M tokens (± standard error over windows): NLL in "
        f"the second half of the window {level['mean']:.3f} ± {level['standard_error']:.3f} nats, its slope there "
        f"{slope['mean']:+.3f} ± {slope['standard_error']:.3f} nats per window.", "",
        "| positions | NLL against the second half of the window (nats) |", "|---|---|", *rises, "",
        *checks, "",
    ])  # fmt: skip


def write_card(row: EmbeddedModel, numbers: dict[str, Any]) -> None:
    """Write the numbers and the model card into the model's folder."""
    training = json.loads((row.folder / "training.json").read_text(encoding="utf-8"))
    (row.folder / "acceptance.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (row.folder / "README.md").write_text(card(row, numbers, training), encoding="utf-8")
