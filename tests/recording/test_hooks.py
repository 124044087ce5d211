"""The recorder sees exactly what the model computes, keeps only what was asked for, and goes away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from probe.errors import ProbeError
from probe.recording.hooks import record
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def ids() -> torch.Tensor:
    return torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_resid_is_what_output_hidden_states_gives(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama()
    with record(model, ["resid"], [1, 2, 3], [5, 0, 47]) as recording:
        model(ids())
    stock = model(ids(), output_hidden_states=True).hidden_states
    for layer in (1, 2):
        assert torch.equal(recording.values("resid", layer), stock[layer][..., [5, 0, 47]])
    # hidden_states[-1] is after the final norm; the residual stream is before it
    assert not torch.equal(recording.values("resid", 3), stock[3][..., [5, 0, 47]])
    with record(model, ["resid"], [3], list(range(48))) as recording:
        model(ids())
    assert torch.equal(model.model.norm(recording.values("resid", 3)), stock[3])


@torch.no_grad()
def test_attn_and_mlp_add_up_to_the_residual_stream(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama().double()
    dims = list(range(48))
    with record(model, ["resid", "attn", "mlp"], [1, 2], dims) as recording:
        model(ids())
    before, after = recording.values("resid", 1), recording.values("resid", 2)
    total = before + recording.values("attn", 2) + recording.values("mlp", 2)
    assert torch.allclose(total, after, atol=1e-5)


@torch.no_grad()
def test_only_what_was_asked_for_is_kept(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama()
    with record(model, ["attn"], [2], [7]) as recording:
        model(ids())
    assert recording.values("attn", 2).shape == (2, 40, 1)
    with pytest.raises(ProbeError, match=r"resid\.2 was not recorded; recorded: attn\.2"):
        recording.values("resid", 2)


@torch.no_grad()
def test_several_calls_are_one_array_in_order_of_position(tiny_llama: Callable[..., nn.Module]) -> None:
    model, tokens = tiny_llama(), ids()
    with record(model, ["resid"], [2], [0, 1]) as whole:
        model(tokens)
    with record(model, ["resid"], [2], [0, 1]) as parts:
        cache = model(tokens[:, :15]).past_key_values
        model(tokens[:, 15:], past_key_values=cache)
    assert torch.allclose(parts.values("resid", 2), whole.values("resid", 2), atol=1e-5)


def test_hooks_are_gone_afterwards_also_on_an_exception(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama()
    with record(model, ["resid", "mlp"], [1, 2], [0]):
        assert hook_count(model) == 4
    assert hook_count(model) == 0
    with pytest.raises(RuntimeError), record(model, ["resid"], [1], [0]):
        raise RuntimeError
    assert hook_count(model) == 0


@pytest.mark.parametrize(
    ("site", "layer", "dim", "says"),
    [
        ("resid", 4, 0, "layers: expected 1 to 3 (layer 1 is the first), got 4"),
        ("resid", 0, 0, "got 0"),
        ("resid", 1, 48, "dims: expected 0 to 47, the hidden dimensions of site resid, got 48"),
        ("resid", 1, -1, "got -1"),
        ("head", 1, 0, "unknown site 'head'; known: resid, attn, mlp"),
    ],
)
def test_what_the_model_does_not_have_is_refused(
    tiny_llama: Callable[..., nn.Module], site: str, layer: int, dim: int, says: str
) -> None:
    model = tiny_llama()
    with pytest.raises(ProbeError) as caught, record(model, [site], [layer], [dim]):
        pass
    assert says in str(caught.value)
    assert hook_count(model) == 0


@torch.no_grad()
def test_a_recording_on_disk_holds_the_same(tiny_llama: Callable[..., nn.Module], tmp_path: Path) -> None:
    """In several calls, one of which fails in a deeper layer and is tried again in halves."""
    model, tokens = tiny_llama(), torch.randint(3, 97, (1, 300), generator=torch.Generator().manual_seed(0))
    deep, real, failed = model.model.layers[2].mlp, model.model.layers[2].mlp.forward, []

    def once(x: torch.Tensor) -> torch.Tensor:
        if not failed and x.shape[1] > 20:
            failed.append(x.shape[1])
            raise RuntimeError("out of memory")
        return real(x)

    found = {}
    for spill in (None, tmp_path):
        failed.clear()
        deep.forward = once
        with (
            record(model, ["resid", "attn", "entropy"], [1, 3], [0, 2], spill) as seen,
            apply_scheme(model, parse_scheme("mesa", 64), chunk_batch=2),
        ):
            model(tokens)
        assert failed
        found[spill] = {key: seen.values(*key) for key in (("resid", 1), ("resid", 3), ("attn", 1), ("entropy", 3))}
    for key, values in found[None].items():
        assert values.shape == (1, 300, 2) and torch.equal(found[tmp_path][key], values)
    assert (tmp_path / "resid.1").stat().st_size == 300 * 2 * 4
    with pytest.raises(ProbeError, match=r"attn\.2 was not recorded; recorded: .*resid\.1"):
        seen.values("attn", 2)
    with (
        record(model, ["resid"], [1], [0], tmp_path),
        pytest.raises(ProbeError, match="a recording on disk is of one sequence: expected a batch of 1, got 2"),
    ):
        model(tokens.expand(2, -1))
