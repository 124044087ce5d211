"""Evaluations of several models, tasks and seeds: every sample is kept, and one that was killed goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from probe.commands.main import main as cli
from probe.errors import FieldError
from probe.models.load import LoadedModel, load_model
from probe.studies.evaluate import Evaluation
from probe.studies.journal import LINES, Journal
from probe.tasks import table
from probe.tasks.context import cannot, reaches
from probe.tasks.intervals import wilson
from probe.tasks.scoring import passkey_hits
from probe.tasks.table import TASKS, Asked
from probe.tasks.tables import markdown, over_depths, parts
from probe.text import lengths_at, parse_lengths

COMMAND = [
    "eval", "--model", "rope,nope", "--task", "passkey,nll", "--lengths", "M/4,M", "--scheme", "origin,rerope+logn",
    "--samples", "6", "--seed", "1,2", "--depths", "3", "--json", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody stopped: its folder, with the result beside its samples."""
    folder = tmp_path_factory.mktemp("sweep") / "kept"
    assert cli([*COMMAND, "--keep", str(folder), "--out", str(folder.parent / "whole.json")]) == 0
    return folder


def rows_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


def test_there_is_a_row_for_each_model_task_scheme_length_and_depth(whole: Path) -> None:
    rows = rows_of(whole.parent / "whole.json")
    keys = Counter((row["model"], row["task"], row["scheme"], row["length"], row.get("depth")) for row in rows)
    assert set(keys.values()) == {1}
    assert len(rows) == 2 * 2 * 2 * 3 + 2 * 2 * 2  # pass keys at three depths, likelihoods at none
    for row in rows:
        if row["task"] == "passkey":
            assert row["total"] == 4 and row["accuracy"] == row["correct"] / 4 == row["recall"]
            assert (row["low"], row["high"]) == wilson(row["correct"], 4)
            assert [hit for _, hit in row["hits"]].count(True) == row["correct"]
            assert all(abs(depth - row["depth"]) < 1e-4 for depth, _ in row["hits"])


def test_the_numbers_are_those_of_the_samples_themselves(whole: Path) -> None:
    """Drawn here and scored one by one."""
    loaded = load_model("nope")
    rows = {
        (row["scheme"], row["length"]): row
        for row in over_depths([
            row for row in rows_of(whole.parent / "whole.json") if (row["model"], row["task"]) == ("nope", "passkey")
        ])
    }  # fmt: skip
    from probe.schemes import parse_scheme

    for (spec, length), row in rows.items():
        hits = []
        for seed in (1, 2):
            drawn = TASKS["passkey"].draw(loaded, Asked(length, 6, seed, depths=3))
            hits += [bool(passkey_hits(loaded, parse_scheme(spec, 512), [one])[0]) for one in drawn]
        assert (sum(hits), len(hits)) == (row["correct"], row["total"])


def test_every_sample_is_a_row_of_one_table(whole: Path) -> None:
    samples = pd.read_parquet(whole / "samples.parquet")
    assert len(samples) == 2 * 2 * 2 * 2 * 2 * 6  # models, tasks, schemes, lengths, seeds, samples
    named = ["model", "task", "scheme", "length", "seed", "number"]
    assert not samples.duplicated(named).any() and set(samples["dtype"]) == {"float32"}
    assert (samples["seconds"] > 0).all()
    of_keys = samples[samples.task == "passkey"].groupby(["model", "scheme", "length"])["score"].mean()
    rows = rows_of(whole.parent / "whole.json")
    for part in parts({"settings": json.loads((whole.parent / "whole.json").read_text())["settings"], "rows": rows}):
        if part["settings"]["task"] == "passkey":
            for row in over_depths(part["rows"]):
                key = (row["model"], row["scheme"], row["length"])
                assert of_keys[key] == pytest.approx(row["accuracy"])


