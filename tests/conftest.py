"""What every test shares: one thread per process, checked array shapes, tiny real models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slowness
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Shapes in signatures are checked at every call while testing.
install_import_hook(
    [
        "probe.attention",
        "probe.seam.own_attention",
        "probe.seam.positions",
        "probe.schemes",
        "probe.thresholds",
        "probe.tasks",
        "probe.recording",
        "probe.signals",
        "constructions.transformer",
    ],
    "typecheck.checked",
)

from probe.tables import load_plugins, tables  # noqa: E402  # after the hook

torch.set_num_threads(1)
settings.register_profile(
    "weavescope", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("weavescope")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-times", action="store_true", help="measure which tests are slow: tests/slow.txt")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-times"):
        config.pluginmanager.register(slowness.Times())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slowness.mark(items)


@pytest.fixture(autouse=True)
def _tables_as_they_were() -> Iterator[None]:
    """Rows that a test registers are not there for others."""
    load_plugins()
    before = [(table, dict(table._rows)) for table in tables()]
    yield
    for table, rows in before:
        table._rows = rows


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., torch.nn.Module]:
    """Makes a random grouped-query Llama of window 64, vocabulary 97."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, **overrides: object) -> torch.nn.Module:
        torch.manual_seed(seed)
        fields = {
            "vocab_size": 97, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2,
        }  # fmt: skip
        return LlamaForCausalLM(LlamaConfig(**(fields | overrides))).eval()

    return make


@pytest.fixture(scope="session")
def tiny_folder(tiny_llama: Callable[..., torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama saved as a model folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real `probe` command in a process of its own."""

    def call(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "probe", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    return call


def read_json(path: Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text())
