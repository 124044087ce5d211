"""Nothing finished is ever lost: what becomes of a run whose place was taken while it was made."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from probe.errors import FieldError
from probe.recording.folder import Run, list_runs, new_run_folder, write_json


def finished(out: Path, mark: int, *, force: bool = False) -> None:
    """A whole run's folder, which says who made it."""
    with new_run_folder(out, force=force) as part:
        write_json(part / "run.json", {"mark": mark})


def mark_of(folder: Path) -> str:
    return (folder / "run.json").read_text()


def test_a_link_to_an_empty_folder_leads_to_the_run(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    finished(link, 1)
    assert link.is_symlink() and '"mark": 1' in mark_of(target) and mark_of(link) == mark_of(target)
    finished(link, 2, force=True)
    assert link.is_symlink() and '"mark": 2' in mark_of(target)


def test_a_loop_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(FieldError, match="cannot write there"):
        finished(tmp_path / "a", 1)


@pytest.mark.parametrize("force", [False, True])
def test_what_a_person_put_there_meanwhile_stays_and_so_does_the_run(force: bool, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with (
        pytest.raises(FieldError, match="the finished run is in ") as caught,
        new_run_folder(out, force=force) as part,
    ):
        write_json(part / "run.json", {"mark": 1})
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    kept = [path for path in tmp_path.iterdir() if path != out]
    assert (out / "thesis.txt").read_text() == "mine" and len(kept) == 1
    assert str(kept[0]) in str(caught.value) and '"mark": 1' in mark_of(kept[0]) and not kept[0].name.startswith(".")
    assert [run.path for run in list_runs(tmp_path)] == kept


def test_of_two_runs_at_once_the_second_does_not_replace_the_first(tmp_path: Path) -> None:
    out, errors = tmp_path / "run", []
    both = threading.Barrier(2)

    def make(mark: int) -> None:
        try:
            with new_run_folder(out) as part:
                write_json(part / "run.json", {"mark": mark})
                both.wait(10)  # both have begun while nothing was there
        except FieldError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=make, args=(mark,)) for mark in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 1 and "the finished run is in" in errors[0]
    marks = {mark_of(path) for path in tmp_path.iterdir()}
    assert len(marks) == 2 and len(list_runs(tmp_path)) == 2


def test_two_commands_at_once_both_keep_their_run(tiny_folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "probe", "run", "--model", str(tiny_folder), "--input", "token:5", "--length", "200",
        "--quiet", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in running]
    codes = sorted(process.returncode for process in running)
    assert codes == [0, 2], said
    assert sum("--out" in text and "\n" not in text.strip() for text in said) == 1
    runs = list_runs(tmp_path)
    # The slower one was refused: while the other was on its way, or since it had ended.
    assert len(runs) in (1, 2) and all(Run(run.path).trace for run in runs)


def test_force_replaces_a_run_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "run"
    finished(out, 1)
    with pytest.raises(RuntimeError), new_run_folder(out, force=True) as part:
        write_json(part / "run.json", {"mark": 2})
        raise RuntimeError
    assert '"mark": 1' in mark_of(out)
    finished(out, 3, force=True)
    assert '"mark": 3' in mark_of(out) and [path.name for path in tmp_path.iterdir()] == ["run"]
