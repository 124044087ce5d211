"""The report says what the results say: effective contexts, what to use, and nothing of tasks that cannot be done."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from probe.commands.main import main as cli
from probe.figures.report import depth_figure, length_figure, report_page
from probe.tasks.intervals import wilson
from probe.tasks.report import choices, markdown, sections


def answer(scheme: str, length: int, right: int, total: int = 10, task: str = "passkey", **more: Any) -> dict[str, Any]:
    low, high = wilson(right, total)
    hits = [[(at + 0.5) / total, at < right] for at in range(total)]
    return {"model": "m", "task": task, "scheme": scheme, "length": length, "depth": None, "correct": right,
            "total": total, "accuracy": right / total, "low": low, "high": high, "recall": right / total,
            "worst_decile": 0.0, "weave": {}, "hits": hits, "stopped": None} | more  # fmt: skip


def nats(scheme: str, length: int, nll: float) -> dict[str, Any]:
    return {"model": "m", "task": "nll", "scheme": scheme, "length": length, "nll": nll, "standard_error": 0.01,
            "weave": {}, "each": [nll], "stopped": None}  # fmt: skip


def result(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    settings = {"model": "m", "window": 64, "task": "passkey,nll", "samples": 10, "seed": 0, "schemes": [],
                "lengths": []} | more  # fmt: skip
    return {"kind": "eval", "complete": True, "settings": settings, "provenance": {}, "rows": rows}


KEYS = [answer("origin", 64, 10), answer("origin", 128, 0), answer("a", 64, 9), answer("a", 128, 8),
        answer("b", 64, 10), answer("b", 128, 4)]  # fmt: skip
NATS = [nats("origin", 64, 2.0), nats("origin", 128, 4.0), nats("a", 64, 2.1), nats("a", 128, 2.1),
        nats("b", 64, 2.0), nats("b", 128, 2.0)]  # fmt: skip


def test_the_best_is_what_goes_farthest_on_its_worst_task() -> None:
    found = sections([result(KEYS + NATS)])
    assert [one.task for one in found] == ["passkey", "nll"]
    assert [(reach.scheme, reach.length) for reach in found[0].reaches] == [("origin", 64), ("a", 128), ("b", 64)]
    (choice,) = choices(found)
    assert choice.scheme == "a"
    assert choice.said == "works up to 128 tokens, the longest measured, on passkey, nll; as trained it works up to 64"


def test_files_of_one_task_are_one_section_and_nothing_counts_twice() -> None:
    more = result([answer("a", 128, 3, total=30), answer("a", 256, 1)], samples=30)
    found = sections([result(KEYS), more])
    assert len(found) == 1
    counted = {(row["scheme"], row["length"]): row["total"] for row in found[0].rows}
    assert counted["a", 128] == 30 and counted["a", 256] == 10 and len(counted) == 7
    other = sections([result(KEYS), result([answer("a", 128, 3)], prompt="chat")])
    assert len(other) == 2  # asked otherwise, so not put together


def test_a_task_that_cannot_be_done_is_said_and_not_drawn() -> None:
    rows = [answer("origin", 64, 1, task="vt"), answer("a", 128, 0, task="vt")]
    text, page = markdown([result(KEYS + rows)]), report_page([result(KEYS + rows)])
    why = "the trained model cannot do it inside its window of 64: 10% right at best"
    assert f"This says nothing about longer inputs: {why}." in text and why in page
    assert page.count('class="plotly-graph-div"') == 4  # one chart and three maps, of the pass key alone
    (choice,) = choices(sections([result(rows)]))
    assert choice.scheme is None and why in choice.said


def test_charts_hold_the_numbers_of_the_rows() -> None:
    (section,) = sections([result(KEYS)])
    figure = length_figure(section)
    for trace in figure.data:
        mine = [row for row in section.rows if row["scheme"] == trace.name]
        assert list(trace.x) == [row["length"] for row in mine]
        assert list(trace.y) == pytest.approx([100 * row["accuracy"] for row in mine])
        assert list(trace.error_y.array) == pytest.approx([100 * (row["high"] - row["accuracy"]) for row in mine])
    assert figure.layout.annotations[0].text == "M = 64"
    depths = depth_figure(section, "a")
    assert depths is not None
    assert [line[1] for line in depths.data[0].text] == ["2/2", "2/2", "2/2", "2/2", "0/2"]
    assert depths.data[0].y[0] == "0 to 20%"


def test_depths_that_were_dealt_are_rows_of_their_own() -> None:
    rows = [answer("origin", 64, right, total=4, depth=depth) for depth, right in ((0.0, 4), (0.5, 1), (1.0, 4))]
    for row in rows:
        row["hits"] = [[row["depth"], hit < row["correct"]] for hit in range(4)]
    (section,) = sections([result(rows, depths=3)])
    (pooled,) = section.rows
    assert (pooled["correct"], pooled["total"], pooled["accuracy"]) == (9, 12, 0.75)
    assert (pooled["low"], pooled["high"]) == wilson(9, 12)
    figure = depth_figure(section, "origin")
    assert figure is not None and list(figure.data[0].y) == ["0%", "50%", "100%"]
    assert [line[0] for line in figure.data[0].text] == ["4/4", "1/4", "4/4"]


def test_what_was_stopped_is_told() -> None:
    stopped = answer("b", 256, 0) | {"accuracy": None, "low": None, "high": None, "recall": None, "total": 0,
                                     "hits": [], "stopped": "out of memory at 256 tokens"}  # fmt: skip
    text, page = markdown([result([*KEYS, stopped])]), report_page([result([*KEYS, stopped])])
    assert "not run: out of memory at 256 tokens" in text
    assert "Not run to its end" in page and "out of memory at 256 tokens" in page
    found = {reach.scheme: reach.length for reach in sections([result([*KEYS, stopped])])[0].reaches}
    assert found["b"] == 64


def test_the_page_needs_nothing_beside_it_and_no_name_becomes_markup(tmp_path: Path) -> None:
    rows = [row | {"scheme": "<b>a</b>"} if row["scheme"] == "a" else row for row in KEYS]
    page = report_page([result(rows)])
    assert "<b>a</b>" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)


def test_the_command_writes_both_and_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(result(KEYS)))
    bench = {"kind": "bench", "complete": True, "provenance": {},
             "settings": {"model": "m", "window": 64, "what": "prefill"},
             "rows": [{"what": "prefill", "scheme": "mesa", "length": 128, "seconds": 0.5, "fastest": 0.4,
                       "slowest": 0.6, "repeats": 3, "peak_bytes": None, "least_bytes": None, "most_bytes": None,
                       "ratio": 0.9}]}  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(bench))
    out = tmp_path / "report.html"
    assert cli(["report", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(out)]) == 0
    assert "Time and memory" in out.read_text() and "500 ms" in (text := out.with_suffix(".md").read_text())
    assert "`a` works up to 128 tokens" in text
    capsys.readouterr()
    (tmp_path / "c.json").write_text(json.dumps(bench | {"kind": "tune"}))
    for arguments, says in (
        ([str(tmp_path / "c.json")], "expected a result of 'probe eval' or 'probe bench', got one of 'tune'"),
        ([str(tmp_path / "b.json")], "expected results of 'probe eval'"),
        ([str(tmp_path / "a.json"), "--out", str(tmp_path / "x.txt")], "a name that ends in .html"),
        ([str(tmp_path / "a.json"), "--out", str(tmp_path / "no" / "x.html")], "there is no folder"),
        ([str(tmp_path / "none.json")], "expected a JSON file"),
    ):
        assert cli(["report", *arguments]) == 2
        assert says in (said := capsys.readouterr().err) and said.count("\n") == 1
