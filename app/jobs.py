"""Commands of the probe in processes of their own, one at a time, and what became of them.

A job is a folder under RUNS/.jobs: what was asked, the process, how far it is, what it said. Nothing of it lives in the
server's memory, so it survives a reload, a second tab and a restart of the server; a crash of the worker ends the
worker alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from app import words
from probe.defaults import PROGRESS
from probe.errors import ProbeError

KEPT = 3600.0
"""Seconds that the folder of a finished job stays: every tab has seen it end by then."""

State = Literal["running", "done", "failed"]

_started: dict[int, subprocess.Popen[bytes]] = {}
"""Processes that this server started, to be waited for."""
_starting = threading.Lock()


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        folder: its own, under RUNS/.jobs.
        title: what it is, for people.
        arguments: of `probe`.
        out: the run folder or the file that it makes.
        pid: of its process.
        ticks: when that process began, as the kernel counts; None where it does not say.
        started: seconds since the epoch.
    """

    folder: Path
    title: str
    arguments: tuple[str, ...]
    out: Path
    pid: int
    ticks: int | None
    started: float

    @property
    def name(self) -> str:
        """Of its folder, and of what it makes."""
        return self.folder.name

    @property
    def state(self) -> State:
        """Whether it still runs, and how it ended."""
        if _alive(self.pid, self.ticks):
            return "running"
        return "done" if self._made() else "failed"

    def _made(self) -> bool:
        if self.out.suffix == ".json":
            return bool(_read(self.out).get("complete"))
        return (self.out / "run.json").is_file()

    @property
    def progress(self) -> tuple[float, str]:
        """Share that is done, and what it is at."""
        found = _read(self.folder / "progress.json")
        share, line = found.get("share", 0.0), found.get("line", "loading the model")
        return (min(1.0, max(0.0, float(share))) if isinstance(share, int | float) else 0.0), str(line)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return max(0.0, time.time() - self.started)

    @property
    def left(self) -> float | None:
        """Seconds that it will still take, by what it took so far; None where it is too early to say."""
        share = self.progress[0]
        return None if share < 0.02 else self.seconds * (1 - share) / share

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped it."""
        return (self.folder / "stopped").exists()

    @property
    def unfinished(self) -> Path | None:
        """The folder with the passes that are done, from which a run goes on; None where there is none."""
        kept = self.out.with_name(self.out.name + ".unfinished")
        return kept if (kept / "unfinished.json").is_file() else None

    def stop(self) -> None:
        """Ask the process to end; what is done is kept."""
        (self.folder / "stopped").touch()
        if _alive(self.pid, self.ticks):
            os.kill(self.pid, signal.SIGTERM)

    def dismiss(self) -> None:
        """Forget a job that has ended; what it made stays."""
        if self.state != "running":
            shutil.rmtree(self.folder, ignore_errors=True)

    def why(self) -> str:
        """Why it made nothing, and what to do, in a sentence."""
        if self.stopped:
            return "it was stopped"
        said = self._last_line()
        refused = re.match(r"probe: error: (.*)", said)
        if refused:
            return refused[1]
        if "No space left on device" in said:
            return "the disk is full; free some space, then start it again"
        code = _code(self.pid)
        # A server that was started later does not know the code; a crash leaves more than the probe's own lines.
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL) or not said or (code is None and said.startswith("probe:")):
            return (
                "its process was killed, most often for lack of memory; take a shorter length, fewer schemes, layers "
                "or dims, and start it again"
            )
        return f"it ended unforeseen ({said})"

    def _last_line(self) -> str:
        try:
            lines = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        # What follows a refusal is what was kept; the refusal is what to tell.
        refused = [line for line in lines if line.startswith("probe: error:")]
        return (refused or lines or [""])[-1].strip()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _ticks(pid: int) -> tuple[str, int] | None:
    """State and start of a process from /proc; None where there is no such file."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    rest = text.rpartition(")")[2].split()
    return rest[0], int(rest[19])


def _code(pid: int) -> int | None:
    """The exit code of a process that this server started and that has ended; None where it is not known."""
    process = _started.get(pid)
    return None if process is None else process.poll()


def _alive(pid: int, ticks: int | None) -> bool:
    """Whether the process runs, and is still the one that began at `ticks`."""
    if pid in _started and _started[pid].poll() is not None:
        return False
    if ticks is None:
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return True
    now = _ticks(pid)
    return now is not None and now[0] != "Z" and now[1] == ticks


