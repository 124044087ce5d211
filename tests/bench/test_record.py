"""What watching costs: every row is there beside the bare pass of the same run, and watching changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from probe.bench.record import WATCHED, RecordBench, RecordSettings
from probe.commands.main import main
from probe.errors import ProbeError
from probe.tasks.nll import nll_per_position

TINY = "random:layers=2,width=32,heads=2,window=64,vocab=64"


def test_every_way_of_watching_is_a_row_beside_the_bare_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def told(*args: object, **options: object) -> torch.Tensor:
        seen.append(nll_per_position(*args, **options))
        return seen[-1]

    for module in ("probe.bench.record", "probe.signals.collect"):
        monkeypatch.setattr(f"{module}.nll_per_position", told)
    bench = RecordBench.load(RecordSettings(model=TINY, lengths=(64, 96), repeats=2))
    said = list(bench.run())
    assert said == ["what vectors are like inside the window", *(f"recording at {n} tokens" for n in (64, 96))]
    assert [(row.scheme, row.length) for row in bench.rows] == [
        (name, length) for length in (64, 96) for name in ("stock", *WATCHED)
    ]
    for row in bench.rows:
        bare = next(one for one in bench.rows if (one.scheme, one.length) == ("nothing", row.length))
        assert row.seconds and bare.seconds and row.ratio == pytest.approx(row.seconds / bare.seconds)
        assert row.what == "record" and row.repeats == 2
    assert bench.result(True).settings["window"] == 64
    # A warm-up and two repeats each; the stock model too: the same likelihoods, whoever looks.
    for length in (64, 96):
        mine = [one for one in seen if one.shape[1] == length]
        assert len(mine) == 3 * (1 + len(WATCHED))
        assert all(torch.allclose(one[:, 1:], mine[0][:, 1:], atol=1e-5) for one in mine)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"watched": ("nonsense",)}, "unknown what is watched 'nonsense'"),
        ({"lengths": (32,)}, "lengths: expected numbers of at least 64 tokens, got 32"),
        ({"repeats": 0}, "repeats: expected at least 1, got 0"),
    ],
)
def test_bad_settings_are_answered(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        RecordSettings(model=TINY, **changed)


def test_one_scheme_at_a_time() -> None:
    with pytest.raises(ProbeError, match="scheme: expected one, got origin, rerope"):
        RecordBench.load(RecordSettings("origin,rerope", model=TINY))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    asked = ["bench", "record", "--model", TINY, "--lengths", "64", "--repeats", "1", "--watched", "dims; scan"]
    assert main([*asked, "--out", str(out), "--quiet"]) == 0
    assert "| record | 64 | scan |" in capsys.readouterr().out
    assert [row["scheme"] for row in json.loads(out.read_text())["rows"]] == ["stock", "nothing", "dims", "scan"]
