"""What a number type costs: beside a float64 reference that is written here, and over every family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import TINY, WINDOW, relative, token_ids

import weavescope as ws
from probe.commands.main import main
from probe.errors import ProbeError
from probe.models.load import LoadedModel, load_model, wrap_model
from probe.schemes import make_scheme, parse_scheme
from probe.schemes.cut_out import without_middle
from probe.seam.apply import apply_scheme
from probe.studies.precision import STOCK, Precision, PrecisionRow, cast

FAMILIES = Path(__file__).parents[2] / "docs" / "results" / "precision" / "families.json"
PAGE = Path(__file__).parents[2] / "docs" / "precision.md"
DTYPES = ("float32", "bfloat16", "float16")
EXPERTS = ("mixtral", "olmoe", "qwen3_moe", "gpt_oss")
"""A rounding that sends a token to another expert is no small one, whichever scheme it happens under."""
WORST = {"float32": 1e-6, "bfloat16": 0.02, "float16": 0.002}
"""Relative errors of the last layer's output that no scheme passes on any tiny random family without experts."""


@pytest.fixture(scope="module")
def rope() -> LoadedModel:
    return load_model("rope")


def test_origin_loses_what_the_stock_model_loses(rope: LoadedModel) -> None:
    """To the bit: it is the stock model."""
    work = Precision(rope, "origin,rerope", DTYPES, 700)
    assert list(work.run()) == [f"{one} in {dtype}" for dtype in DTYPES for one in (STOCK, "origin", "rerope")]
    assert work.total == len(work.rows) == 9
    rows = {(row.scheme, row.dtype): row for row in work.rows}
    for dtype in DTYPES:
        stock, origin = rows[STOCK, dtype], rows["origin", dtype]
        assert (stock.error, stock.nats, stock.most, stock.same) == (
            origin.error, origin.nats, origin.most, origin.same
        )  # fmt: skip
        assert stock.ratio == origin.ratio == 1.0
    assert rows[STOCK, "float32"].error < rows[STOCK, "float16"].error < rows[STOCK, "bfloat16"].error


@torch.no_grad()
def test_the_numbers_are_those_of_the_dense_reference(rope: LoadedModel) -> None:
    """The other backend in float64, with numpy's norms."""
    ids = np.arange(3, 303)[None] % 400 + 3
    [stock, row] = list(_ran(Precision(rope, "rerope(N=64)", ["bfloat16"], 300, torch.as_tensor(ids))))
    low = cast(rope.model, torch.bfloat16)
    scheme = make_scheme("rerope", rope.window, N=64)
    tokens = torch.as_tensor(ids)
    with apply_scheme(low, scheme):
        hidden = low.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0].double().numpy()
        got = low(input_ids=tokens).logits[0].double().log_softmax(-1).numpy()
    high = cast(low, torch.float64)
    with apply_scheme(high, scheme, backend="dense", exact_angles=True):
        exact = high.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0].numpy()
        right = high(input_ids=tokens).logits[0].log_softmax(-1).numpy()
    assert row.error == pytest.approx(np.linalg.norm(hidden - exact) / np.linalg.norm(exact), rel=1e-6)
    off = np.abs(got - right)[np.arange(299), ids[0, 1:]]
    assert row.nats == pytest.approx(off.mean(), rel=1e-6) and row.most == pytest.approx(off.max(), rel=1e-6)
    assert row.same == pytest.approx((got[:-1].argmax(-1) == right[:-1].argmax(-1)).mean())
    assert row.ratio == pytest.approx(row.error / stock.error)


def _ran(work: Precision) -> list[PrecisionRow]:
    list(work.run())
    return work.rows


def test_a_copy_in_a_type_is_what_transformers_loads_in_it(rope: LoadedModel, tmp_path: Path) -> None:
    rope.model.save_pretrained(tmp_path / "m")
    loaded = load_model(str(tmp_path / "m"), dtype="bfloat16").model
    mine = cast(rope.model, torch.bfloat16)
    ids = token_ids(1, 40)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, mine(input_ids=ids).logits)
    assert next(rope.model.parameters()).dtype == torch.float32  # the model itself is left alone


def test_exact_angles_take_away_what_float32_angles_lose() -> None:
    """Far out the stock model's angles are most of its error."""
    model = TINY["llama"]()
    loaded = wrap_model(model, window=WINDOW, name="llama")
    ids = token_ids(1, 2000)
    [_, plain] = _ran(Precision(loaded, "origin", ["float32"], 2000, ids))
    [stock, exact] = _ran(Precision(loaded, "origin", ["float32"], 2000, ids, exact_angles=True))
    assert exact.error < plain.error / 2 and stock.error == plain.error


