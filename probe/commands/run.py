"""`probe run`: record, predict and measure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from probe.commands import options, show
from probe.commands.command import Command
from probe.text import parse_numbers

if TYPE_CHECKING:
    from probe.models.load import LoadedModel
    from probe.recording.info import RunInfo
    from probe.studies.passes import PassStore

_EXAMPLES = """\
examples:
  probe run                                       the embedded model, four windows long, every default
  probe run --model ./my-llama --layer all --dim 0-19 --scheme origin,rerope,stair
  probe run --scheme "origin,rerope(N=64),rerope(N=64)+logn" --length 4096 --site resid,attn
  probe run --model "construction:3.3(M=6,N=2)" --length 200     a theorem's toy transformer
  probe run --model meta-llama/Llama-2-7b-hf --length 12000 --input word:hello --device cuda

The table shows, per scheme and dimension, the threshold H, the position where the hidden state lastingly crosses it
(predicted) and the position where the likelihood leaves its in-window band (measured), or that there is none, or that
this cannot be told, and why.
Positions are 0-based: the trained window M is positions 0 to M-1.
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    what = parser.add_argument_group("what is recorded")
    what.add_argument("--layer", help="layers, 1 is the first: 1,2 or 1-4 or all (default: 1,2)")
    what.add_argument("--dim", help="hidden dimensions, from 0: 1,6 or 0-19 or all (default: 0,1)")
    what.add_argument(
        "--site", default="resid", help="resid (layer output), attn, mlp; entropy, score_max, ... per head, with heads "
        "for --dim; or several; `probe choices site` lists them (default: resid)",
    )  # fmt: skip
    options.add_scheme(what, None, "origin,dynamic-ntk,rerope; origin,rerope,stair without RoPE")
    what.add_argument("--length", type=int, help="tokens (default: four windows, two of long ones, or a file whole)")
    what.add_argument(
        "--input",
        help="word:TEXT, token:ID, ids:FILE (JSON list), text:FILE, heldout, ... (default: heldout; word:hello for "
        "the embedded models)",
    )
    options.add_samples(what, 1, "sequences to average over, for --input heldout")
    judge = parser.add_argument_group("how it is judged")
    judge.add_argument(
        "--detector",
        help="range (seen inside the window), paper (value at M), ...; default: range, paper for constructions",
    )
    judge.add_argument("--burn-in", type=int, help="first position of the in-window reference (default: M/8)")
    judge.add_argument("--run-length", type=int, help="positions that a crossing must last (default: max(8, M/16))")
    judge.add_argument("--margin", type=float, default=3.0, help="robust standard deviations of slack (default: 3)")
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--backend", default="pieces", help="pieces (fast) or dense (the T x T reference; default: pieces)"
    )
    how.add_argument(
        "--weave-local", action="store_true",
        help="let schemes act on layers too that are local by design (sliding window at most M), within their window; "
        "by default these stay as trained",
    )  # fmt: skip
    how.add_argument(
        "--chunk-batch", default="auto", metavar="N",
        help="middle chunks of a chunked prompt (mesa, star) in one call, or auto: as many as 64 MiB of activations "
        "hold on CPU, 2 GiB on a GPU; memory and speed, not results",
    )  # fmt: skip
    options.add_seed(how, "of what is drawn of --input heldout")
    how.add_argument("--out", type=options.path, help="run folder to make (default: runs/TIME-MODEL)")
    how.add_argument("--force", action="store_true", help="replace a run that is at --out already")
    how.add_argument(
        "--resume", type=options.path, metavar="FOLDER",
        help="go on with a run that was interrupted, from the folder that it left; what else it needs is in there",
    )  # fmt: skip
    how.add_argument(
        "--reproduce", type=options.path, metavar="RUN",
        help="make that run once more and compare; its settings count, of those here only --out, --json, --quiet, "
        "--trust-remote-code and --allow-pickle; exit code 1 where a verdict differs",
    )  # fmt: skip
    options.add_json(how)
    how.add_argument("--quiet", action="store_true", help="no progress bar")


def _numbers(text: str | None, what: str, everything: Sequence[int]) -> tuple[int, ...] | Literal["all"] | None:
    if text is None or text.strip() == "all":
        return "all" if text else None
    return parse_numbers(text, what, everything)


_OWN = ("run", "words", "resume", "reproduce", "quiet", "json")
"""What is not part of what is gone on with."""


def _stored(args: argparse.Namespace) -> PassStore:
    """Where passes are kept until the run is whole. With --resume, the options are those of the run that was
    interrupted.
    """
    from probe.studies.passes import PassStore, read_about, unfinished_folder

    if args.resume is None:
        args.out = args.out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{Path(args.model).name}"
        args.out = args.out.expanduser().absolute()
        command = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        return PassStore(unfinished_folder(args.out), {key: value for key, value in command.items() if key not in _OWN})
    folder = args.resume.expanduser().absolute()
    command = read_about(folder)["command"]
    vars(args).update(command)
    args.out = Path(args.out)
    return PassStore(folder, command, resumed=True)


def _reproduced(args: argparse.Namespace) -> int:
    """Make a run once more and say what differs."""
    from probe.models.load import load_model
    from probe.studies.reproduce import reproduce

    def load(info: RunInfo) -> LoadedModel:
        return load_model(
            info.model, device=info.device, dtype=info.dtype, window=info.window, length=info.input.length,
            trust_remote_code=args.trust_remote_code, allow_pickle=args.allow_pickle,
        )  # fmt: skip

    with options.bar(args.quiet) as (progress, _):
        changed, rows = reproduce(args.reproduce, args.out, load=load, progress=progress)
    show.reproduced(changed, rows, args.json)
    return int(not all(row.alike for row in rows))


def _run(args: argparse.Namespace) -> int | None:
    from probe.studies.run import RunSettings, run_probe
    from probe.thresholds.detectors import DetectorSettings

    if args.reproduce is not None:
        return _reproduced(args)
    store = _stored(args)
    settings = RunSettings(
        sites=tuple(dict.fromkeys(part.strip() for part in args.site.split(","))), schemes=args.scheme,
        input=args.input, length=args.length, samples=args.samples, detector=args.detector,
        detection=DetectorSettings(args.burn_in, args.run_length, args.margin), backend=args.backend,
        chunk_batch=args.chunk_batch, seed=args.seed, weave_local=args.weave_local,
    )  # fmt: skip
    loaded = options.load(args)
    settings = replace(
        settings,
        layers=_numbers(args.layer, "layers", range(1, loaded.layers + 1)),
        dims=_numbers(args.dim, "dims", range(loaded.model.config.hidden_size)),
    )
    try:
        with options.bar(args.quiet) as (progress, _):
            run = run_probe(loaded, settings, args.out, force=args.force, progress=progress, store=store)
    except BaseException:
        if store.done:
            print(
                f"probe: {store.done} passes are kept; go on with: probe run --resume {store.folder}", file=sys.stderr
            )
        raise
    show.run(run, args.json)
    return None


COMMAND = Command(
    "run", "record hidden states past the window, predict failure and measure it", _options, _run,
    python="weavescope.load(...).probe(...)", more=_EXAMPLES,
)  # fmt: skip