def _folder(root: Path) -> Path:
    return root / ".jobs"


def _job(folder: Path, row: dict[str, Any]) -> Job:
    arguments = tuple(map(str, row["arguments"]))
    return Job(
        folder, str(row["title"]), arguments, Path(row["out"]), int(row["pid"]), row["ticks"], float(row["started"])
    )


def jobs(root: Path) -> list[Job]:
    """Every job of a runs root, the latest first."""
    found = []
    for path in sorted(_folder(root).glob("*/job.json"), reverse=True):
        row = _read(path)
        try:
            found.append(_job(path.parent, row))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def running(root: Path) -> Job | None:
    """The job in progress, whoever started it."""
    return next((job for job in jobs(root) if job.state == "running"), None)


def _tidy(root: Path) -> None:
    """Drop the folders of jobs that ended well a while ago."""
    for job in jobs(root):
        if job.seconds > KEPT and job.state == "done":
            job.dismiss()


def start(root: Path, title: str, arguments: Sequence[str], name: str, *, file: bool = False) -> Job:
    """Start a command whose result will lie in the runs root, named by the time and `name`.

    Args:
        root: the runs root.
        title: what it is, for people.
        arguments: of `probe`, without where the result goes.
        name: what the result is called, behind the time.
        file: the result is a file (of `probe eval`, `causes`, `generate`), not a run folder.

    Raises:
        ProbeError: another one is in progress, or the runs root cannot be written.
    """
    with _starting:
        other = running(root)
        if other is not None:
            raise ProbeError(f"{other.title} is in progress; wait for it, or stop it")
        try:
            root.mkdir(parents=True, exist_ok=True)
            _tidy(root)
            folder = _free(root, name)
            out = root / (f"{folder.name}.json" if file else folder.name)
            return _spawn(folder, title, (*arguments, "--out", str(out), "--quiet"), out)
        except OSError as error:
            raise ProbeError(f"the runs folder cannot be written ({error.strerror}); mend that, or launch with another "
                             "one: streamlit run app/main.py -- --runs DIR") from None  # fmt: skip


def resume(root: Path, job: Job) -> Job:
    """Go on with a run that was stopped or killed.

    Raises:
        ProbeError: another one is in progress, or nothing of it was kept.
    """
    kept = job.unfinished
    if kept is None:
        raise ProbeError("nothing of that run was kept; start it again")
    with _starting:
        if running(root) is not None:
            raise ProbeError("a run is in progress; wait for it, or stop it")
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        return _spawn(job.folder, job.title, ("run", "--resume", str(kept), "--quiet"), job.out)


def environment() -> dict[str, str]:
    """Of a process that imports the packages from where this one does: Streamlit's main file puts them on the path."""
    here = str(Path(__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}


def _spawn(folder: Path, title: str, arguments: Sequence[str], out: Path) -> Job:
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "probe", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=log, start_new_session=True, env=environment() | {PROGRESS: str(folder / "progress.json")},
        )  # fmt: skip
    _started[process.pid] = process
    began = _ticks(process.pid)
    job = Job(folder, title, tuple(arguments), out, process.pid, began and began[1], time.time())
    row = {key: value for key, value in asdict(job).items() if key != "folder"} | {"out": str(out)}
    (folder / "job.json").write_text(json.dumps(row, indent=1), encoding="utf-8")
    return job


def _free(root: Path, name: str) -> Path:
    """A job's folder, whose name is not taken by another job, a run or a file."""
    name = re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.") or "model"
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    for number in range(1, 1000):
        tried = stamp if number == 1 else f"{stamp}-{number}"
        if any((root / f"{tried}{end}").exists() for end in ("", ".json", ".unfinished")):
            continue
        try:
            (_folder(root) / tried).mkdir(parents=True)
        except FileExistsError:
            continue
        return _folder(root) / tried
    raise ProbeError("no free name for the run; wait a second")


def remaining(job: Job) -> str:
    """How long it ran and will run, for people."""
    left = job.left
    if left is None:
        said = "a first estimate comes soon"
    else:
        said = "nearly done" if left < 1 else f"about {words.duration(left)} left"
    return f"{words.duration(job.seconds)}, {said}"
