"""Whole models under schemes on a pretended GPU: the results of the CPU, no waits in a layer, memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretend_cuda import Counts, Pretended, exact, held, moved, pretend_cuda
from tiny_models import TINY, relative, token_ids
from torch import Tensor, nn

from probe.bench.gpu import SHAPES
from probe.models.random import Shape, random_llama
from probe.recording.hooks import record
from probe.schemes import PRESETS, parse_scheme
from probe.seam.apply import apply_scheme

PROMPT, STEPS = 150, 5
OTHERS = ["mesa(F=20,L=30)", "mesa", "streaming-llm+bottom(L=20,N=5,E=4)", "rerope+logn", "star(B=40,L=30)", "nope"]
ON_BIAS = ["origin", "rerope(N=20)", "stair(N=8,E=10)", "mesa", "streaming-llm", "nope"]


def steps(model: nn.Module, ids: Tensor, spec: str, **options: Any) -> list[Tensor]:
    """Logits of a prefill and of each step of decoding, the tokens given."""
    given = {"attention_mask": options.pop("mask")} if "mask" in options else {}
    with torch.no_grad(), apply_scheme(model, parse_scheme(spec, 64), **options):
        after = model(ids[:, :PROMPT], use_cache=True, **{k: v[:, :PROMPT] for k, v in given.items()})
        logits = [after.logits]
        for at in range(PROMPT, ids.shape[1]):
            mine = {name: mask[:, : at + 1] for name, mask in given.items()}
            after = model(ids[:, at : at + 1], past_key_values=after.past_key_values, use_cache=True, **mine)
            logits.append(after.logits)
    return logits


def agree(made: nn.Module, spec: str, most: float, *, precise: bool = True, fused: bool = True, **options: Any) -> None:
    """The model gives on a pretended GPU what it gives on the CPU, in float64 by the fused kernels if `precise`."""
    model, ids = made.double() if precise else made, token_ids(2, PROMPT + STEPS)
    expected = steps(model, ids, spec, **options)
    with pretend_cuda() as counts, exact(torch.float64) if precise else contextlib.nullcontext():
        if "mask" in options:
            options["mask"] = options["mask"].to("cuda:0")
        got = steps(moved(model), ids.to("cuda:0"), spec, **options)
    assert bool(counts.calls) == fused
    assert max(relative(held(a), b) for a, b in zip(got, expected, strict=True)) < most


@pytest.mark.parametrize("spec", [*PRESETS, *OTHERS])
def test_grouped_queries_under_every_scheme(spec: str) -> None:
    agree(TINY["llama"](hidden_size=64), spec, 1e-5)


@pytest.mark.parametrize("spec", ON_BIAS)
@pytest.mark.parametrize("name", ["mpt", "bloom", "falcon-groups", "smollm3-nope", "smollm3-mixed"])
def test_other_positions(name: str, spec: str) -> None:
    sizes = {"bloom": {"hidden_size": 96}, "mpt": {"d_model": 80}}.get(name, {"hidden_size": 64})
    agree(TINY[name](**sizes), spec, 1e-4)


@pytest.mark.parametrize("spec", ["origin", "rerope(N=20)", "stair(N=8,E=10)", "mesa"])
def test_half_types_and_float32(spec: str) -> None:
    agree(TINY["llama"](hidden_size=64).bfloat16(), spec, 0.1, precise=False)
    agree(TINY["llama"](), spec, 1e-4, precise=False, fused=False)  # heads of 12 dimensions: no fused kernel takes them


@pytest.mark.parametrize("spec", ["rerope(N=20)", "mesa", "star(B=40,L=30)"])
def test_left_padding(spec: str) -> None:
    mask = torch.ones(2, PROMPT + STEPS, dtype=torch.long)
    mask[1, :37] = 0
    agree(TINY["llama"](hidden_size=64), spec, 1e-5, mask=mask)


@pytest.mark.parametrize("options", [{"chunk_batch": 1}, {"chunk_batch": 3}, {"backend": "dense"}])
def test_chunk_batches_and_the_reference(options: dict) -> None:
    agree(TINY["llama"](hidden_size=64), "mesa", 1e-5, fused="backend" not in options, **options)


def test_recording_and_the_last_logits_alone() -> None:
    model, ids = TINY["llama"](hidden_size=64).double(), token_ids(2, PROMPT)

    def run(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), apply_scheme(model, parse_scheme("mesa", 64)):
            with record(model, ["resid", "attn"], [1, 2], [0, 7]) as seen:
                logits = model(ids, logits_to_keep=1).logits
            return logits, seen.values("attn", 2)

    expected = run(model, ids)
    with pretend_cuda(), exact(torch.float64):
        logits, values = run(moved(model), ids.to("cuda:0"))
    assert logits.shape[1] == 1 and relative(held(logits), expected[0]) < 1e-5
    assert not isinstance(values, Pretended) and relative(values, expected[1]) < 1e-5


def test_generate() -> None:
    model, ids = TINY["llama"](hidden_size=64).double(), token_ids(2, PROMPT)
    options: dict = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with apply_scheme(model, parse_scheme("mesa", 64)):
        expected = model.generate(ids, **options)
    with pretend_cuda(), exact(torch.float64):
        gpu = moved(model)
        with apply_scheme(gpu, parse_scheme("mesa", 64)):
            got = gpu.generate(ids.to("cuda:0"), **options)
    assert torch.equal(held(got), expected)


@pytest.mark.parametrize("spec", ["rerope(N=20)", "mesa", "stair(N=8,E=10)"])
@pytest.mark.parametrize("padded", [False, True])
def test_layers_on_two_devices(spec: str, padded: bool) -> None:
    """As accelerate spreads a model: what a layer is given goes to its device first."""
    model, ids = TINY["llama"](hidden_size=64).double(), token_ids(2, PROMPT + STEPS)
    mask = torch.ones_like(ids)
    mask[1, : 37 * padded] = 0
    expected = steps(model, ids, spec, mask=mask)

    def bring(device: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            def move(x: Any) -> Any:
                return x.to(device) if isinstance(x, Tensor) else tuple(map(move, x)) if isinstance(x, tuple) else x

            return move(args), {name: move(value) for name, value in kwargs.items()}

        return hook

    with pretend_cuda(), exact(torch.float64):
        gpu = moved(model)
        gpu.model.layers[1].to("cuda:1").register_forward_pre_hook(bring("cuda:1"), with_kwargs=True)
        gpu.model.norm.register_forward_pre_hook(bring("cuda:0"), with_kwargs=True)
        got = steps(gpu, ids.to("cuda:0"), spec, mask=mask.to("cuda:0"))
    assert max(relative(held(a), b) for a, b in zip(got, expected, strict=True)) < 1e-5


def waits(spec: str, layers: int, name: str, mask: Tensor | None) -> tuple[list[str], list[str]]:
    """What the host waited for in a prefill, and in a step of decoding."""
    ids = token_ids(2, PROMPT + 1)
    sizes = {"n_layers": layers, "d_model": 80} if name == "mpt" else {"num_hidden_layers": layers, "hidden_size": 64}
    with pretend_cuda() as counts, torch.no_grad():
        model, ids = moved(TINY[name](**sizes).bfloat16()), ids.to("cuda:0")
        masks = {} if mask is None else {"attention_mask": mask.to("cuda:0")}
        with apply_scheme(model, parse_scheme(spec, 64)):
            counts.reset()
            after = model(ids[:, :PROMPT], use_cache=True, **{k: v[:, :PROMPT] for k, v in masks.items()})
            prefill = counts.waits
            counts.reset()
            model(ids[:, PROMPT:], past_key_values=after.past_key_values, use_cache=True, **masks)
            return prefill, counts.waits


@pytest.mark.parametrize("name", ["llama", "mpt", "mistral"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("spec", ["origin", "stair(N=8,E=10)", "mesa"])
def test_the_host_never_waits_inside_a_layer(spec: str, padded: bool, name: str) -> None:
    mask = torch.ones(2, PROMPT + 1, dtype=torch.long) if padded else None
    if mask is not None:
        mask[1, :37] = 0
    few, many = (waits(spec, layers, name, mask) for layers in (1, 3))
    assert few == many
    # transformers asks once per call whether a mask is all ones, and we where it is not.
    calls = 3 if spec == "mesa" else 1
    assert len(many[0]) <= 2 * calls * padded + (name == "mpt") and len(many[1]) <= 2 * padded, many


def on_paper(shape: Shape, spec: str, length: int, layers: int) -> tuple[Counts, int]:
    """Counts of a prefill and two steps of decoding that compute nothing, and the bytes of weights and cache."""
    shape = Shape(**{**vars(shape), "layers": layers})
    with pretend_cuda(meta=True) as counts, torch.no_grad():
        model = random_llama(shape, torch.device("cuda:0"), torch.bfloat16, 0)
        rotary = model.model.rotary_emb  # the one buffer whose values matter
        rotary.inv_freq = Pretended(type(rotary)(model.config).inv_freq, torch.device("cuda:0"), counts)
        ids = torch.zeros(1, length, dtype=torch.long, device="cuda:0")
        cache = 4 * layers * length * (shape.kv_heads or shape.heads) * (shape.width // shape.heads)
        weights = counts.live
        with apply_scheme(model, parse_scheme(spec, shape.window)):
            counts.reset()
            after = model(ids, use_cache=True, logits_to_keep=1)
            for _ in range(2):
                after = model(ids[:, :1], past_key_values=after.past_key_values, use_cache=True, logits_to_keep=1)
        return counts, weights + cache


def test_memory_and_launches_of_a_long_prefill_on_paper() -> None:
    counts, needed = on_paper(SHAPES["llama-3-8b"], "mesa", 32 * 1024, 1)
    assert counts.peak - needed < 3 << 29  # 1.5 GiB
    assert counts.launches < 3000 and len(counts.waits) <= 1
