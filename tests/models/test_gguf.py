"""GGUF files: the weights are those of the `gguf` package's own dequantisation, and no header is believed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf_files import rounded, write
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import weavescope as ws
from probe.errors import ProbeError
from probe.models.embedded import MODELS
from probe.models.gguf_header import read_header
from probe.models.load import load_model

IDS = torch.randint(3, 97, (1, 150), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tiny(tiny_llama: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A tiny Llama whose rows are whole blocks of every quantised type but the K ones."""
    return lambda **fields: tiny_llama(
        **({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2} | fields)
    )


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_weights_are_what_the_gguf_package_dequantises(
    kind: str, tiny: Callable[..., nn.Module], tmp_path: Path
) -> None:
    loaded = load_model(str(write(tmp_path / "m.gguf", tiny(), kind)))
    expected = rounded(tiny(), kind)
    assert loaded.window == 64 and loaded.family.name == "llama" and loaded.layers == 3
    assert torch.equal(logits(loaded.model), logits(expected))
    assert kind == "F32" or not torch.equal(logits(expected), logits(tiny()))


def test_tied_embeddings_need_no_output_tensor(tiny: Callable[..., nn.Module], tmp_path: Path) -> None:
    tied = tiny(tie_word_embeddings=True)
    path = write(tmp_path / "m.gguf", tied, change=lambda arrays: arrays.pop("output.weight", None))
    assert torch.equal(logits(load_model(str(path)).model), logits(tied))


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_other_architectures(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        name, vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, head_dim=16, initializer_range=0.2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for key, value in model.state_dict().items():
        if "norm" in key or "bias" in key:
            value.add_(torch.randn(value.shape) * 0.1)
    loaded = load_model(str(write(tmp_path / "m.gguf", model)))
    assert loaded.family.name == name and torch.equal(logits(loaded.model), logits(model))
    with ws.wrap(loaded.model).under("rerope"):
        assert logits(loaded.model).isfinite().all()


ROTARY = {
    "linear": ({"factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 16},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
    ),
}


@pytest.mark.parametrize("kind", ROTARY)
def test_a_scaled_rotary_is_read(kind: str, tiny: Callable[..., nn.Module], tmp_path: Path) -> None:
    fields, keys = ROTARY[kind]
    stock = tiny(rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **fields})
    loaded = load_model(str(write(tmp_path / "m.gguf", stock, keys=keys)))
    assert torch.equal(logits(loaded.model), logits(stock))
    assert not torch.allclose(logits(stock), logits(tiny()), atol=1e-3)


def test_llama_3_s_factors_are_read_and_others_refused(tiny: Callable[..., nn.Module], tmp_path: Path) -> None:
    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    stock = tiny(rope_parameters=scaled)
    inv_freq = ROPE_INIT_FUNCTIONS["llama3"](stock.config, torch.device("cpu"))[0].double().numpy()
    factors = (500000.0 ** -(np.arange(0, 16, 2) / 16) / inv_freq).astype(np.float32)
    path = write(tmp_path / "m.gguf", stock, change=lambda arrays: arrays.update({"rope_freqs.weight": factors}))
    loaded = load_model(str(path))
    assert loaded.model.config.rope_parameters == scaled
    assert torch.allclose(logits(loaded.model), logits(stock), atol=1e-4)
    path = write(tmp_path / "n.gguf", stock, change=lambda arrays: arrays.update({"rope_freqs.weight": factors**2}))
    with pytest.raises(ProbeError, match="are not those of Llama 3"):
        load_model(str(path))


DAMAGED = {
    "an architecture": ({"architecture": "mamba"}, "architecture 'mamba' is not one that transformers dequantises"),
    "a layer too many": ({"keys": {"block_count": 4}}, "claims 4 layers and has tensors of 3"),
    "absurd width": ({"keys": {"feed_forward_length": 2**31}}, "feed_forward_length|intermediate_size"),
    "another width": ({"keys": {"feed_forward_length": 95}}, "not of the shapes that its metadata describes"),
    "no heads": ({"keys": {"attention.head_count": 0}}, "num_attention_heads: expected a number above 0"),
    "experts": ({"keys": {"expert_count": 8}}, "mixture of experts"),
    "odd rotary": ({"keys": {"rope.dimension_count": 8}}, "turns 8 of 16 dimensions"),
    "another scaling": (
        {"keys": {"rope.scaling.type": "su", "rope.scaling.factor": 2.0}}, "scaled by 'su', which no config",
    ),
    "soft-capped scores": ({"keys": {"attn_logit_softcapping": 50.0}}, "llama does not compute"),
    "a strange tensor": (
        {"change": lambda arrays: arrays.update({"blk.0.extra.weight": np.ones(4, np.float32)})},
        r"1 of its tensors are not those of transformers' llama \(blk.0.extra.weight\)",
    ),
    "no embeddings": ({"change": lambda arrays: arrays.pop("token_embd.weight")}, "has no token embeddings"),
    "a tensor missing": ({"change": lambda arrays: arrays.pop("blk.1.ffn_up.weight")}, "1 missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_not_a_model_that_fits_is_refused_with_its_reason(
    name: str, tiny: Callable[..., nn.Module], tmp_path: Path
) -> None:
    fields, reason = DAMAGED[name]
    path = write(tmp_path / "m.gguf", tiny(), **fields)
    with pytest.raises(ProbeError, match=reason) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def whole(tiny: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good file."""
    return write(tmp_path_factory.mktemp("gguf") / "m.gguf", tiny(), "Q8_0").read_bytes()


HEADERS = {
    "empty": (lambda data: b"", "expected a header of at least 24 bytes, got a file of 0"),
    "magic": (lambda data: b"GGML" + data[4:], "expected the magic"),
    "version": (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "expected version 2 or 3, got 1"),
    "big-endian": (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "written for big-endian machines"),
    "tensors": (lambda data: data[:8] + struct.pack("<Q", 2**60) + data[16:], "claims 1152921504606846976 tensors"),
    "pairs": (lambda data: data[:16] + struct.pack("<Q", 2**60) + data[24:], "claims 1152921504606846976 metadata"),
    "key": (lambda data: data[:24] + struct.pack("<Q", 2**62) + data[32:], "bytes of text"),
    "cut": (lambda data: data[:-64], "it is truncated"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_not_believed(name: str, whole: bytes, tmp_path: Path) -> None:
    change, reason = HEADERS[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(change(whole))
    with pytest.raises(ProbeError, match=reason):
        load_model(str(path))


@settings(max_examples=150)
@given(data=st.data())
def test_any_damage_is_an_error_or_a_header(data: st.DataObject, whole: bytes, tmp_path: Path) -> None:
    """Bytes changed and an end cut off, in the header above all: one line, never another exception, never gigabytes."""
    damaged = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, 1500), max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(damaged[:cut]))
    try:
        read_header(path)
    except ProbeError as error:
        assert "\n" not in str(error)


def test_the_tokenizer_is_the_one_that_was_written(tiny: Callable[..., nn.Module], tmp_path: Path) -> None:
    """The embedded models' byte-level BPE, in which digits stand alone, is llama.cpp's rule `smollm`."""
    own = AutoTokenizer.from_pretrained(MODELS["rope"].folder)
    path = write(tmp_path / "m.gguf", tiny(vocab_size=len(own)), tokenizer=own)
    read = load_model(str(path)).tokenizer
    assert read is not None
    for text in (
        "def f(x):\n    return x**2024  # naïve, 3.14",
        "  two  spaces\t\ttabs\n\n\nİstanbul 東京 🙂",
        "1234567890",
    ):
        ids = own(text, add_special_tokens=False)["input_ids"]
        assert read(text, add_special_tokens=False)["input_ids"] == ids and read.decode(ids) == text
    assert (read.bos_token_id, read.eos_token_id) == (own.bos_token_id, own.eos_token_id)


def test_without_a_tokenizer_it_runs_on_token_ids_and_says_why(
    tiny: Callable[..., nn.Module], tmp_path: Path, cli: Callable[..., object]
) -> None:
    path = write(tmp_path / "m.Q8_0.gguf", tiny(), "Q8_0")
    done = cli("run", "--model", str(path), "--input", "token:5", "--length", "130", "--out", str(tmp_path / "run"))
    assert done.returncode == 0 and "resid" in done.stdout
    done = cli("run", "--model", str(path), "--input", "heldout", "--length", "130")
    assert done.returncode == 2 and "has no tokenizer (a GGUF file without one)" in done.stderr
    own = AutoTokenizer.from_pretrained(MODELS["rope"].folder)
    other = write(tmp_path / "o.gguf", tiny(vocab_size=len(own)), tokenizer=own, pre="no-such-rule")
    assert "tokenizer.ggml.pre: expected one of gpt-2" in load_model(str(other)).without_tokenizer
    done = cli("run", "--model", str(tmp_path / "none.gguf"))
    assert done.returncode == 2 and "no such GGUF file" in done.stderr and "\n" not in done.stderr.strip()