def test_one_that_is_killed_again_and_again_equals_one_that_is_not(whole: Path, tmp_path: Path) -> None:
    """A real process, killed at random points and in the middle of a line; nothing is counted twice."""
    folder, out, draw = tmp_path / "kept", tmp_path / "out.json", random.Random(3)
    mine = [*COMMAND, "--model", "nope", "--keep", str(folder), "--out", str(out)]
    samples, seen = 2 * 2 * 2 * 2 * 6, 0
    for how in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-m", "probe", *mine], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        deadline, more = time.monotonic() + 120, draw.randrange(1, 20)
        while process.poll() is None and time.monotonic() < deadline:
            lines = (folder / LINES).read_bytes().count(b"\n") if (folder / LINES).exists() else 0
            if lines >= seen + more:
                break
            time.sleep(0.01)
        process.send_signal(how)
        process.wait(60)
        seen = (folder / LINES).read_bytes().count(b"\n")
        with (folder / LINES).open("ab") as file:
            file.write(b'{"key": {"model": "rope", "wind')  # what a kill in the middle of a write leaves
    kept = (folder / LINES).read_text().splitlines()
    assert 0 < seen < samples
    assert cli(mine) == 0
    assert rows_of(out) == [row for row in rows_of(whole.parent / "whole.json") if row["model"] == "nope"]
    lines = [json.loads(line) for line in (folder / LINES).read_text().splitlines()]
    named = Counter((json.dumps(line["key"], sort_keys=True), line["number"]) for line in lines)
    assert set(named.values()) == {1} and len(named) == samples
    assert [json.loads(line) for line in kept[:seen]] == lines[:seen]  # and what was there is as it was
    tables = [pd.read_parquet(one / "samples.parquet").drop(columns="seconds") for one in (folder, whole)]
    by = ["task", "scheme", "length", "seed", "number"]
    here, there = (table[table.model == "nope"].sort_values(by, ignore_index=True) for table in tables)
    pd.testing.assert_frame_equal(here, there, check_like=True)


