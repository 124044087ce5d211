"""Under vLLM a scheme generates what it generates here: greedy tokens alike, log-probabilities to 1e-4.

Needs vLLM, which has an environment of its own: `make vllm`. Every case is an engine in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from probe.models.load import LoadedModel, load_model
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make vllm")

WINDOW, TOKENS = 128, 12
LENGTHS = (40, 333, 150, 260, 128)
"""Of the prompts, within the window and past it, served at once."""
ENGINE = {"max_model_len": 1024, "max_num_batched_tokens": 97, "max_num_seqs": 8, "enable_prefix_caching": False}
SCHEMES = (
    "origin", "pi", "ntk", "dynamic-ntk", "yarn", "rerope(N=40)", "leaky-rerope", "stair(N=20,E=7)", "self-extend",
    "dual-chunk", "streaming-llm", "lm-infinite", "lm-infinite+bottom", "star", "rerope(N=40)+logn", "mesa",
    "mesa+logn", "mesa(last=paper)", "mesa(last=rerope)+logn",
)  # fmt: skip


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load_model("smollm2", dtype="float32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Random weights: grouped queries, norms on queries and keys, heads wider than their share."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=WINDOW, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load_model(str(folder), dtype="float32")


def prompts(loaded: LoadedModel, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    rng = torch.Generator().manual_seed(1)
    top = min(300, loaded.model.config.vocab_size)
    return [torch.randint(3, top, (length,), generator=rng).tolist() for length in lengths]


def served(loaded: LoadedModel, scheme: str, tmp_path: Path, asked: list[list[int]], **more: Any) -> list:
    """What vLLM generates, in a process of its own."""
    case = {
        "model": str(loaded.source), "scheme": scheme, "window": WINDOW, "prompts": asked,
        "tokens": more.get("tokens", TOKENS),
        "engine": ENGINE | more.get("engine", {}), "sampling": more.get("sampling", {}),
    }  # fmt: skip
    told, out = tmp_path / "case.json", tmp_path / "out.json"
    told.write_text(json.dumps(case))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "vllm_case.py"), str(told), str(out)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    told = json.loads(out.read_text())
    assert bool(told["preemptions"]) == more.get("preempted", False)
    return told["answers"]


def generated(loaded: LoadedModel, scheme: str, prompt: list[int], new: int) -> tuple[list[int], list[float]]:
    """What our own `generate` gives: tokens, and their log-probabilities."""
    ids = torch.tensor([prompt])
    with apply_scheme(loaded.model, parse_scheme(scheme, WINDOW)):
        made = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, eos_token_id=None,
            pad_token_id=0, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    tokens = made.sequences[0, len(prompt) :].tolist()
    steps = zip(tokens, made.logits, strict=True)
    return tokens, [float(torch.log_softmax(logits[0].double(), -1)[token]) for token, logits in steps]


def same(loaded: LoadedModel, scheme: str, asked: list[list[int]], answers: list, new: int = TOKENS) -> None:
    for prompt, continuations in zip(asked, answers, strict=True):
        tokens, values = generated(loaded, scheme, prompt, new)
        for got, scores in continuations:
            assert got == tokens, (scheme, len(prompt))
            assert scores == pytest.approx(values, abs=1e-4), (scheme, len(prompt))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_real_model_of_mixed_lengths(smollm2: LoadedModel, tmp_path: Path, scheme: str) -> None:
    """Five requests at once, prefilled in pieces of at most 97 tokens."""
    asked = prompts(smollm2)
    same(smollm2, scheme, asked, served(smollm2, scheme, tmp_path, asked))


@pytest.mark.parametrize("scheme", ["origin", "stair(N=20,E=7)+logn", "mesa"])
def test_grouped_queries_and_norms(tiny: LoadedModel, tmp_path: Path, scheme: str) -> None:
    asked = prompts(tiny)
    same(tiny, scheme, asked, served(tiny, scheme, tmp_path, asked))


@pytest.mark.parametrize("scheme", ["rerope(N=40)", "mesa+logn"])
def test_requests_that_are_put_off_and_taken_up_again(tiny: LoadedModel, tmp_path: Path, scheme: str) -> None:
    """Pages for two of the requests at a time: the others are preempted, and computed anew."""
    asked = prompts(tiny, (250, 240, 230, 333))
    engine = {
        "num_gpu_blocks_override": 28, "block_size": 32, "max_model_len": 512, "max_num_batched_tokens": 1024
    }  # fmt: skip
    answers = served(tiny, scheme, tmp_path, asked, engine=engine, preempted=True, tokens=48)
    same(tiny, scheme, asked, answers, 48)


def test_parallel_samples_share_a_prompt(tiny: LoadedModel, tmp_path: Path) -> None:
    """Drawn at random, so it is their log-probabilities that are compared: with one pass over prompt and sample."""
    asked = prompts(tiny, (200, 150))
    drawn = {"n": 3, "temperature": 1.0}
    for prompt, samples in zip(asked, served(tiny, "self-extend", tmp_path, asked, sampling=drawn), strict=True):
        assert len({tuple(tokens) for tokens, _ in samples}) == 3
        for tokens, scores in samples:
            with torch.no_grad(), apply_scheme(tiny.model, parse_scheme("self-extend", WINDOW)):
                logits = tiny.model(torch.tensor([prompt + tokens[:-1]]), logits_to_keep=len(tokens)).logits[0]
            found = torch.log_softmax(logits.double(), -1)[torch.arange(len(tokens)), torch.tensor(tokens)]
            assert scores == pytest.approx(found.tolist(), abs=1e-4)


def test_prompts_that_begin_alike_share_pages(tiny: LoadedModel, tmp_path: Path) -> None:
    """Prefix caching under a scheme whose keys do not depend on the prompt's length."""
    (whole,) = prompts(tiny, (300,))
    asked = [whole, [*whole[:256], 7, 8, 9], [*whole[:192], 5], whole[:290]]
    answers = served(tiny, "rerope(N=40)", tmp_path, asked, engine={"enable_prefix_caching": True, "max_num_seqs": 1})
    same(tiny, "rerope(N=40)", asked, answers)


def test_without_a_scheme_the_plugin_changes_nothing(tiny: LoadedModel, tmp_path: Path) -> None:
    """Inside the window: past it vLLM's own rotary has no angles, and reads what lies behind its table."""
    asked = prompts(tiny, (40, 100, 17))
    same(tiny, "origin", asked, served(tiny, "", tmp_path, asked))


@pytest.mark.parametrize(
    ("scheme", "engine", "says"),
    [
        ("mesa", {"enable_prefix_caching": True}, "start with --no-enable-prefix-caching"),
        ("magic", {}, "unknown scheme 'magic'"),
        ("rerope", {"kv_cache_dtype": "fp8"}, "kv_cache_dtype: expected auto under a scheme"),
    ],
)
def test_what_would_be_wrong_is_refused_by_its_reason(
    tiny: LoadedModel, tmp_path: Path, scheme: str, engine: dict[str, Any], says: str
) -> None:
    with pytest.raises(AssertionError, match=says.replace("-", r"\-")):
        served(tiny, scheme, tmp_path, prompts(tiny, (40,)), engine=engine)
