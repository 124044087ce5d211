"""The `probe` command: parse, call, print. No science lives here."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from probe.errors import ProbeError, exit_code, stoppable
from probe.text import format_table, parse_numbers

if TYPE_CHECKING:
    from probe.recording.folder import Run
    from probe.thresholds.verdicts import Verdict

_RUN_EXAMPLES = """\
examples:
  probe run                                       the embedded model, four windows long, every default
  probe run --model ./my-llama --layer all --dim 0-19 --scheme origin,rerope,stair
  probe run --scheme "origin,rerope(N=64),rerope(N=64)+logn" --length 4096 --site resid,attn
  probe run --model "construction:3.3(M=6,N=2)" --length 200     a theorem's toy transformer
  probe run --model meta-llama/Llama-2-7b-hf --length 12000 --input word:hello --device cuda

The table shows, per scheme and dimension, the threshold H, the position where the hidden state lastingly crosses it
(predicted) and the position where the likelihood leaves its in-window band (measured); '-' is none.
Positions are 0-based: the trained window M is positions 0 to M-1.
"""


_SCHEME_HELP = "schemes, separated by commas: stair, stair(N=64,E=8), rerope+logn, stair+yarn; see 'probe schemes'"


class _Parser(argparse.ArgumentParser):
    """Errors are one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Versions(argparse.Action):
    """Prints the versions and ends; they are looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from probe.provenance import Provenance

        versions = Provenance.now().versions
        print(", ".join(f"{name} {versions[name]}" for name in ("weavescope", "torch", "transformers")))
        parser.exit()


def _path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a name, got {text!r}")
    return Path(text)


def _seed(text: str) -> int:
    if not (text.isdecimal() and int(text) < 1 << 63):
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="rope",
        metavar="M",
        help="embedded name, local folder, hub id or construction:THEOREM (default: rope)",
    )
    group.add_argument("--window", type=int, metavar="M", help="trained window, if the config's is wrong or missing")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        help="auto, float32, float64, bfloat16, float16 (default: float32 on CPU, the checkpoint's elsewhere)",
    )
    group.add_argument("--trust-remote-code", action="store_true", help="run Python code from the model's repository")
    group.add_argument(
        "--allow-pickle",
        action="store_true",
        help="accept weights that are not safetensors (loading them can run code)",
    )


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run", help="record hidden states past the window, predict failure and measure it", epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_model_options(run)
    what = run.add_argument_group("what is recorded")
    what.add_argument("--layer", help="layers, 1 is the first: 1,2 or 1-4 or all (default: 1,2)")
    what.add_argument("--dim", help="hidden dimensions, from 0: 1,6 or 0-19 or all (default: 0,1)")
    what.add_argument("--site", default="resid", help="resid (layer output), attn, mlp, or several (default: resid)")
    what.add_argument(
        "--scheme", help=f"{_SCHEME_HELP} (default: origin,dynamic-ntk,rerope; origin,rerope,stair without RoPE)"
    )
    what.add_argument("--length", type=int, help="tokens (default: four windows, or a file whole)")
    what.add_argument(
        "--input",
        help="word:TEXT, token:ID, ids:FILE (JSON list), text:FILE, heldout (default: word:hello)",
    )
    what.add_argument(
        "--samples", type=int, default=1, help="sequences to average over, for --input heldout (default: 1)"
    )
    judge = run.add_argument_group("how it is judged")
    judge.add_argument(
        "--detector",
        help="range (seen inside the window) or paper (value at M); default: range, paper for constructions",
    )
    judge.add_argument("--burn-in", type=int, help="first position of the in-window reference (default: M/8)")
    judge.add_argument("--run-length", type=int, help="positions that a crossing must last (default: max(8, M/16))")
    judge.add_argument("--margin", type=float, default=3.0, help="robust standard deviations of slack (default: 3)")
    how = run.add_argument_group("how it runs")
    how.add_argument(
        "--backend", default="pieces", help="pieces (fast) or dense (the T x T reference; default: pieces)"
    )
    how.add_argument(
        "--chunk-batch", default="auto", metavar="N",
        help="middle chunks of a chunked prompt (mesa, star) in one call, or auto: as many as 64 MiB of activations hold on "
        "CPU, 2 GiB on a GPU; memory and speed, not results",
    )  # fmt: skip
    how.add_argument("--seed", type=_seed, default=0)
    how.add_argument("--out", type=_path, help="run folder to make (default: runs/TIME-MODEL)")
    how.add_argument("--force", action="store_true", help="replace a run that is at --out already")
    how.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    how.add_argument("--quiet", action="store_true", help="no progress bar")
    run.set_defaults(command=_run)


def _add_eval(commands: Any) -> None:
    evaluate = commands.add_parser("eval", help="pass-key accuracy or likelihood at chosen lengths, under any scheme")
    _add_model_options(evaluate)
    evaluate.add_argument("--task", default="passkey", help="passkey or nll (default: passkey)")
    evaluate.add_argument("--scheme", default="origin", help=f"{_SCHEME_HELP} (default: origin)")
    evaluate.add_argument("--lengths", default=None, help="tokens, e.g. 128,512 (default: M/4, M/2, M, 2M)")
    evaluate.add_argument("--samples", type=int, default=50, help="samples per length (default: 50)")
    evaluate.add_argument("--seed", type=_seed, default=1)
    evaluate.add_argument(
        "--tail", type=int, help="--task nll: mean over the last so many positions (default: a quarter)"
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    evaluate.add_argument(
        "--out", type=_path, metavar="FILE", help="write the JSON object there too, as far as it is done"
    )
    evaluate.add_argument("--quiet", action="store_true", help="no progress bar")
    evaluate.set_defaults(command=_eval)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="time and memory of schemes beside the stock model, on the same weights")
    bench.add_argument("what", help="attention (one layer), prefill, decode (seconds per step) or memory")
    bench.add_argument("--scheme", default="origin,rerope,stair", help=f"{_SCHEME_HELP} (default: origin,rerope,stair)")
    bench.add_argument("--lengths", default="2048,4096,8192", help="tokens (default: 2048,4096,8192)")
    bench.add_argument(
        "--model",
        metavar="M",
        help="as for 'probe run', or random weights (default: random:layers=4,width=512,heads=8)",
    )
    bench.add_argument("--window", type=int, metavar="M", help="trained window that the schemes are made for")
    bench.add_argument("--repeats", type=int, default=5, help="timed repeats, after a warm-up (default: 5)")
    bench.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    bench.add_argument("--dtype", default="float32", help="as for 'probe run' (default: float32)")
    bench.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    bench.add_argument("--backend", default="pieces", help="pieces or dense (default: pieces)")
    bench.add_argument(
        "--memory", action="store_true", help="peak memory of timed rows too (on CPU a process for each)"
    )
    bench.add_argument("--seed", type=_seed, default=0)
    bench.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    bench.add_argument("--out", type=_path, metavar="FILE", help="write the JSON object there too, length by length")
    bench.add_argument("--quiet", action="store_true", help="no progress lines")
    bench.set_defaults(command=_bench)


def _add_audit(commands: Any) -> None:
    audit = commands.add_parser(
        "audit", help="what share of a trained model's attention a chunked prefill (mesa) would not see"
    )
    _add_model_options(audit)
    audit.add_argument("--chunk", help="widths of the middle chunks in tokens: 64,128 (default: M/8, M/4, M/2)")
    audit.add_argument("--first", type=int, help="tokens of chunk 0 (default: mesa's F)")
    audit.add_argument("--length", type=int, help="tokens, at most the window (default: the window)")
    audit.add_argument("--input", default="heldout", help="as in probe run (default: heldout)")
    audit.add_argument("--samples", type=int, default=16, help="sequences, for --input heldout (default: 16)")
    audit.add_argument("--seed", type=_seed, default=0)
    audit.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    audit.set_defaults(command=_audit)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(
        prog="probe", description="Where does a language model break past its training window, and what do weave schemes do about it?",
        epilog="Start with 'probe run': it needs no model, no GPU and no network. Ctrl-C ends a command and keeps what is finished, a second "
        "one ends it at once. The theorems are verified by 'python -m constructions verify'.",
    )  # fmt: skip
    parser.add_argument("--version", action=_Versions, nargs=0, help="versions of weavescope, torch and transformers")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_run(commands)
    _add_eval(commands)
    _add_audit(commands)
    _add_bench(commands)
    models = commands.add_parser("models", help="list embedded models and supported families")
    models.add_argument("--json", action="store_true")
    models.set_defaults(command=_models)
    schemes = commands.add_parser("schemes", help="list position schemes with their parameters and defaults")
    schemes.add_argument(
        "--window", type=int, default=4096, help="trained window the defaults are shown for (default: 4096)"
    )
    schemes.add_argument("--json", action="store_true")
    schemes.set_defaults(command=_schemes)
    return parser


def _bar(quiet: bool) -> tuple[Any, Any]:
    """A progress callback on stderr and the function that ends it."""
    from tqdm import tqdm

    bar = tqdm(
        total=100,
        file=sys.stderr,
        disable=quiet,
        bar_format="{desc} {percentage:3.0f}%|{bar:30}| {elapsed}",
        leave=False,
    )

    def progress(share: float, line: str) -> None:
        bar.set_description_str(line, refresh=False)
        bar.n = round(100 * share)
        bar.refresh()

    return progress, bar.close


def _load(args: argparse.Namespace) -> Any:
    from probe.models.load import load_model

    loaded = load_model(
        args.model, device=args.device, dtype=args.dtype, window=args.window,
        trust_remote_code=args.trust_remote_code, allow_pickle=args.allow_pickle, length=getattr(args, "length", None),
    )  # fmt: skip
    _warn_of_window(loaded)
    return loaded


def _warn_of_window(loaded: Any) -> None:
    """A line where --window is above the window that the model's config states."""
    from probe.models.load import model_window

    stated = model_window(loaded.model.config)
    if stated is not None and loaded.window > stated:
        print(
            f"probe: warning: --window {loaded.window} is above the {stated} of the model's config: positions from {stated} on "
            "count as trained",
            file=sys.stderr,
        )