def test_what_is_there_is_not_measured_again(whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(table, "passkey_answers", refuse)
    monkeypatch.setattr(table, "heldout_nll", refuse)
    out = tmp_path / "again.json"
    assert cli([*COMMAND, "--keep", str(whole), "--out", str(out)]) == 0
    assert rows_of(out) == rows_of(whole.parent / "whole.json")


def test_a_folder_made_with_something_else_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert cli([*COMMAND, "--keep", str(tmp_path / "other")]) == 2
    assert "--keep" in (said := capsys.readouterr().err) and "not empty" in said and said.count("\n") == 1
    old = tmp_path / "old"
    old.mkdir()
    about = json.loads((whole / "made_with.json").read_text())
    (old / "made_with.json").write_text(json.dumps(about | {"versions": {**about["versions"], "torch": "1.0"}}))
    assert cli([*COMMAND, "--keep", str(old)]) == 2
    assert "made with something else: versions" in capsys.readouterr().err


@pytest.fixture(scope="module")
def rope() -> LoadedModel:
    return load_model("rope")


def run(work: Evaluation) -> list:
    for _ in work.run():
        pass
    return work.rows


def test_a_hopeless_scheme_is_left_out_and_says_so(rope: LoadedModel) -> None:
    rows = run(Evaluation(rope, "niah-single-1", "origin", [256, 512, 1024], 3, early_stop=3))
    assert [(row.total, row.correct) for row in rows] == [(3, 0), (0, 0), (0, 0)]
    assert rows[0].stopped is None and rows[2].stopped == "no right answer at 256, so none is looked for at more"
    assert rows[1].accuracy is None and rows[1].low is None and rows[1].recall is None
    said = markdown(Evaluation(rope, "niah-single-1", "origin", [256], 3, rows=rows).result(True).to_json())
    assert "not run: no right answer at 256" in said
    enough = run(Evaluation(rope, "niah-single-1", "origin", [256, 512], 3, early_stop=4))
    assert [row.total for row in enough] == [3, 3]


def test_batches_halve_where_memory_is_short_and_what_never_fits_is_a_row(
    rope: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes, real = [], table.passkey_answers

    def cramped(loaded, scheme, batch, memory=None):
        sizes.append(len(batch))
        if len(batch) > 2 or len(batch[0].prompt) > 600:
            raise torch.OutOfMemoryError("out of memory")
        return real(loaded, scheme, batch, memory)

    free = run(Evaluation(rope, "passkey", "origin", [256], 7))
    monkeypatch.setattr(table, "passkey_answers", cramped)
    journal = Journal(tmp_path / "kept")
    with journal.opened({}):
        work = Evaluation(rope, "passkey", "origin,rerope", [256, 1024], 7, journal=journal)
        rows = run(work)
    assert sizes[:3] == [7, 3, 1] and work.share == 1.0
    assert rows[0] == free[0]
    assert [(row.total, row.stopped) for row in rows[2:]] == [(0, "out of memory at 1,024 tokens")] * 2
    before = len(sizes)
    with (again := Journal(tmp_path / "kept")).opened({}):
        assert run(Evaluation(rope, "passkey", "origin,rerope", [256, 1024], 7, journal=again)) == rows
    assert len(sizes) == before  # what did not fit is not tried again


def test_how_far_it_is_only_grows_and_ends_at_one(rope: LoadedModel) -> None:
    shares: list[float] = []
    work = Evaluation(rope, "passkey,nll", "origin,mesa", [256, 1024], 5, early_stop=1)
    work.tell = lambda line: shares.append(work.share)
    run(work)
    assert shares == sorted(shares) and work.share == pytest.approx(1.0) and len(set(shares)) > 12


def test_lengths_may_be_windows() -> None:
    assert lengths_at(512, parse_lengths("M/4, 1.5M,1000,M,512")) == (128, 768, 1000, 512)
    for bad in ("M/", "2m", "x", "", "M4", "-M"):
        with pytest.raises(FieldError):
            lengths_at(512, parse_lengths(bad))


def row(scheme: str, length: int, correct: int, total: int = 10, stopped: str | None = None) -> dict:
    share = None if stopped else correct / total
    return {"scheme": scheme, "length": length, "accuracy": share, "correct": correct, "total": total,
            "stopped": stopped}  # fmt: skip


def test_a_task_that_the_model_cannot_do_says_nothing_of_its_schemes() -> None:
    rows = [row("origin", 32, 4), row("origin", 64, 3), row("a", 128, 10)]
    assert cannot(rows, 64) == "the trained model cannot do it inside its window of 64: 40% right at best"
    assert all(not one.told and one.length is None for one in reaches(rows, 64))
    assert "was not measured inside its window" in str(cannot(rows[2:], 64))
    rows[0] = row("origin", 32, 8)
    assert cannot(rows, 64) is None
    found = reaches([*rows, row("a", 256, 4), row("b", 128, 0, stopped="out of memory")], 64)
    assert [(one.scheme, one.length, one.said) for one in found] == [
        ("origin", 32, "32"), ("a", 256, "256, the longest measured"), ("b", None, "below 128"),
    ]  # fmt: skip


def test_likelihoods_reach_as_far_as_they_stay_low() -> None:
    def nats(scheme: str, length: int, nll: float) -> dict:
        return {"scheme": scheme, "length": length, "nll": nll, "standard_error": None}

    rows = [nats("origin", 64, 2.0), nats("origin", 128, 2.3), nats("a", 64, 2.1), nats("a", 128, 2.15)]
    assert [(one.scheme, one.length) for one in reaches(rows, 64)] == [("origin", 64), ("a", 128)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--task", "pass"), "unknown task 'pass'"),
        (("--task", ","), "expected at least one"),
        (("--depths", "0"), "--depths: expected at least 1, got 0"),
        (("--task", "nll", "--depths", "3"), "--depths: is for --task passkey and"),
        (("--haystack", "noise"), "--haystack: is for --task niah-single-2 and"),
        (("--task", "niah-single-2", "--haystack", "text:x"), "--haystack text:x: cannot read x"),
        (("--unit", "lines"), "unknown unit of length 'lines'; known: tokens, words"),
        (("--lengths", "half"), "--lengths: expected numbers"),
        (("--seed", "1,x"), "--seed: expected a number from 0"),
        (("--model", "rope,,nope"), "--model: expected names separated by commas"),
        (("--model", "rope,./nowhere"), "./nowhere"),
        (("--early-stop", "0"), "--early-stop: expected at least 1 sample, got 0"),
        (("--scheme", "origin,pi", "--model", "rope,nope"), "nope"),
        (("--task", "cwe", "--lengths", "256"), "--lengths: this task needs at least"),
    ],
)
def test_what_cannot_be_is_a_line(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli(["eval", "--samples", "2", "--quiet", *arguments])
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    assert code == 2 and says in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_python_gives_what_the_command_gives(whole: Path, tmp_path: Path) -> None:
    import weavescope as ws

    told: list[float] = []
    found = ws.load("nope").evaluate(
        ["passkey", "nll"], "origin,rerope+logn", lengths=["M/4", "M"], samples=6, seed=[1, 2], depths=3,
        keep=tmp_path / "kept", progress=lambda share, _: told.append(share),
    )  # fmt: skip
    theirs = [row for row in rows_of(whole.parent / "whole.json") if row["model"] == "nope"]
    assert json.loads(json.dumps(found.rows.to_json())) == theirs and told[-1] == 1.0
    assert (tmp_path / "kept" / "samples.parquet").exists()
    assert np.isfinite([one.accuracy for one in found.rows if hasattr(one, "accuracy")]).all()
