"""The audit against transformers' own attention weights, and against a model whose attention is uniform."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from probe.commands.main import main
from probe.errors import ProbeError
from probe.models.load import LoadedModel, load_model
from probe.tasks.audit import audit


def kept(t: int, i: int, first: int, chunk: int) -> bool:
    return i < first or (i >= first and t >= first and (i - first) // chunk == (t - first) // chunk)


@torch.no_grad()
def test_it_is_the_mass_in_the_stock_models_own_weights(tiny_folder: Path, tmp_path: Path) -> None:
    loaded, first, chunk = load_model(str(tiny_folder)), 5, 11
    ids = torch.randint(3, 97, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    result = audit(loaded, chunks=[chunk], first=first, length=60, input=f"ids:{tmp_path / 'ids.json'}", samples=1)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").eval()
    weights = stock(torch.tensor([ids]), output_attentions=True).attentions
    for row in result.rows:
        mine = weights[row.layer - 1][0, row.head - 1]
        queries = range(first + chunk, 60)
        lost = [sum(float(mine[t, i]) for i in range(t + 1) if not kept(t, i, first, chunk)) for t in queries]
        uniform = [sum(not kept(t, i, first, chunk) for i in range(t + 1)) / (t + 1) for t in queries]
        early = [share for t, share in zip(queries, lost, strict=True) if (t - first) % chunk < chunk // 4]
        assert row.lost == pytest.approx(sum(lost) / len(lost), abs=1e-5)
        assert row.uniform == pytest.approx(sum(uniform) / len(uniform), abs=1e-9)
        assert row.lost_early == pytest.approx(sum(early) / len(early), abs=1e-5)
    assert len(result.rows) == 3 * 4


@torch.no_grad()
def test_a_uniform_attention_loses_what_the_control_says(tiny_folder: Path) -> None:
    loaded = load_model(str(tiny_folder))
    for layer in loaded.model.model.layers:
        layer.self_attn.q_proj.weight.zero_()
    result = audit(loaded, chunks=[7, 20], first=3, input="token:9", samples=1)
    assert set(result.rows.column("chunk")) == {7, 20}
    assert all(row.lost == pytest.approx(row.uniform, abs=1e-6) for row in result.rows)


@pytest.mark.parametrize(
    ("chunks", "first", "length", "message"),
    [
        ([20], 3, 65, "expected 2 to 64"),
        ([62], 3, 64, "chunks: expected 1 to 60"),
        ([0], 3, 64, "chunks: expected 1 to 60"),
        ([5], 63, 64, "first: expected 1 to 62"),
        ([5], 0, 64, "first: expected 1 to 62"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_folder: Path, chunks: list[int], first: int, length: int, message: str
) -> None:
    loaded: LoadedModel = load_model(str(tiny_folder))
    with pytest.raises(ProbeError, match=message):
        audit(loaded, chunks=chunks, first=first, length=length, input="token:9", samples=1)


def test_the_command_prints_a_row_per_chunk_layer_and_head(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "--model", str(tiny_folder), "--input", "token:9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["rows"]) == 3 * 3 * 4 and result["settings"]["first"] == 3
    assert main(["audit", "--model", str(tiny_folder), "--input", "token:9", "--chunk", "8"]) == 0
    assert "lost_early" in capsys.readouterr().out
    assert main(["audit", "--model", str(tiny_folder), "--input", "token:9", "--chunk", "64"]) == 2
