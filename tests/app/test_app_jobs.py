"""Jobs: real processes, really stopped and killed, on a real disk that is full or cannot be written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app import jobs
from app.estimate import estimate, facts
from app.new_run import MAX_LENGTH, Request
from probe.errors import ProbeError
from probe.recording.folder import Run, list_runs
from probe.thresholds.verdicts import read_verdicts


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def begin(runs, tiny_folder, **fields):
    kept = {"dims": "0-3", "input": "token:5", "length": 100}
    request = Request(str(tiny_folder), **kept | fields)
    return jobs.start(runs, "Run of tiny", request.arguments(), "tiny")


def long_job(runs, tiny_folder):
    """One that would take minutes: the dense reference over a long input."""
    arguments = ["run", "--model", str(tiny_folder), "--input", "token:5", "--length", "1600", "--backend", "dense",
                 "--scheme", "origin,rerope,stair,pi,ntk"]  # fmt: skip
    return jobs.start(runs, "Run of tiny", arguments, "tiny")


def ended(job):
    return job.state != "running"


def test_a_job_makes_a_run_and_its_verdicts_are_the_command_lines(runs, tiny_folder, wait_for, tmp_path, capsys):
    from probe.commands.main import main

    job = begin(runs, tiny_folder, schemes="origin,rerope(N=8)+logn", layers="2", sites=("resid", "mlp"))
    assert job.state == "running" and jobs.running(runs).name == job.name
    wait_for(lambda: ended(job))
    assert job.state == "done", job.why()
    (run,) = list_runs(runs)
    assert run.path == job.out and run.path.name.endswith("-tiny")
    assert (run.info.layers, run.info.dims, run.info.sites) == ((2,), (0, 1, 2, 3), ("resid", "mlp"))
    arguments = [one for one in job.arguments if one not in (str(job.out),)]
    out = arguments.index("--out")
    assert main([*arguments[:out], "--out", str(tmp_path / "by hand"), "--quiet", "--json"]) == 0
    assert read_verdicts(Run(tmp_path / "by hand")) == read_verdicts(run)


def test_length_left_open_is_four_windows(runs, tiny_folder, wait_for):
    job = begin(runs, tiny_folder, length=None, schemes="origin")
    wait_for(lambda: ended(job))
    assert list_runs(runs)[0].info.input.length == 4 * 64


def test_progress_can_be_read_and_a_second_one_has_to_wait(runs, tiny_folder, wait_for):
    job = long_job(runs, tiny_folder)
    wait_for(lambda: job.progress[0] > 0)
    assert job.progress[1] == "origin"
    wait_for(lambda: job.left is not None)
    assert "left" in jobs.remaining(job)
    with pytest.raises(ProbeError, match="in progress"):
        begin(runs, tiny_folder)
    job.stop()
    wait_for(lambda: ended(job))
    assert (job.state, job.why()) == ("failed", "it was stopped")
    job.dismiss()
    assert jobs.jobs(runs) == []


def test_another_server_sees_it_and_can_stop_it(runs, tiny_folder, wait_for):
    job = long_job(runs, tiny_folder)
    script = (
        "import sys; sys.path.insert(0, '.'); from pathlib import Path; from app import jobs\n"
        f"(job,) = jobs.jobs(Path({str(runs)!r})); print(job.state); job.stop()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "running"
    wait_for(lambda: ended(job))
    assert job.why() == "it was stopped"


def test_a_killed_worker_is_told_what_to_do_and_goes_on_from_what_is_kept(runs, tiny_folder, wait_for):
    job = long_job(runs, tiny_folder)
    wait_for(lambda: job.unfinished is not None and list(job.unfinished.glob("*.safetensors")))
    os.kill(job.pid, signal.SIGKILL)
    wait_for(lambda: ended(job))
    assert job.state == "failed"
    assert "killed" in job.why() and "shorter length" in job.why()
    again = jobs.resume(runs, job)
    assert again.name == job.name and jobs.running(runs).name == job.name
    again.stop()
    wait_for(lambda: ended(again))


def test_the_likelihood_so_far_is_that_of_the_schemes_that_are_done(runs, tiny_folder, wait_for):
    from app.figures import partial_figure
    from app.look import LIGHT

    job = long_job(runs, tiny_folder)
    wait_for(lambda: job.unfinished is not None and partial_figure(job.unfinished, LIGHT) is not None)
    figure = partial_figure(job.unfinished, LIGHT)
    assert {trace["name"] for trace in figure["data"]} <= {"origin", "rerope", "stair", "pi", "ntk"}
    job.stop()
    wait_for(lambda: ended(job))


def test_a_pid_that_was_given_to_another_process_is_not_the_job(runs, tiny_folder, wait_for):
    job = begin(runs, tiny_folder, schemes="origin")
    wait_for(lambda: ended(job))
    row = json.loads((job.folder / "job.json").read_text())
    (job.folder / "job.json").write_text(json.dumps(row | {"pid": os.getpid(), "ticks": 1}))
    assert jobs.jobs(runs)[0].state == "done"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"input": "token:5000"}, "outside the vocabulary 0 to 96"),
        ({"input": "token:five"}, "expected an integer token id"),
        ({"input": "word:hello"}, "has no tokenizer"),
        ({"sites": ("magic",)}, "unknown site 'magic'"),
    ],
)
def test_what_only_the_model_can_refuse_is_told(runs, tiny_folder, wait_for, fields, expected):
    job = begin(runs, tiny_folder, **fields)
    wait_for(lambda: ended(job))
    assert job.state == "failed" and expected in job.why()
    assert list_runs(runs) == [] and not job.out.exists()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"layers": "9"}, "layers: expected 1 to 3"),
        ({"dims": "60"}, "dims: expected 0 to 47"),
        ({"dims": "x"}, "dims: expected numbers"),
        ({"schemes": "magic"}, "unknown scheme 'magic'"),
        ({"sites": ()}, "sites: expected at least one"),
        ({"length": 1}, f"2 to {MAX_LENGTH}"),
        ({"length": MAX_LENGTH + 1}, f"2 to {MAX_LENGTH}"),
        ({"samples": 65}, "1 to 64"),
        ({"dims": "all", "length": MAX_LENGTH, "schemes": "origin,rerope,pi,ntk,stair,yarn,mesa,star,nope,dual-chunk",
          "sites": ("resid", "attn", "mlp")}, "expected at most"),
    ],
)  # fmt: skip
def test_what_can_be_refused_before_anything_starts_is(tiny_folder, fields, expected):
    with pytest.raises(ProbeError, match=r"expected|unknown") as caught:
        Request(str(tiny_folder), **{"input": "token:5"} | fields).arguments()
    assert expected in str(caught.value)


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path, tiny_folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbeError, match="cannot be written"):
        begin(tmp_path / "file" / "runs", tiny_folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told(runs, tiny_folder, wait_for):
    job = begin(runs, tiny_folder, schemes="origin")
    wait_for(lambda: ended(job))
    # What Python says when a write meets a full disk, from a real write.
    script = "import sys\nwith open('/dev/full', 'wb', buffering=0) as file: file.write(b'x')"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stderr
    (job.folder / "log.txt").write_text(said)
    (job.out / "run.json").unlink()
    assert "the disk is full" in job.why()


def test_two_jobs_in_one_second_have_two_folders(runs, tiny_folder, wait_for):
    made = []
    for _ in range(2):
        made.append(begin(runs, tiny_folder, dims="0", schemes="origin", length=80))
        wait_for(lambda: ended(made[-1]))
    assert len({job.out for job in made}) == len(list_runs(runs)) == 2


def test_the_page_shows_progress_then_the_run(open_app, runs, tiny_folder, wait_for):
    app = open_app("--model", tiny_folder)
    job = begin(runs, tiny_folder, schemes="origin,rerope")
    app.session_state["watched"] = job.name
    app.run()
    assert app.get("progress") or ended(job)
    wait_for(lambda: ended(job))
    app.run()
    assert app.selectbox(key="run").value == job.out.name
    assert not app.error and not app.get("progress")


def test_the_page_says_why_there_is_no_run_and_lets_it_be_dismissed(open_app, runs, tiny_folder, wait_for):
    job = begin(runs, tiny_folder, input="word:hello")
    wait_for(lambda: ended(job))
    app = open_app("--model", tiny_folder)
    assert "has no tokenizer" in app.error[0].value.replace("\\", "")
    app.button(key=f"dismiss {job.name}").click().run()
    assert not app.error


def test_facts_of_a_model_are_read_without_loading_it(tiny_folder):
    found = facts(str(tiny_folder))
    assert (found.window, found.layers, found.hidden, found.rotates) == (64, 3, 48, True)
    assert facts("somebody/elsewhere") is None
    assert facts("alibi").rotates is False


def test_an_estimate_follows_the_length_and_earlier_runs(tiny_folder, runs, probe_into):
    model = facts(str(tiny_folder))
    info = probe_into(runs / "first").info

    def seconds(length, *earlier):
        return estimate(model, str(tiny_folder), ["origin"], length, 1, 12, earlier)

    rough = [seconds(length).seconds for length in (100, 1000, 10000)]
    assert rough == sorted(rough) and not seconds(100).measured
    known = seconds(info.input.length, info)
    assert known.measured
    from app.estimate import LOADING

    assert known.seconds - LOADING == pytest.approx(info.schemes["origin"].seconds, abs=0.02)
    assert known.disk == 4 * 12 * info.input.length


def test_the_sites_on_offer_are_those_that_can_be_recorded():
    from app import words
    from probe.recording.sites import SITES

    assert list(words.SITES) and set(words.SITES) == set(SITES)


def test_the_server_loads_no_torch():
    """The whole app, until a run starts: torch would cost seconds and hundreds of megabytes."""
    script = (
        "import sys; sys.path.insert(0, '.'); import app.main as shell\nfrom importlib import import_module\n"
        "for row in shell.PAGES: import_module(f'app.views.{row.module}')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