@pytest.mark.parametrize("spec", ["origin", "rerope", "stair", "self-extend", "streaming-llm", "mesa", "dual-chunk"])
@torch.no_grad()
def test_exact_angles_hold_at_ten_million(spec: str) -> None:
    """The second half of a text lies ten million tokens further on; the reference is all in float64."""
    model, ids = TINY["llama"](initializer_range=0.08), token_ids(1, 150)
    wrap_model(model, window=WINDOW)
    far = without_middle(parse_scheme(spec, WINDOW), 75, 10_000_000)

    def logits(exact: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        mine = cast(model, dtype)
        with apply_scheme(mine, far, exact_angles=exact):
            return mine(input_ids=ids).logits

    right = logits(True, torch.float64)
    assert relative(logits(True), right) < 2e-6
    plain = relative(logits(False), right)
    # Dual-chunk counts within its chunk; all others turn near pairs by their own positions.
    assert plain < 2e-6 if spec == "dual-chunk" else 1e-3 < plain < 0.05


def test_what_overflows_is_said() -> None:
    model = TINY["llama"]()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= 1e6
    rows = _ran(Precision(wrap_model(model, window=WINDOW), "rerope", ["float16"], 100, token_ids(1, 100)))
    assert all(row.untold == "NaN or infinite in float16" and row.error is None for row in rows)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"dtypes": ["float64"]}, "which they are compared with"), ({"dtypes": ["int8"]}, "unknown dtype"),
     ({"dtypes": []}, "at least one"), ({"length": 4}, "at least 8"), ({"schemes": "magic"}, "unknown scheme")],
)  # fmt: skip
def test_bad_input_is_said(rope: LoadedModel, fields: dict[str, object], said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        Precision(rope, **fields)  # type: ignore[arg-type]


def test_the_command_and_its_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    call = ["precision", "--scheme", "rerope", "--dtypes", "float16", "--length", "300", "--quiet", "--out", str(out)]
    assert main(call) == 0
    assert "rerope" in capsys.readouterr().out
    result = json.loads(out.read_text())
    again = ws.load("rope").precision("rerope", dtypes=["float16"], length=300)
    assert result["kind"] == "precision" and result["rows"] == again.to_json()["rows"]
    assert main(["tables", str(out)]) == 0
    assert "| float16 | `stock` |" in capsys.readouterr().out
    assert main(["precision", "--dtypes", "float64"]) == 2
    assert "--dtypes: expected some of" in capsys.readouterr().err


def family_rows(name: str) -> list[dict[str, object]]:
    """Of a tiny random family: in every type what the stock model loses, and the scheme that loses most."""
    loaded = wrap_model(TINY[name](initializer_range=0.08), window=WINDOW, name=name)
    work = Precision(loaded, None, DTYPES, 150, token_ids(1, 150))
    found = _ran(work)
    rows = []
    for dtype in DTYPES:
        stock, *mine = (row for row in found if row.dtype == dtype)
        worst = max(mine, key=lambda row: row.error or 0.0)
        assert all(row.untold is None for row in mine), (name, dtype)
        rows.append({
            "family": name, "dtype": dtype, "schemes": len(mine), "stock": stock.error, "worst": worst.error,
            "scheme": worst.scheme,
        })  # fmt: skip
    return rows


@pytest.mark.parametrize("name", TINY)
def test_no_scheme_loses_more_than_its_type_allows(name: str) -> None:
    for row in family_rows(name):
        if name in EXPERTS and row["dtype"] != "float32":
            assert row["worst"] < 0.2, row  # type: ignore[operator]
            continue
        assert row["worst"] < WORST[row["dtype"]], row  # type: ignore[operator,index]
        if row["stock"] is None:
            assert name.startswith("mpt")  # its bias is a table that ends at M
        else:
            assert row["worst"] < 2 * row["stock"], row  # type: ignore[operator]


def test_the_page_shows_what_is_measured() -> None:
    """A line per family of the page is the committed rows, and the first of those is what comes out today."""
    rows = json.loads(FAMILIES.read_text())
    text = PAGE.read_text()
    for line in family_lines(rows):
        assert line in text
    assert {row["family"] for row in rows} == set(TINY)
    now = {row["dtype"]: row for row in family_rows("llama")}
    for row in rows:
        if row["family"] == "llama":
            assert row["worst"] == pytest.approx(now[row["dtype"]]["worst"], rel=0.5)


def family_lines(rows: list[dict[str, object]]) -> list[str]:
    """As the page has them: worst error, and in brackets the stock model's."""

    def cell(row: dict[str, object]) -> str:
        stock = "does not run" if row["stock"] is None else f"{row['stock']:.1e}"
        return f"{row['worst']:.1e} ({stock}) `{row['scheme']}`"

    by_name: dict[object, list[str]] = {}
    for row in rows:
        by_name.setdefault(row["family"], []).append(cell(row))
    return [f"| `{name}` | " + " | ".join(cells) + " |" for name, cells in by_name.items()]


if __name__ == "__main__":
    rows = [row for name in TINY for row in family_rows(name)]
    FAMILIES.parent.mkdir(parents=True, exist_ok=True)
    FAMILIES.write_text(json.dumps(rows, indent=1) + "\n")
    before, lines = PAGE.read_text().split("| family |")[0], "\n".join(family_lines(rows))
    after = PAGE.read_text().split("<!-- families end -->")[1]
    table = f"| family | {' | '.join(DTYPES)} |\n|---|---|---|---|\n{lines}\n\n<!-- families end -->"
    PAGE.write_text(before + table + after)
