"""A run made once more is the same to the bit here, and what differs is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from probe.commands.main import main as cli
from probe.models.load import load_model
from probe.recording.folder import Run
from probe.studies.reproduce import changes_of, differences, settings_from
from probe.studies.run import RunSettings, resolve, run_probe
from probe.thresholds.detectors import DetectorSettings

SETTINGS = RunSettings(
    schemes="origin,rerope(N=16),mesa", layers=(1, 3), dims=(0, 7), sites=("resid", "attn"), input="token:5",
    length=160, detector="paper", detection=DetectorSettings(10, 5, 2.0), seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_probe(load_model(str(tiny_folder)), SETTINGS, tmp_path_factory.mktemp("reproduce") / "one")


def test_the_settings_of_a_run_are_those_it_was_made_with(made: Run, tiny_folder: Path) -> None:
    loaded = load_model(str(tiny_folder))
    one, again = resolve(loaded, SETTINGS), resolve(loaded, settings_from(made.info))
    assert (one.layers, one.dims, one.sites, one.detector) == (again.layers, again.dims, again.sites, again.detector)
    assert [scheme.spec for scheme in one.asked] == [scheme.spec for scheme in again.asked]
    assert one.ids.equal(again.ids) and again.chosen.detection == SETTINGS.detection and again.chosen.seed == 3


def test_the_same_model_gives_the_same_to_the_bit(
    made: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    assert cli(["run", "--reproduce", str(made.path), "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("made with the same") and said.rstrip().endswith("the same to the bit")
    assert all(np.array_equal(made.trace[key], Run(out).trace[key]) for key in made.trace)
    assert cli(["run", "--reproduce", str(made.path), "--json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["scheme"], row["values"], row["nll"], row["verdicts"]) for row in rows] == [
        (spec, 0.0, 0.0, 8) for spec in made.info.shown
    ]


def test_other_weights_are_seen(
    made: Run, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's folder holds another model now: numbers differ, by as much as computed here, and the code is 1."""
    other = load_model(str(tiny_folder))
    with torch.no_grad():
        other.model.model.layers[0].mlp.down_proj.weight.mul_(3.0)
    after = run_probe(other, SETTINGS, tmp_path / "other")
    rows = differences(made, after)
    key = "origin/resid.1"
    gap = np.abs(made.trace[key].astype(float) - after.trace[key]).max() / np.abs(made.trace[key]).max()
    assert rows[0].values >= gap > 0 and rows[0].nll > 0
    moved = Path(shutil.copytree(made.path, tmp_path / "moved"))
    said = json.loads((moved / "run.json").read_text())
    other.model.save_pretrained(tmp_path / "model")
    said["model"] = str(tmp_path / "model")
    (moved / "run.json").write_text(json.dumps(said))
    code = cli(["run", "--reproduce", str(moved), "--quiet"])
    printed = capsys.readouterr().out
    alike = all(row.alike for row in rows)
    assert code == int(not alike) and ("some verdicts differ" in printed) == (not alike)
    assert "the same to the bit" not in printed


def test_what_has_changed_is_named(made: Run) -> None:
    info = made.info
    assert changes_of(info, info) == []
    old = replace(
        info, dtype="bfloat16",
        provenance=replace(info.provenance, versions={**info.provenance.versions, "torch": "2.0"}, git_commit="abc"),
    )  # fmt: skip
    assert changes_of(old, info) == [
        f"torch 2.0 then, {info.provenance.versions['torch']} now",
        f"commit abc then, {info.provenance.git_commit} now", "dtype bfloat16 then, float32 now",
    ]  # fmt: skip


def test_what_cannot_be_made_again_is_a_line(made: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["run", "--reproduce", str(tmp_path), "--quiet"]) == 2
    assert "expected a run folder" in (said := capsys.readouterr().err) and said.count("\n") == 1
    moved = Path(shutil.copytree(made.path, tmp_path / "moved"))
    said_of = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps(said_of | {"model": "./nowhere"}))
    assert cli(["run", "--reproduce", str(moved), "--quiet"]) == 2
    assert "nowhere" in (said := capsys.readouterr().err) and said.count("\n") == 1
