"""What is built from a checkout, and works without one: the source distribution, and the wheel that is made of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from probe.models.load import EMBEDDED

ROOT = Path(__file__).parents[1]
TOOLS = {".ci", ".github", ".gitignore", ".gitattributes", ".dockerignore"}
"""Of a checkout, what no distribution needs."""
_BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def tracked() -> list[str]:
    """Every file that git knows."""
    said = subprocess.run(["git", "ls-files"], cwd=ROOT, check=False, capture_output=True, text=True)
    if said.returncode:
        pytest.skip("no checkout: what should be in a distribution cannot be told")
    return [name for name in said.stdout.splitlines() if (ROOT / name).exists()]


def build(where: Path, what: str, out: Path) -> Path:
    """Run one hook of the build backend in a folder; the file it made."""
    out.mkdir()
    subprocess.run(
        [sys.executable, "-c", _BUILD, f"build_{what}", str(out)], cwd=where, check=True, capture_output=True
    )
    [made] = out.iterdir()
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution of what is tracked, and the wheel that is built of that, as pip does it."""
    folder = tmp_path_factory.mktemp("package")
    for name in tracked():
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "checkout" / name)
    source = build(folder / "checkout", "sdist", folder / "sdist")
    with tarfile.open(source) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    return source, build(unpacked, "wheel", folder / "wheel")


def test_the_source_distribution_is_the_checkout(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as packed:
        there = {name.partition("/")[2] for name in packed.getnames()}
    wanted = {name for name in tracked() if name.split("/")[0] not in TOOLS}
    assert not wanted - there
    assert not any("__pycache__" in name or name.startswith((".venv", "runs/", "site/")) for name in there)


def test_the_wheel_has_every_module_and_every_model(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as packed:
        there = set(packed.namelist())
        [entry_points] = (packed.read(name).decode() for name in there if name.endswith("entry_points.txt"))
    for name in tracked():
        top = name.split("/")[0]
        if top in ("probe", "constructions", "weavescope"):
            assert name in there, name
        if top == "app":
            assert f"weavescope/{name}" in there, name
    assert not any(name.split("/")[0] in ("tests", "docs", "app") for name in there)
    assert "probe = probe.commands.main:main" in entry_points
    assert "weavescope.serving.vllm:register" in entry_points


def test_the_wheel_works_far_from_its_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Unpacked anywhere: the embedded models run, and the dashboard's first page is where the command looks for it."""
    with zipfile.ZipFile(built[1]) as packed:
        packed.extractall(tmp_path / "site")
    # -P: nothing of the folder that it is called in.
    python = [sys.executable, "-P"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}

    def said(*arguments: str) -> str:
        done = subprocess.run(
            [*python, *arguments], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = said("-c", "import probe, weavescope.app.main as page; print(probe.__file__); print(page.__file__)")
    assert all(line.startswith(str(tmp_path / "site")) for line in where.split())
    models = {row["name"] for row in json.loads(said("-m", "probe", "models", "--json"))["models"]}
    assert set(EMBEDDED) <= models
    said("-m", "probe", "run", "--length", "600", "--scheme", "origin", "--out", "run", "--quiet")
    assert (tmp_path / "run" / "run.json").exists()
