"""A third party's package adds its rows without a fork: really built, installed and found by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import weavescope as ws
from probe import tables
from probe.tables import Table, register

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "their-rows"
version = "1.0"
[project.entry-points.weavescope]
theirs = "their_rows:rows"
broken = "their_rows.broken:rows"
[tool.setuptools]
packages = ["their_rows"]
"""

CODE = '''
from dataclasses import dataclass
from typing import ClassVar

from weavescope.parts import Part, Weave
from weavescope.rows import AttentionSite, Detection, Detector, ModuleSite, Parameter, Preset


@dataclass(frozen=True)
class Halved(Weave):
    """W(d) = d up to N, then N: as ReRoPE, written anew."""

    N: int
    name: ClassVar[str] = "halved"

    def of(self, d):
        return d - (d - self.N) * (d > self.N)

    def parts(self, t, i):
        near = (t - self.N).clamp(min=0)
        return [Part(t, t, i, near, t + 1), Part(t, 0 * t + self.N, 0 * i, 0 * t, near)]


def rows():
    return [
        Halved,
        Preset(
            "halved", "W(d) = min(d, N)", "theirs",
            lambda p: {"weave": Halved(**p)}, {"N": Parameter(lambda M: M // 4, "band")},
        ),
        Preset("rerope", "not the one you know", "theirs"),
        Detector("at-M", "always the window", lambda reference, series, M, settings: Detection(0.0, "above", M, -1.0)),
        ModuleSite("normed", "what the attention reads", lambda family, layer: layer.input_layernorm),
        AttentionSite("own_mass", "on the token itself", lambda block: block.weights.diagonal(block.first, -2, -1)),
    ]
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed in."""
    source, target = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("site")
    (source / "their_rows").mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "their_rows" / "__init__.py").write_text(CODE)
    (source / "their_rows" / "broken.py").write_text("import a_package_that_is_not_there\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True, text=True)
    return target


@pytest.fixture(scope="module")
def theirs(installed: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command where the package is installed."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(installed), str(Path(__file__).parents[1])))}
        command = [sys.executable, "-m", "probe", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)

    return call


def test_the_command_lists_their_scheme_and_warns_of_what_is_broken(
    theirs: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = theirs("schemes", "--window", "64", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in json.loads(done.stdout)["schemes"] if row["name"] == "halved"]
    assert row["parameters"] == {"N": 16} and row["source"] == "theirs"
    warnings = [line for line in done.stderr.splitlines() if line.startswith("probe: warning: plugin")]
    assert len(warnings) == 2
    assert "broken (their_rows.broken:rows) was left out: No module named 'a_package_that_is_not_there'" in warnings[0]
    assert "theirs (their_rows:rows) was left out: scheme 'rerope': the name is taken already" in warnings[1]


def test_the_command_runs_their_scheme_detector_and_site(
    theirs: Callable[..., subprocess.CompletedProcess[str]], tiny_folder: Path, tmp_path: Path
) -> None:
    done = theirs(
        "run",
        "--model",
        str(tiny_folder),
        "--scheme",
        "origin,halved,halved(N=8)+logn",
        "--detector",
        "at-M",
        "--site",
        "normed,own_mass",
        "--input",
        "token:5",
        "--length",
        "160",
        "--out",
        str(tmp_path / "run"),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {(row["scheme"], row["site"], row["predicted"]) for row in rows} == {
        (scheme, site, 64) for scheme in ("origin", "halved", "halved(N=8)+logn") for site in ("normed", "own_mass")
    }


def test_their_weave_is_the_one_it_copies(installed: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(installed))
    import their_rows

    model = ws.load(str(tiny_folder))
    mine = ws.Scheme("mine", window=64, weave=their_rows.Halved(16))
    run = model.probe([mine, "rerope(N=16)"], input="token:5", length=160)
    assert (run.trace["mine/resid.2"] == run.trace["rerope(N=16)/resid.2"]).all()


class Fruit:
    """A row of a table of this test's."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def fruit(monkeypatch: pytest.MonkeyPatch) -> Table[Fruit]:
    monkeypatch.setattr(tables, "_TABLES", list(tables._TABLES))
    return Table("fruit", Fruit, [Fruit("apple")])


def test_a_name_is_taken_once_unless_it_is_replaced(fruit: Table[Fruit]) -> None:
    pear = register(Fruit("pear"))
    assert fruit["pear"] is pear and list(fruit) == ["apple", "pear"] and len(fruit) == 2
    register(pear)  # the same row again is no clash
    with pytest.raises(ws.ProbeError, match="fruit 'pear': the name is taken already"):
        register(Fruit("pear"))
    other = register(Fruit("pear"), replace=True)
    assert fruit["pear"] is other and list(fruit) == ["apple", "pear"]


def test_a_name_that_is_not_there_lists_those_that_are(fruit: Table[Fruit]) -> None:
    with pytest.raises(ws.UnknownNameError, match="unknown fruit 'aple'; known: apple; did you mean apple"):
        fruit["aple"]


def test_what_belongs_nowhere_is_refused() -> None:
    with pytest.raises(ws.ProbeError, match=r"expected a row of one of these kinds: .*Preset \(scheme\).*; got int"):
        register(3)
