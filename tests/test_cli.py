"""The `probe` command as a user meets it: in its own process."""

from __future__ import annotations

import argparse
import ast
import json
import pkgutil
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from probe.commands.ending import exit_code, flags
from probe.commands.main import build_parser, main
from probe.errors import FieldError, ProbeError, literal, unknown
from probe.recording.folder import Run
from probe.text import format_table, parse_numbers

ROOT = Path(__file__).parents[1]
Cli = Callable[..., subprocess.CompletedProcess]
BASE = ("--input", "token:5", "--length", "200", "--scheme", "origin,rerope")


def test_json_is_one_object_and_nothing_else(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    done = cli(
        "run",
        "--model",
        str(tiny_folder),
        *BASE,
        "--layer",
        "1,2",
        "--dim",
        "0-2",
        "--out",
        str(tmp_path / "r"),
        "--json",
        "--detector",
        "paper",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {"run", "kind", "complete", "settings", "provenance", "rows"}
    assert result["kind"] == "run" and result["complete"] and result["settings"]["window"] == 64
    assert len(result["rows"]) == 2 * 2 * 3
    needed = {"scheme", "site", "layer", "dim", "detector", "threshold", "direction", "predicted", "measured"}
    assert all(needed <= set(row) for row in result["rows"])
    run = Run(Path(result["run"]))
    origin = result["rows"][0]
    assert origin["threshold"] == pytest.approx(run.series("origin", "resid", 1, 0)[64])  # H is the value at M
    assert "rerope" in done.stderr  # the progress bar


def test_the_table_names_figure_and_run(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    done = cli(
        "run",
        "--model",
        str(tiny_folder),
        *BASE,
        "--out",
        str(tmp_path / "r"),
        "--quiet",
        "--site",
        "attn,mlp",
    )
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads((tmp_path / "r" / "run.json").read_text())["detector"] == "range"  # the default
    assert str(tmp_path / "r" / "figure.html") in done.stdout
    for word in ("predicted", "measured", "threshold", "rerope", "mlp"):
        assert word in done.stdout


BAD = [
    (("--model", "no-such-model"), "unknown model 'no-such-model'"),
    (("--model", "./missing"), "no such folder; embedded models: rope"),
    (("--layer", "9"), "--layer: expected 1 to 3"),
    (("--layer", "x"), "--layer: expected numbers like 1,2 or 0-19 or all, got 'x'"),
    (("--dim", "48"), "--dim: expected 0 to 47, the hidden dimensions of site resid, got 48"),
    (("--dim", "5-2"), "--dim: expected a range that ends where it begins or later, got '5-2'"),
    (("--site", "head"), "known: resid, attn, mlp"),
    (("--length", "1"), "--length: expected at least 2, got 1"),
    (("--scheme", "magic"), "unknown scheme 'magic'; known: origin"),
    (("--scheme", "rerope(Q=1)"), "unknown parameter 'Q'; known: N"),
    (("--scheme", "rerope+magic"), "unknown part 'magic' after '+'; known: logn, mscale, lambda, bottom"),
    (("--scheme", "rerope+stair"), "both sides choose the weave"),
    (("--detector", "mean"), "unknown detector 'mean'; known: range, paper"),
    (("--backend", "fast"), "unknown backend 'fast'"),
    (("--dtype", "int8"), "unknown dtype 'int8'; known: auto, float32"),
    (("--device", "cuda:77"), "--device cuda:77: not usable here"),
    (("--window", "1"), "--window: expected at least 2"),
    (("--window", "0"), "--window: expected at least 2 tokens, got 0"),
    (("--out", ""), "argument --out: expected a name, got ''"),
    (("--input", ""), "unknown input kind ''"),
    (("--model", "construction:3.3(M=6)", "--window", "64"), "say construction:3.3(M=64)"),
    (("--input", "token:4096"), "outside the vocabulary 0 to 96"),
    (("--samples", "3"), "which is one sequence"),
    (("--burn-in", "64"), "burn-in: expected at most 62 for window 64, got 64"),
    (("--burn-in", "5000"), "burn-in: expected at most 62 for window 64, got 5000"),
    (("--chunk-batch", "few"), "--chunk-batch: expected auto or an integer >= 1, got few"),
    (("--scheme", ""), "--scheme: expected at least one scheme, got none"),
    (("--scheme", "origin,,mesa"), "--scheme: expected a scheme before and after every comma, got 'origin,,mesa'"),
    (("--run-length", "0"), "--run-length: expected at least 1"),
    (("--margin", "nan"), "--margin: expected at least 0"),
    (("--length", "100000000000"), "expected less than the memory holds"),
    (("--length", "ten"), "invalid int value"),
    (("--seed", "-1"), "--seed: expected a number from 0 to 2**63 - 1, got '-1'"),
    (("--frobnicate",), "unrecognized arguments"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    says: str,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "runs" / "r"
    try:
        code = main(["run", "--model", str(tiny_folder), *BASE, "--out", str(out), "--quiet", *arguments])
    except SystemExit as error:  # the parser's own exit
        code = error.code
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    assert says in printed.err and printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert not out.exists() and (not out.parent.exists() or not any(out.parent.iterdir()))


def test_an_unwritable_place_is_one_line(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = cli("run", "--model", str(tiny_folder), *BASE, "--out", str(tmp_path / "file" / "r"), "--quiet")
    assert done.returncode == 2 and "cannot write there" in done.stderr and done.stderr.count("\n") == 1


def broken(tiny_folder: Path, folder: Path) -> Path:
    """A copy of the tiny model with one NaN weight in layer 2."""
    folder.mkdir()
    (folder / "config.json").write_text((tiny_folder / "config.json").read_text())
    weights = load_file(tiny_folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_nan_hidden_states_are_named_and_nothing_is_left(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    model = broken(tiny_folder, tmp_path / "broken")
    done = cli(
        "run",
        "--model",
        str(model),
        *BASE,
        "--layer",
        "1,2",
        "--dim",
        "0",
        "--out",
        str(tmp_path / "runs" / "r"),
        "--quiet",
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "hidden states are NaN or infinite under origin at resid.2 from position 0" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_pickled_weights_are_refused_unless_asked_for_by_name(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_folder / "config.json").read_text())
    torch.save(load_file(tiny_folder / "model.safetensors"), folder / "pytorch_model.bin")
    call = ("run", "--model", str(folder), *BASE, "--out", str(tmp_path / "r"), "--quiet")
    refused = cli(*call)
    assert refused.returncode == 2 and "need --allow-pickle" in refused.stderr and refused.stderr.count("\n") == 1
    assert cli(*call, "--allow-pickle").returncode == 0


def test_an_unsupported_family_is_refused_by_name(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    done = cli("run", "--model", str(tmp_path), "--out", str(tmp_path / "r"), "--quiet")
    assert done.returncode == 2 and "'gpt2' does not fit the position seam: its positions are learned" in done.stderr


@pytest.mark.parametrize("detector", ["paper", "range"])
@pytest.mark.parametrize("length", [2, 9, 40, 64])
def test_an_input_inside_the_window_runs_and_says_so(
    length: int, detector: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    call = ["run", "--model", str(tiny_folder), "--input", "token:5", "--length", str(length), "--detector", detector]
    assert main([*call, "--scheme", "origin,rerope", "--out", str(tmp_path / "r"), "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "do not reach past the window of 64" in printed.err
    rows = json.loads(printed.out)["rows"]
    assert {row["predicted"] for row in rows if row["scheme"] == "origin"} == {None}


@pytest.mark.parametrize("command", [("--help",), ("run", "--help"), ("eval", "--help"), ("models",), ("schemes",)])
def test_help_and_lists_need_no_model(command: tuple[str, ...], cli: Cli) -> None:
    done = cli(*command)
    assert done.returncode == 0 and len(done.stdout) > 200


def test_lists_as_json(cli: Cli) -> None:
    models, schemes = (json.loads(cli(what, "--json").stdout) for what in ("models", "schemes"))
    assert "rope" in {row["name"] for row in models["models"]} and "llama" in models["families"]
    stair = next(row for row in schemes["schemes"] if row["name"] == "stair")
    assert schemes["window"] == 4096 and stair["parameters"] == {"N": 512, "E": 50}
    bottom = next(row for row in schemes["options"] if row["name"] == "bottom")
    assert bottom["parameters"] == {"L": 512, "N": 512, "E": 50} and "logn" in schemes["extras"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("eval", "--out", ""), "argument --out: expected a name, got ''"),
        (("eval", "--lengths", ""), "--lengths: expected numbers"),
        (("eval", "--lengths", "all"), "--lengths: expected numbers like 1,2 or 0-19, got 'all'"),
        (("eval", "--tail", "9999"), "--tail: is for --task nll, got --task passkey; leave it out"),
        (("audit", "--first", "600"), "--first: expected 1 to 510, so that chunks follow within 512 tokens, got 600"),
        (("audit", "--chunk", "511"), "--chunk: expected 1 to "),
        (("eval", "--scheme", ""), "--scheme: expected at least one scheme, got none"),
        (("bench", "prefill", "--out", " "), "argument --out: expected a name, got ' '"),
        (("bench", "prefill", "--window", "0"), "--window: expected at least 2 tokens, got 0"),
        (("bench", "prefill", "--model", ""), "unknown model ''"),
        (("audit", "--chunk", ""), "--chunk: expected numbers"),
    ],
)
def test_what_is_empty_or_zero_is_not_taken_for_what_is_not_given(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture
) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and says in printed.err and printed.err.count("\n") == 1


def test_a_window_above_the_models_own_is_warned_of(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    call = ["run", "--model", str(tiny_folder), *BASE, "--json", "--quiet"]
    assert main([*call, "--window", "80", "--out", str(tmp_path / "above")]) == 0
    warned = capsys.readouterr().err
    assert "probe: warning: --window 80 is above the 64 of the model's config" in warned and warned.count("\n") == 1
    assert main([*call, "--window", "64", "--out", str(tmp_path / "same")]) == 0
    assert capsys.readouterr().err == ""


def test_versions_and_where_the_theorems_are(capsys: pytest.CaptureFixture) -> None:
    from importlib.metadata import version

    expected = [f"{name} {version(name)}" for name in ("weavescope", "torch", "transformers")]
    for option, says in (("--version", expected), ("--help", ["python -m constructions verify"])):
        with pytest.raises(SystemExit) as ended:
            main([option])
        assert ended.value.code == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert all(text in printed for text in says)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_long_computation_at_once(number: signal.Signals) -> None:
    endless = (
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # minutes inside one call, as a large product of matrices
    )
    code = (
        "import hashlib; from probe.commands.ending import *\n"
        f"with stoppable():\n print('ready', flush=True); exit_code(lambda: {endless})"
    )
    listening = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, preexec_fn=listening) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for the computation
            process.wait(1)
        process.send_signal(number)
        try:
            assert process.wait(30) == 128 + number
        finally:
            process.kill()


def test_a_command_can_be_called_outside_the_main_thread(capsys: pytest.CaptureFixture) -> None:
    before, codes = signal.getsignal(signal.SIGTERM), list[int]()
    thread = threading.Thread(target=lambda: codes.append(main(["schemes"])))
    thread.start()
    thread.join()
    assert codes == [0] and "mesa" in capsys.readouterr().out and signal.getsignal(signal.SIGTERM) is before


def test_numbers() -> None:
    assert parse_numbers("1,2", "dim", ()) == (1, 2)
    assert parse_numbers("3-5,4,0", "dim", ()) == (3, 4, 5, 0)
    assert parse_numbers("all", "dim", range(3)) == (0, 1, 2)
    assert parse_numbers("-1", "dim", ()) == (-1,)
    for text in ("", "a", "1-", "1..3", "0-9999999999"):
        with pytest.raises(ProbeError):
            parse_numbers(text, "dim", ())


def test_tables_align_and_write_a_dash_for_none() -> None:
    table = format_table([{"a": "x", "n": 1.23456}, {"a": "long", "n": None}], ("a", "n"))
    assert table.splitlines() == ["a         n", "----  -----", "x     1.235", "long      -"]
    assert np.all([line == line.rstrip() for line in table.splitlines()])


def test_whatever_lacks_memory_is_one_line_and_other_errors_are_not_hidden(capsys: pytest.CaptureFixture) -> None:
    def allocate() -> None:
        torch.empty(1 << 60)

    def fail() -> None:
        raise RuntimeError("of another kind")

    assert exit_code(allocate) == 2
    assert "expected less than the memory holds" in (line := capsys.readouterr().err) and line.count("\n") == 1
    with pytest.raises(RuntimeError, match="of another kind"):
        exit_code(fail)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scheme", "origin,magic"),
        ("--scheme", "origin,,mesa"),
        ("--scheme", "rerope+magic"),
        ("--scheme", "rerope(N=1"),
        ("--backend", "fast"),
        ("--chunk-batch", "0"),
        ("--detector", "mean"),
        ("--site", "head"),
    ],
)
def test_what_needs_no_model_is_refused_before_it_is_loaded(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probe.commands import options

    def load(_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(options, "load", load)
    assert main(["run", *arguments]) == 2
    if arguments[0] == "--scheme":
        assert main(["eval", *arguments]) == 2
    assert "probe: error: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--burn-in", "63"), ("--scheme", "rerope(N=0)"), ("--dim", "48")])
def test_the_rest_is_refused_before_anything_is_computed(
    arguments: tuple[str, ...], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probe.studies import run as runner

    def compute(*_: object) -> None:
        raise AssertionError("a pass was run")

    monkeypatch.setattr(runner, "run_pass", compute)
    assert main(["run", "--model", str(tiny_folder), *BASE, *arguments, "--out", str(tmp_path / "r"), "--quiet"]) == 2


def leaves(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every subcommand's parser."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for name, member in group.choices.items():
            yield from leaves(member, (*path, name))
    if not groups:
        yield path, parser


def test_every_subcommand_says_what_it_is_in_python() -> None:
    helps = {path: parser.format_help() for path, parser in leaves(build_parser())}
    assert {("run",), ("eval",), ("audit",), ("peers",), ("tables",), ("train",), ("accept",)} <= set(helps)
    assert {("bench", what) for what in ("attention", "prefill", "decode", "memory", "gpu", "official", "figure")} | {
        ("figure", "schemes"),
        ("figure", "mesa"),
    } <= set(helps)
    for path, text in helps.items():
        last = text.strip().splitlines()[-1]
        assert last.startswith("In Python: "), path
        named = re.match(r"In Python: (probe(?:\.\w+)+)", last)
        if named is not None:  # what is not the public face is there
            assert pkgutil.resolve_name(named[1]), path


def test_seeds_are_0_everywhere_unless_given() -> None:
    seeds = {path: parser.get_default("seed") for path, parser in leaves(build_parser())}
    assert {path for path, seed in seeds.items() if seed is not None} >= {("run",), ("eval",), ("peers",), ("accept",)}
    assert set(seeds.values()) == {0, None}  # None: the command draws nothing


def test_help_needs_no_heavy_library() -> None:
    heavy = ("torch", "numpy", "transformers", "pandas")
    code = (
        "import sys; from probe.commands.main import build_parser; build_parser().format_help()\n"
        f"print(*(set({heavy!r}) & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_slip_in_a_name_is_told_what_there_is(capsys: pytest.CaptureFixture) -> None:
    for arguments, says in (
        (["evla"], "unknown command 'evla'; known: run, eval,"),
        (["bench", "gpus"], "unknown benchmark 'gpus'; known: attention,"),
        (["figure", "masa"], "did you mean mesa?"),
        (["train", "ropes"], "unknown embedded model 'ropes'; known: rope,"),
        (["peers", "--peer", "reropy", "--checkout", ".", "--python", "p"], "unknown peer 'reropy'; known: rerope,"),
        (["train", "rope", "--steps", "0"], "--steps: expected at least 1, got 0"),
        (["accept", "rope", "--samples", "3"], "--samples: expected at least 10, got 3"),
        (["figure", "mesa", "/tmp", "--length", "9"], "--length: expected more than the window of 512, got 9"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert says in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_a_place_that_cannot_be_written_is_called_as_the_command_calls_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    for what in ("schemes", "mesa"):
        assert main(["figure", what, str(tmp_path / "file" / "in")]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"probe: error: DIR {tmp_path / 'file' / 'in'}: cannot write there") and "\n" in err


def test_each_face_words_a_field() -> None:
    error = FieldError("chunk_batch", "less than {run_length}", 4, hint=f"not {literal('{length}')}")
    assert str(error) == "chunk_batch: expected less than run_length, got 4; not {length}"
    assert error.worded(flags()) == "--chunk-batch: expected less than --run-length, got 4; not {length}"
    assert error.worded(flags({"run_length": "RUN"})) == "--chunk-batch: expected less than RUN, got 4; not {length}"
    assert FieldError("layers", "some", "none").worded(flags()) == "--layer: expected some, got none"
    assert unknown("key of {model}", "{length}", ["a"]).worded(flags()) == "unknown key of --model '{length}'; known: a"


def test_nothing_below_the_command_line_knows_its_options() -> None:
    """Messages name fields, and a face words them."""
    found = []
    for path in sorted(ROOT.glob("probe/**/*.py")):
        room = path.relative_to(ROOT / "probe").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if room != "commands" and isinstance(node, ast.Raise):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                found += [str(path) for text in texts if isinstance(text, str) and re.search(r"(^|\s)--[a-z]", text)]
    assert not found
