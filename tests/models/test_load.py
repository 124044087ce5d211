"""Checkpoints that do not load, and what is said of each: one line that names the cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY
from torch import Tensor

from probe.errors import ProbeError
from probe.models.load import load_model, wrap_model
from probe.recording.hooks import record
from probe.schemes import make_scheme
from probe.seam.apply import apply_scheme
from probe.tasks.inputs import make_input

Weights = dict[str, Tensor]


def checkpoint(folder: Path, name: str = "llama", change: Callable[[Weights], object] = len, **config: object) -> Path:
    """A tiny model in a folder, with its weights changed and then its config."""
    TINY[name]().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def said(folder: Path, **options: object) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(ProbeError) as caught:
        load_model(str(folder), **({"window": 64} | options))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def test_missing_weights_are_refused_by_name_and_count(tmp_path: Path) -> None:
    line = said(checkpoint(tmp_path, num_hidden_layers=4))
    assert "18 missing (model.layers.2.input_layernorm.weight, model.layers.2.mlp.down_proj.weight, " in line
    assert "config.json" in line and "not the model's" not in line
    head = said(checkpoint(tmp_path / "headless", change=lambda weights: weights.pop("lm_head.weight")))
    assert "1 missing (lm_head.weight)" in head


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mpt", "bloom", "falcon"])
def test_layers_that_the_config_leaves_out_are_refused(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, name)
    config = json.loads((folder / "config.json").read_text())
    layers = next(key for key in ("num_hidden_layers", "n_layers", "n_layer") if key in config)
    line = said(checkpoint(tmp_path, name, **{layers: 1}))
    assert "not the model's (" in line and ".1." in line and "missing" not in line


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    line = said(checkpoint(tmp_path, intermediate_size=80))
    assert "6 of another shape (model.layers.0.mlp.down_proj.weight is [48, 96], not [48, 80], " in line


def test_tied_weights_old_buffers_and_heads_of_other_tasks_do_not_matter(tmp_path: Path) -> None:
    def more(weights: Weights) -> None:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
        weights["score.weight"] = torch.ones(2, 48)

    def buffers(weights: Weights) -> None:
        weights["gpt_neox.layers.0.attention.masked_bias"] = torch.ones(1)

    load_model(str(checkpoint(tmp_path / "llama", change=more)))
    load_model(str(checkpoint(tmp_path / "gpt_neox", "gpt_neox", buffers)))
    tied = load_model(str(checkpoint(tmp_path / "tied", "gemma"))).model
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    assert torch.equal(tied.get_output_embeddings().weight, tied.get_input_embeddings().weight)


def test_a_broken_config_is_not_called_an_unknown_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "config.json").write_text('{"model_type": "llama",')
    line = said(folder)
    assert "expected a config.json that transformers can read (" in line and "hub" not in line


def test_a_broken_tokenizer_is_not_called_none(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    assert load_model(str(folder)).tokenizer is None
    (folder / "tokenizer.json").write_text('{"version":')
    loaded = load_model(str(folder))  # token ids are input enough
    with pytest.raises(
        ProbeError, match=r"input word:a: model .* has a tokenizer that does not load \(.*\); use token:ID"
    ):
        make_input(loaded, "word:a", 9, 1, 0)
    assert make_input(loaded, "token:3", 9, 1, 0).shape == (1, 9)


def test_more_tensors_of_a_module_are_let_be_and_a_layer_too_many_is_not(tmp_path: Path) -> None:
    file = checkpoint(tmp_path) / "model.safetensors"
    weights = load_file(file)
    before = load_model(str(tmp_path)).model.state_dict()
    extra = {"model.layers.0.self_attn.k_scale": torch.ones(1)}
    save_file(weights | extra, file, {"format": "pt"})
    after = load_model(str(tmp_path)).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    save_file(weights | {"model.layers.9.self_attn.q_proj.weight": torch.ones(1)}, file, {"format": "pt"})
    assert "1 not the model's (model.layers.9.self_attn.q_proj.weight)" in said(tmp_path)


def test_damaged_or_absent_weights_are_not_a_matter_of_pickle(tmp_path: Path) -> None:
    file = checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "expected whole safetensors files; get the checkpoint again" in said(tmp_path)
    file.unlink()
    for options in ({}, {"allow_pickle": True}):
        line = said(tmp_path, **options)
        assert "expected the weights beside config.json" in line and "pickle" not in line
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "need allow_pickle" in said(tmp_path)


class _Peft(torch.nn.Module):
    """What PEFT's wrapper is to whoever holds it: the base model one level down, and a method that gives it."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = base

    def get_base_model(self) -> torch.nn.Module:
        return self.base_model


def test_a_model_with_adapters_is_unwrapped() -> None:
    base, ids = TINY["llama"]().eval(), torch.arange(3, 60)[None]
    loaded = wrap_model(_Peft(base), window=64, name="adapted")
    assert loaded.model is base and loaded.layers == 2
    with torch.no_grad(), apply_scheme(_Peft(base), make_scheme("rerope", 64)):
        under = base(ids).logits
    with torch.no_grad(), apply_scheme(base, make_scheme("rerope", 64)):
        assert torch.equal(base(ids).logits, under)
    with record(_Peft(base), ["resid"], [1], [0]) as seen, torch.no_grad():
        base(ids)
    assert seen.values("resid", 1).shape == (1, 57, 1)


def test_a_folder_with_an_adapter_alone_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    line = said(tmp_path)
    assert "found an adapter alone; load its base model (owner/base)" in line and "merge_and_unload" in line
    (tmp_path / "adapter_config.json").write_text("not json")
    assert "which its adapter_config.json does not name" in said(tmp_path)


def test_packed_quantised_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ProbeError, match=r"its weights are quantised \(gptq\), which was not checked"):
        load_model(str(folder), window=64)