def _run(args: argparse.Namespace) -> None:
    from probe.studies.run import RunSettings, run_probe
    from probe.thresholds.detectors import DetectorSettings

    settings = RunSettings(
        sites=tuple(dict.fromkeys(part.strip() for part in args.site.split(","))), schemes=args.scheme, input=args.input,
        length=args.length, samples=args.samples, detector=args.detector,
        detection=DetectorSettings(args.burn_in, args.run_length, args.margin), backend=args.backend,
        chunk_batch=args.chunk_batch, seed=args.seed,
    )  # fmt: skip
    loaded = _load(args)
    settings = replace(
        settings,
        layers=_numbers(args.layer, "layers", range(1, loaded.layers + 1)),
        dims=_numbers(args.dim, "dims", range(loaded.model.config.hidden_size)),
    )
    out = args.out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{Path(args.model).name}"
    progress, close = _bar(args.quiet)
    try:
        run = run_probe(loaded, settings, out, force=args.force, progress=progress)
    finally:
        close()
    _print_run(run, args.json)


def _numbers(text: str | None, what: str, everything: Sequence[int]) -> tuple[int, ...] | None:
    return None if text is None else parse_numbers(text, what, everything)


TABLE_ROWS = 40
"""Rows printed; a run over every dimension has thousands, which are all in its folder."""

