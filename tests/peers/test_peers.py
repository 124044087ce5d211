"""The harness beside the authors' code: real processes, what it says of equal and other logits, and what it refuses.

No author's code is here. What stands in for a checkout leaves the model as it is, so that theirs is the stock model.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from constructions.weave import Leaky
from probe.commands.main import main
from probe.errors import ProbeError
from probe.foreign import started
from probe.models.random import Shape
from probe.peers import compare, driver
from probe.peers.cases import PEERS, Case, cases
from probe.peers.compare import SAME, Comparison, comparisons, difference, verdict
from probe.peers.run import DRIVER
from probe.schemes import parse_schemes
from probe.schemes.split import dynamic_split

SHAPE = Shape(layers=2, width=32, heads=2, window=32, vocab=40)
THEIRS = {"training_length": 32, "window": 8}
NOTHING = "print('noise on stdout')\n"
RELEASE = transformers.__version__.rsplit(".", 1)[0]


def stub(folder: Path, code: str = NOTHING) -> Path:
    (folder / "rerope_patch.py").write_text(code)
    return folder


def compared(tmp_path: Path, checkout: Path, made: list[Case], grouped: bool = False) -> list[Comparison]:
    peer = replace(PEERS["rerope"], grouped=grouped)
    settings = {"peer": "rerope", "checkout": str(checkout), "threads": 1}
    (tmp_path / "models").mkdir()
    with started(sys.executable, DRIVER, settings) as process:
        return list(comparisons(peer, SHAPE, made, process, tmp_path / "models", 0))


def test_equal_and_different_logits_through_both_processes(tmp_path: Path) -> None:
    made = [
        Case("all", "origin", THEIRS, "rerope(N=8)", 80),
        Case("parts", "origin", THEIRS, "rerope(N=8)", 80, 70),
        Case("other", "rerope(N=8)", THEIRS, "rerope(N=9)", 80),
        Case("known", "rerope(N=40)", THEIRS, "rerope(N=9)", 80, 70, differs="they clamp nothing"),
    ]
    found = compared(tmp_path, stub(tmp_path), made, grouped=True)
    assert [(row.name, row.kv_heads) for row in found] == [(case.name, kv) for kv in (2, 1) for case in made]
    for row in found[:2]:
        assert row.verdict == "equal" and row.first is None and max(row.inside, row.past) < 1e-5
        assert row.off_by_one > 100 * SAME > row.stock
    # min(d, N) is another position from d = N + 1 on, which is what query N + 1 sees first.
    assert found[2].verdict == "DIFFERS" and found[2].first == 9 and found[2].inside > 100 * SAME
    assert found[3].verdict == "differs: they clamp nothing" and found[3].first == 41
    assert found[3].inside < 1e-5 and found[3].past > 100 * SAME


def test_code_that_fails_is_a_row_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(stub(tmp_path, "raise RuntimeError('q_len should be 1\\nand more')\n"))
    (tmp_path / "ids.json").write_text("[1, 2, 3]")
    process = SimpleNamespace(ask=lambda request: driver.answer("rerope", request))
    row = compare.compared(Case("all", "origin", THEIRS, "rerope", 3), 2, None, process, tmp_path)
    assert row.verdict == "their code failed: RuntimeError: q_len should be 1" and row.inside is None


def test_a_process_that_ended_says_why_each_time_it_is_asked(tmp_path: Path) -> None:
    dying = tmp_path / "dying.py"
    dying.write_text("import sys\nprint('{}', flush=True)\ninput()\nsys.exit('no more memory')\n")
    with started(sys.executable, dying, {"checkout": "somewhere"}) as process:
        for _ in range(2):
            with pytest.raises(ProbeError, match="ended: no more memory"):
                process.ask({"a": 1})


def test_nothing_stays_replaced_in_a_module_of_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(stub(tmp_path, "import math\nroot = math.sqrt(4)\ndef log(): return math.log(1)\n"))
    module = driver.fresh("rerope_patch")
    module.math = driver.Stand(module.math, log=lambda _: math.inf)
    assert module.log() == math.inf and module.math.sqrt(9) == 3
    assert driver.fresh("rerope_patch").log() == 0
    sys.modules.pop("rerope_patch")


def test_differences_are_of_the_largest_logit_by_range() -> None:
    mine = torch.tensor([[1.0, -4.0], [2.0, 0.0], [0.5, 1.0]])
    other = mine + torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, -0.4]])
    found = difference(mine, other, 2)
    assert (found.inside, found.past, found.first) == (pytest.approx(0.025), pytest.approx(0.1), 1)
    assert found.largest == found.past and difference(mine, mine, 2).first is None
    broken = mine.clone()
    broken[2, 0] = math.nan
    with pytest.raises(ProbeError, match="expected finite numbers"):
        difference(mine, broken, 2)
    with pytest.raises(ProbeError, match=r"ours have the shape \(3, 2\), theirs \(2, 2\)"):
        difference(mine, mine[:2], 2)


def test_verdicts_shout_what_was_not_expected() -> None:
    same, other = difference(torch.ones(2, 2), torch.ones(2, 2), 1), difference(torch.ones(2, 2), torch.zeros(2, 2), 1)
    assert verdict(same, "") == "equal" and verdict(other, "") == "DIFFERS"
    assert verdict(same, "off by one") == "EQUAL, expected: off by one"
    assert verdict(other, "off by one") == "differs: off by one"


def test_tokens_come_in_one_call_or_in_parts_and_the_cache_goes_through_theirs() -> None:
    seen: list = []

    def model(ids: torch.Tensor, past_key_values: object, use_cache: bool) -> SimpleNamespace:
        seen.append((ids[0].tolist(), past_key_values))
        return SimpleNamespace(logits=ids[..., None].float(), past_key_values=len(seen))

    peer = SimpleNamespace(model=model, before=lambda cache: ("before", cache), after=lambda cache: ("after", cache))
    ids = torch.arange(5)[None]
    assert driver.logits(peer, ids, 3)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert seen == [([0, 1, 2], ("before", None)), ([3], ("before", ("after", 1))), ([4], ("before", ("after", 2)))]
    seen.clear()
    driver.logits(peer, ids, 5)
    assert seen == [([0, 1, 2, 3, 4], ("before", None))]


@pytest.mark.parametrize(("queries", "keys", "causal"), [(7, 7, True), (3, 7, False), (3, 7, True)])
def test_the_stand_in_for_flash_attention(queries: int, keys: int, causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 3, 8) for n in (queries, keys, keys))
    out, lse, _ = driver.exact_attention(query, key, value, causal=causal, return_attn_probs=True)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if causal else None
    parts = (part.transpose(1, 2) for part in (query, key, value))
    torch.testing.assert_close(out.transpose(1, 2), scaled_dot_product_attention(*parts, attn_mask=seen))
    scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) / math.sqrt(8)
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    torch.testing.assert_close(lse, scores.exp().sum(-1).log())


@pytest.mark.parametrize("name", PEERS)
def test_every_case_is_one_that_both_sides_understand(name: str) -> None:
    assert set(driver.PEERS) == set(PEERS)
    peer = PEERS[name]
    for window, length in ((64, 320), (128, 700)) if peer.length else ((None, None),):
        M = window or peer.window
        for case in cases(name, window, length):
            assert M < case.first <= case.length or case.first == 1
            assert json.loads(json.dumps(case.theirs)) == case.theirs and case.ours != case.control
            for spec in (case.ours, case.control):
                scheme = parse_schemes(spec, M)[0]
                scheme.weave_at(case.length, case.first), scheme.visibility_at(case.length, case.first)


def test_the_leaky_factor_is_ours_at_that_length() -> None:
    for case in cases("leaky-rerope", 128, 700):
        weave = parse_schemes(case.ours, 128)[0].weave_at(case.length)
        assert isinstance(weave, Leaky)
        assert weave.k == case.theirs["scaling_factor"] and weave.w == case.theirs["window"]


def test_mesa_prompts_are_split_alike() -> None:
    """By their rule, written out from its description: N chunks of the width that is left, or N + 1 even ones."""
    for case in cases("mesa"):
        if "released" in case.name:
            continue
        L, F, M = case.theirs["last_context"], case.theirs["first_chunk"], case.theirs["train_length"]
        between = case.first - L - F
        count, rest = divmod(between, M - F - case.theirs["first_chunk_cache"])
        assert rest >= 200
        split = dynamic_split(case.first, M, F, L, 200)
        assert (split.C, split.chunks) == (between // (count + 1), count + 1)
        assert 0 < case.first - split.last <= split.C


def test_the_command_prints_a_table_and_writes_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = replace(
        PEERS["rerope"],
        releases=(RELEASE,),
        grouped=False,
        cases=lambda M, T: [Case("all", "origin", THEIRS, "rerope(N=8)", T)],
    )
    monkeypatch.setitem(PEERS, "rerope", peer)
    out = tmp_path / "out.json"
    stub(tmp_path)
    options = ["--peer", "rerope", "--checkout", str(tmp_path), "--python", sys.executable, "--window", "32"]
    assert main(["peers", *options, "--length", "100", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "| verdict |" in printed.out and "| equal |" in printed.out
    assert "probe: all, 4 key heads: equal" in printed.err
    result = json.loads(out.read_text())
    theirs = result["provenance"]["machine"]["theirs"]
    assert theirs["transformers"] == transformers.__version__ and theirs["torch"] == torch.__version__
    assert result["kind"] == "peers" and result["complete"] and result["settings"]["window"] == 32
    assert main(["tables", str(out)]) == 0 and capsys.readouterr().out.strip() == printed.out.strip()
    assert [(row["length"], row["verdict"]) for row in result["rows"]] == [(100, "equal")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--checkout", "{empty}"), "expected a checkout of github.com/bojone/rerope, found no rerope_patch.py in it"),
        (("--checkout", "{good}", "--python", "{empty}/python"), "expected a Python interpreter, found no such file"),
        (("--checkout", "{good}"), "the code needs transformers 4.31, found 5."),
        (("--checkout", "{good}", "--window", "40"), "--window: expected a multiple of 16 from 32 on, got 40"),
        (("--checkout", "{good}", "--length", "100"), "--length: expected at least three windows, 192 tokens, got 100"),
        (("--checkout", "{good}", "--threads", "0"), "--threads: expected at least 1"),
        (("--checkout", "{good}", "--out", "{empty}"), "expected the name of a file"),
        (("--checkout", "{good}", "--peer", "mesa", "--length", "900"), "leave --window and --length out"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, good = tmp_path / "empty", tmp_path / "good"
    empty.mkdir()
    good.mkdir()
    stub(good)
    filled = [option.format(empty=empty, good=good) for option in options]
    assert main(["peers", "--peer", "rerope", "--python", sys.executable, *filled]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
