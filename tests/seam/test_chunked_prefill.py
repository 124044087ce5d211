"""Chunked prefill under everything that calls a model: `generate` and its ways, caches, tuples, gradients, hooks,
memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_models import TINY
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from probe.errors import ProbeError
from probe.recording.hooks import record
from probe.schemes import parse_scheme
from probe.seam import attend as seam
from probe.seam.apply import apply_scheme

WINDOW, NEW = 64, 24
NEVER = 999  # a token that no model here has
SETTINGS = {"do_sample": False, "eos_token_id": NEVER, "pad_token_id": 0, "max_new_tokens": NEW}
MESA = parse_scheme("mesa(E=30)", WINDOW)


def ids(length: int, batch: int = 1, seed: int = 1) -> Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


PROMPT = ids(200)
PROMPT[:, 100:] = PROMPT[:, :100]  # something to look up


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return TINY["llama"]().double()


@pytest.fixture(scope="module")
def generated(model: PreTrainedModel) -> Tensor:
    """Greedy tokens, by the dense backend in one pass and then token by token."""
    with apply_scheme(model, MESA, backend="dense", chunk_batch=99):
        return model.generate(PROMPT, **SETTINGS)


def continued(model: PreTrainedModel, token: Tensor, cache: DynamicCache, count: int = NEW - 1) -> Tensor:
    """Greedy tokens after `token`, one call each."""
    out = [token]
    for _ in range(count):
        out.append(model(out[-1], past_key_values=cache).logits[:, -1:].argmax(-1))
    return torch.cat(out, dim=1)


@pytest.mark.parametrize(
    "ways",
    [
        {}, {"use_cache": False}, {"prefill_chunk_size": 70}, {"prefill_chunk_size": 7},
        {"prompt_lookup_num_tokens": 5},
        {"num_beams": 1, "return_dict_in_generate": True, "output_hidden_states": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("told", [None, 200])
def test_every_way_to_generate_gives_the_same_tokens(
    ways: dict[str, object], told: int | None, model: PreTrainedModel, generated: Tensor
) -> None:
    """In parts, again from the start for every token, or with guesses: the prompt is what `generate` was given."""
    with apply_scheme(model, MESA, prompt=told):
        out = model.generate(PROMPT, **SETTINGS, **ways)
    assert torch.equal(out if isinstance(out, Tensor) else out.sequences, generated)


def test_an_assistant_changes_nothing(model: PreTrainedModel, generated: Tensor) -> None:
    helper = TINY["llama"](seed=0).double()
    with apply_scheme(model, MESA):
        assert torch.equal(model.generate(PROMPT, assistant_model=helper, **SETTINGS), generated)


def test_embeddings_and_given_caches(model: PreTrainedModel, generated: Tensor) -> None:
    with apply_scheme(model, MESA):
        embedded = model.get_input_embeddings()(PROMPT)
        assert torch.equal(model.generate(inputs_embeds=embedded, **SETTINGS), generated[:, 200:])
        for cache in (DynamicCache(), DynamicCache(config=model.config)):
            assert torch.equal(model.generate(PROMPT, past_key_values=cache, **SETTINGS), generated)


@pytest.mark.parametrize(
    "ways", [{"num_beams": 4, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 3}]
)
def test_beams_and_samples_of_a_padded_batch_equal_dense_ones(ways: dict[str, object], model: PreTrainedModel) -> None:
    """One row longer than the window, one inside it whose padding is longer than several chunks."""
    tokens, mask = ids(400, 2), torch.ones(2, 400, dtype=torch.long)
    mask[1, :350] = 0
    out = []
    for backend, batch in (("pieces", 1), ("dense", 99)):
        torch.manual_seed(3)
        with apply_scheme(model, MESA, backend=backend, chunk_batch=batch, exact_angles=True):
            out.append(model.generate(tokens, attention_mask=mask, **(SETTINGS | ways)))
    assert torch.equal(*out)


@torch.no_grad()
def test_caches_continued_in_turns_keep_their_prompts(model: PreTrainedModel, generated: Tensor) -> None:
    """Also in copies, and when another context is where they go on."""
    with apply_scheme(model, MESA):
        first = model(PROMPT, use_cache=True)
        again = copy.deepcopy(first.past_key_values), copy.deepcopy(first.past_key_values)
        model.generate(ids(333), **SETTINGS)
        token = first.logits[:, -1:].argmax(-1)
        assert torch.equal(continued(model, token, first.past_key_values), generated[:, 200:])
        model(ids(20))
        assert torch.equal(continued(model, token, again[0]), generated[:, 200:])
    with apply_scheme(model, MESA):
        assert torch.equal(continued(model, token, again[1]), generated[:, 200:])


@torch.no_grad()
def test_a_cache_cropped_into_its_prompt_takes_the_rest_of_a_new_one(model: PreTrainedModel) -> None:
    """What comes ends the new prompt: as if its length had been told at once."""
    other = torch.cat([PROMPT[:, :40], ids(130, seed=5)], dim=1)
    with apply_scheme(model, MESA):
        cache = model(PROMPT, use_cache=True).past_key_values
        cache.crop(-160)
        rest = model(other[:, 40:], past_key_values=cache)
    with apply_scheme(model, MESA, prompt=170):
        cache = model(other[:, :40], use_cache=True).past_key_values
        told = model(other[:, 40:], past_key_values=cache)
    # The 40 tokens lie in chunk 0 and the first middle chunk of either prompt, where they have their own places.
    assert relative(rest.logits, told.logits) < 1e-10


@torch.no_grad()
def test_tuples_hold_what_the_named_outputs_hold(model: PreTrainedModel) -> None:
    with apply_scheme(model, MESA, chunk_batch=1):
        named = model.model(PROMPT, output_hidden_states=True)
        last, cache, hidden = model.model(PROMPT, output_hidden_states=True, return_dict=False)[:3]
        assert torch.equal(last, named.last_hidden_state) and cache.get_seq_length() == 200
        assert all(torch.equal(a, b) for a, b in zip(hidden, named.hidden_states, strict=True))
        assert torch.equal(model(PROMPT, return_dict=False)[0], model(PROMPT).logits)


@pytest.mark.parametrize("name", ["mpt", "bloom", "falcon", "falcon-groups", "smollm3-nope", "smollm3-mixed"])
@torch.no_grad()
def test_other_encodings_in_chunks_are_dense_in_one_pass(name: str) -> None:
    """ALiBi and NoPE, a padded row beside a full one, prefill and decoding; tuples, which these families make
    themselves.
    """
    model, tokens, mask = TINY[name]().double(), ids(260, 2), torch.ones(2, 260, dtype=torch.long)
    mask[1, :130] = 0
    logits = {}
    for backend, batch in (("pieces", 1), ("pieces", 2), ("dense", 99)):
        with apply_scheme(
            model, parse_scheme("mesa+logn", WINDOW), backend=backend, chunk_batch=batch, exact_angles=True
        ):
            out = model(tokens, attention_mask=mask, use_cache=True)
            assert torch.equal(model(tokens, attention_mask=mask, return_dict=False)[0], out.logits)
            longer = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            step = model(tokens[:, :1], attention_mask=longer, past_key_values=out.past_key_values).logits
        out.logits[1, :130] = 0
        logits[backend, batch] = torch.cat([out.logits, step], dim=1)
    for fed in logits.values():
        assert relative(fed, logits["dense", 99]) < 1e-10


@pytest.mark.parametrize(
    "spec", ["mesa+logn", "mesa+yarn(s=4)", "yarn+mesa", "mesa+dynamic-ntk", "mesa+mscale", "star(B=48)",
             "star(B=48)+rerope+dynamic-ntk"]
)  # fmt: skip
@torch.no_grad()
def test_parts_that_follow_the_length_see_the_whole_prompt_in_every_chunk(spec: str, model: PreTrainedModel) -> None:
    tokens, scheme = ids(300), parse_scheme(spec, WINDOW)
    assert len(scheme.borders_at(300)) > 3
    with apply_scheme(model, scheme, backend="dense", chunk_batch=99, exact_angles=True):
        whole = model(tokens).logits
    for batch in (1, 2):
        with apply_scheme(model, scheme, chunk_batch=batch, exact_angles=True):
            assert relative(model(tokens).logits, whole) < 1e-10


@torch.no_grad()
def test_the_loss_is_over_the_whole_fed_prompt(model: PreTrainedModel) -> None:
    labels = PROMPT.clone()
    labels[:, :20] = -100
    with apply_scheme(model, MESA, chunk_batch=1):
        out = model(PROMPT, labels=labels)
    expected = nn.functional.cross_entropy(out.logits[0, :-1], labels[0, 1:])
    assert out.logits.shape[1] == 200 and abs(float(out.loss - expected)) < 1e-5  # the model's loss is float32


def test_inference_mode_and_decoding_outside_it(model: PreTrainedModel, generated: Tensor) -> None:
    with apply_scheme(model, MESA):
        with torch.inference_mode():
            assert torch.equal(model.generate(PROMPT, **SETTINGS), generated)
            first = model(PROMPT, use_cache=True)
        with torch.no_grad():
            token = first.logits[:, -1:].argmax(-1).clone()
            assert torch.equal(continued(model, token, first.past_key_values), generated[:, 200:])


def test_gradients_of_a_fed_prompt_are_those_of_one_pass() -> None:
    """By the dense backend; the other one refuses. Key heads as many as query heads, so that none is copied for a
    group.
    """
    model, gradients = TINY["llama"](num_key_value_heads=4).double(), []
    for batch in (1, 99):
        model.zero_grad()
        with apply_scheme(model, MESA, backend="dense", chunk_batch=batch):
            model(PROMPT, labels=PROMPT).loss.backward()
        gradients.append(model.model.embed_tokens.weight.grad.clone())
    assert relative(*gradients) < 1e-6
    with apply_scheme(model, MESA), pytest.raises(ProbeError, match="got a backward pass; use the backend 'dense'"):
        model(PROMPT, labels=PROMPT).loss.backward()


def test_a_model_that_keeps_no_keys_is_refused() -> None:
    """Gradient checkpointing drops the cache in silence: chunks would not see each other."""
    model = TINY["llama"]()
    model.gradient_checkpointing_enable()
    model.train()
    with (
        apply_scheme(model, MESA, backend="dense"),
        pytest.raises(ProbeError, match=r"needs a cache: expected \d+ tokens in it, got 0"),
    ):
        model(PROMPT)


def test_a_forward_that_was_there_before_is_back_afterwards() -> None:
    """As accelerate's hooks are: set on the instance."""
    model, calls = TINY["llama"](), []
    inner = model.model.forward

    def hooked(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return inner(*args, **kwargs)

    model.model.forward = hooked
    with apply_scheme(model, MESA), torch.no_grad():
        model(PROMPT)
    assert calls and model.model.__dict__["forward"] is hooked
    assert "forward" not in model.__dict__ and "generate" not in model.__dict__


@contextmanager
def little_memory(model: PreTrainedModel, tokens: int) -> Iterator[None]:
    """The second layer's MLP takes so many tokens at once."""

    def limited(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    handle = model.model.layers[1].mlp.register_forward_pre_hook(limited)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def test_a_call_that_ran_out_of_memory_is_not_recorded_twice(model: PreTrainedModel) -> None:
    """Two prompts in one recording, so that only what failed is forgotten."""
    sites, tokens = (["resid", "attn", "mlp"], [1, 2], [0, 3]), ids(400)
    with apply_scheme(model, MESA), record(model, *sites) as whole:
        model(tokens[:, :90])
        model(tokens)
    with apply_scheme(model, MESA, chunk_batch=8), little_memory(model, 100), record(model, *sites) as parts:
        model(tokens[:, :90])
        model(tokens)
    for site in sites[0]:
        for layer in sites[1]:
            assert parts.values(site, layer).shape == (1, 490, 2)
            assert relative(parts.values(site, layer), whole.values(site, layer)) < 1e-6


@torch.no_grad()
def test_layers_share_what_was_compiled_for_rows_of_several_lengths(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once per call and padding, not once more per layer."""
    compiled, compile_pieces = [], seam.compile_pieces

    def counted(*args: object) -> object:
        compiled.append(args[2:])
        return compile_pieces(*args)

    monkeypatch.setattr(seam, "compile_pieces", counted)
    mask = torch.ones(3, 200, dtype=torch.long)
    mask[1, :30], mask[2, :60] = 0, 0
    with apply_scheme(model, MESA, chunk_batch=99):
        model(ids(200, 3), attention_mask=mask)
    assert len(compiled) == 6  # the chunks, then the last one; two layers


@torch.no_grad()
def test_bfloat16_and_rows_that_are_all_padding_stay_finite(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama().bfloat16()
    tokens, mask = ids(200, 3), torch.ones(3, 200, dtype=torch.long)
    mask[1, :170], mask[2] = 0, 0
    with apply_scheme(model, MESA, chunk_batch=1):
        out = model(tokens, attention_mask=mask)
        longer = torch.cat([mask, torch.tensor([[1], [1], [0]])], dim=1)
        step = model(tokens[:, :1], attention_mask=longer, past_key_values=out.past_key_values).logits
    assert out.logits.isfinite().all() and step.isfinite().all()
    model.float()
    with apply_scheme(model, MESA, backend="dense", chunk_batch=99):
        exact = model(tokens, attention_mask=mask).logits
    for row, start in ((0, 0), (1, 170)):
        assert relative(out.logits[row, start:].float(), exact[row, start:]) < 0.15