CANNOT_TELL = "cannot tell"


def _said(position: int | None, untold: str | None) -> int | str:
    """A position; "none" where there is none, and "cannot tell" where that cannot be known."""
    if position is not None:
        return position
    return "none" if untold is None else CANNOT_TELL


def summary(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Per scheme: how many dimensions predict a failure, the earliest and the median prediction, the measured failure."""
    lines = []
    for scheme in dict.fromkeys(verdict.scheme for verdict in verdicts):
        mine = [verdict for verdict in verdicts if verdict.scheme == scheme]
        found = sorted(verdict.predicted for verdict in mine if verdict.predicted is not None)
        untold = next((verdict.unpredicted for verdict in mine if verdict.unpredicted is not None), None)
        lines.append({
            "scheme": scheme, "failing dims": f"{len(found)} of {len(mine)}",
            "earliest": _said(found[0] if found else None, untold),
            "median": _said(found[len(found) // 2] if found else None, untold),
            "measured": _said(mine[0].measured, mine[0].unmeasured),
        })  # fmt: skip
    return lines


def reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """Why something cannot be told, each reason once, with the schemes that it holds for."""
    found: dict[str, list[str]] = {}
    for verdict in verdicts:
        for what, why in (("predicted", verdict.unpredicted), ("measured", verdict.unmeasured)):
            if why is not None:
                found.setdefault(f"{what}: {why}", []).append(verdict.scheme)
    return [f"cannot tell ({', '.join(dict.fromkeys(schemes))}) {line}" for line, schemes in found.items()]


def _print_run(run: Run, as_json: bool) -> None:
    from probe.results import Result
    from probe.thresholds.verdicts import read_verdicts

    info, verdicts = run.info, read_verdicts(run)
    if info.input.length <= info.window:
        print(
            f"probe: note: {info.input.length} tokens do not reach past the window of {info.window}",
            file=sys.stderr,
        )
    if as_json:
        result = Result("run", info.settings(), info.provenance, verdicts)
        print(json.dumps({"run": str(run.path), **result.to_json()}))
        return
    print(
        f"model {info.model}, window M = {info.window}, {info.input.length} tokens of {info.input.spec}, "
        f"detector {info.detector}\n"
    )
    rows = [
        row
        | {
            "predicted": _said(row["predicted"], row["unpredicted"]),
            "measured": _said(row["measured"], row["unmeasured"]),
        }
        for row in verdicts[:TABLE_ROWS].to_json()
    ]
    columns = ("scheme", "site", "layer", "dim", "threshold", "direction", "margin", "predicted", "measured")
    print(format_table(rows, columns))
    if len(verdicts) > TABLE_ROWS:
        print(f"... and {len(verdicts) - TABLE_ROWS} more in {run.path / 'thresholds.parquet'}")
    print()
    print(format_table(summary(verdicts), ("scheme", "failing dims", "earliest", "median", "measured")))
    print(
        "\npredicted: the hidden state lastingly crosses its threshold; measured: the likelihood leaves its in-window band"
    )
    for line in reasons(verdicts):
        print(line)
    figure = run.path / "figure.html"
    print(f"figure:  {figure if figure.exists() else 'none: plotly is not installed'}\nrun:     {run.path}")


def _eval(args: argparse.Namespace) -> None:
    from probe.results import carry_out, writable
    from probe.schemes import check_texts, parse_schemes
    from probe.tasks.evaluate import Evaluation, check_task

    check_task(args.task, args.samples, args.tail)
    check_texts(args.scheme)
    writable(args.out)
    lengths = None if args.lengths is None else parse_numbers(args.lengths, "lengths", ())
    loaded = _load(args)
    window = loaded.window
    lengths = lengths or (window // 4, window // 2, window, 2 * window)
    work = Evaluation(
        loaded, args.task, parse_schemes(args.scheme, window), lengths, args.samples, args.seed, args.tail
    )
    progress, close = _bar(args.quiet)

    def show(result: dict[str, Any]) -> None:
        close()
        _print_eval(result, args.json)

    try:
        carry_out(work, args.out, lambda line: progress(len(work.rows) / work.total, line), show)
    finally:
        close()


def _print_eval(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    print(
        f"model {result['model']}, window M = {result['window']}, task {result['task']}, {result['samples']} samples per length, "
        f"seed {result['seed']}\n"
    )
    print(format_table(result["rows"], tuple(name for name in result["rows"][0] if name != "weave")))


def _bench(args: argparse.Namespace) -> None:
    from probe.bench.report import show
    from probe.bench.run import Bench, BenchSettings
    from probe.models.random import DEFAULT
    from probe.results import carry_out, writable

    writable(args.out)
    bench = Bench.load(
        BenchSettings(
            args.what, args.scheme, parse_numbers(args.lengths, "lengths", ()), DEFAULT if args.model is None else args.model, args.window, args.repeats,
            args.threads, args.dtype, args.device, args.backend, args.seed, args.memory,
        )
    )  # fmt: skip
    _warn_of_window(bench.loaded)

    def step(line: str) -> None:
        if not args.quiet:
            print(f"probe: {line}", file=sys.stderr)

    carry_out(bench, args.out, step, lambda result: show(result, args.json))


def _audit(args: argparse.Namespace) -> None:
    from probe.schemes import make_scheme
    from probe.tasks.audit import audit

    chunks = None if args.chunk is None else parse_numbers(args.chunk, "chunk", ())
    loaded = _load(args)
    window = loaded.window
    first = args.first if args.first is not None else int(make_scheme("mesa", window).parameters["F"])
    chunks = chunks or (window // 8, window // 4, window // 2)
    result = audit(
        loaded, chunks=chunks, first=first, length=args.length, input=args.input,
        samples=args.samples if args.input == "heldout" else 1, seed=args.seed,
    )  # fmt: skip
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"model {result['model']}, {result['samples']} inputs of {result['length']} tokens ({result['input']}), chunk 0 of {first} tokens, "
        f"seed {result['seed']}\nlost: share of the attention that chunked prefill would not see; uniform: that of a uniform attention\n"
    )
    print(format_table(result["rows"], ("chunk", "layer", "head", "lost", "lost_early", "uniform")))


def _models(args: argparse.Namespace) -> None:
    from probe.models.embedded import MODELS
    from probe.seam.families import FAMILIES

    rows = [
        {"name": row.name, "positions": row.positions, "window": row.window,
         "trained": "yes" if (row.folder / "config.json").exists() else "no", "summary": row.summary}
        for row in MODELS.values()
    ]  # fmt: skip
    if args.json:
        positions = {name: row.positions for name, row in FAMILIES.items()}
        print(json.dumps({"embedded": rows, "families": list(FAMILIES), "family_positions": positions}))
        return
    print(format_table(rows, ("name", "positions", "window", "trained", "summary")))
    print("\nAny local folder or hub id of these families works too, by how positions enter:")
    loadable = [row for row in FAMILIES.values() if row.head]
    for how in dict.fromkeys(row.positions for row in loadable):
        print(f"  {how}: {', '.join(row.model_type for row in loadable if row.positions == how)}")


def _schemes(args: argparse.Namespace) -> None:
    from probe.schemes.options import OPTIONS
    from probe.schemes.presets import PRESETS, Row, shown

    if args.window < 2:
        raise ProbeError(f"--window: expected at least 2, got {args.window}")

    def described(row: Row) -> dict[str, Any]:
        return {"name": row.name, "rule": row.summary, "parameters": row.defaults(args.window), "source": row.source}

    schemes, options = ([described(row) for row in table.values()] for table in (PRESETS, OPTIONS))
    if args.json:
        extras = [row["name"] for row in options]
        print(json.dumps({"window": args.window, "schemes": schemes, "extras": extras, "options": options}))
        return
    columns = ("name", "parameters", "rule", "source")
    for rows in (schemes, options):
        if rows is options:
            print("\nafter a '+':")
        given = [", ".join(f"{key}={shown(value)}" for key, value in row["parameters"].items()) or None for row in rows]
        print(format_table([row | {"parameters": text} for row, text in zip(rows, given, strict=True)], columns))
    print(
        f"\ndefaults for a window of {args.window}; override with name(N=64,E=8), add parts with name+logn, "
        "or another scheme's choices with stair+yarn"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    args = build_parser().parse_args(argv)
    try:
        with stoppable():
            return exit_code(lambda: args.command(args), "interrupted; nothing was left half-written")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
