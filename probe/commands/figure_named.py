"""`probe figure 2|11|...|16`: the paper's figures of hidden dimensions, by their numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from probe.commands import options
from probe.commands.command import Command
from probe.text import parse_names, parse_numbers

if TYPE_CHECKING:
    from probe.models.load import LoadedModel
    from probe.recording.folder import Run
    from probe.studies.run import RunSettings

NUMBERS = {
    "2": "the paper's Fig. 2: dimensions over positions, with M, H and the likelihood",
    "11": "the paper's Fig. 11: all dimensions over positions from M on, by layer",
    "12": "the paper's Fig. 12: as Fig. 11",
    "13": "the paper's Fig. 13: as Fig. 2",
    "14": "the paper's Fig. 14: as Fig. 2, of other dimensions",
    "15": "the paper's Fig. 15: as Fig. 11",
    "16": "the paper's Fig. 16: as Fig. 11",
}
"""Said here again, so that help needs no plotly."""
_EXAMPLES = """\
examples:
  probe figure 2 pictures --model rope
  probe figure 11 pictures --model rope --scheme origin,rerope,mesa --format html,png
  probe figure 12 pictures --run runs/mine --layer 1,4        of a run that is there

The run lies in the folder too, and is taken from there the next time. Llama-2 as in the paper:
  probe figure 2 pictures --model meta-llama/Llama-2-7b-chat-hf --length 12000 --device cuda
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=options.path, metavar="DIR", help="where the pictures go; it is made")
    options.add_model(parser)
    options.add_scheme(parser, None, "those of the paper's figure")
    parser.add_argument("--input", default="word:hello", help="text, as 'probe run' takes it (default: word:hello)")
    parser.add_argument("--length", type=int, help="tokens (default: 4 windows, of long ones 2; maps: 2)")
    options.add_samples(parser, 1, "texts, of inputs that have several")
    parser.add_argument("--layer", help="numbers such as 1,2-4 (default: the paper's; of maps all, a few are drawn)")
    parser.add_argument("--dim", help="numbers such as 0-639 (default: the paper's; of maps all)")
    parser.add_argument("--values", default="departure", help="of maps: departure or value (default: departure)")
    parser.add_argument("--run", dest="run_folder", type=options.path, help="draw this run, and run nothing")
    parser.add_argument("--format", default="html", help="some of html, svg, png (default: html)")
    options.add_seed(parser, "of what is drawn of --input heldout")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _recorded(number: str, args: argparse.Namespace) -> Run:
    """The run to be drawn: the one that was named, the one that lies there, or a new one."""
    from probe.figures.named import FIGURES
    from probe.recording.folder import Run
    from probe.studies.run import RunSettings, run_probe

    if args.run_folder is not None:
        return Run(args.run_folder)
    row, loaded = FIGURES[number], options.load(args)
    maps = row.dims is None
    width, count = loaded.model.config.hidden_size, loaded.layers
    every: Literal["all"] = "all"
    settings = RunSettings(
        schemes=args.scheme or row.schemes, input=args.input, samples=args.samples, seed=args.seed,
        length=args.length or (2 * loaded.window if maps else None),
        layers=every if row.layers is None else tuple(one for one in row.layers if one <= count) or (count,),
        dims=every if row.dims is None else tuple(one for one in row.dims if one < width),
    )  # fmt: skip
    if args.layer is not None:
        settings = replace(settings, layers=parse_numbers(args.layer, "layers", range(1, count + 1)))
    if args.dim is not None:
        settings = replace(settings, dims=parse_numbers(args.dim, "dims", range(width)))
    place = args.folder / f"run-{number}-{Path(loaded.name).name}"
    if (place / "run.json").exists() and _same(Run(place), loaded, settings):
        return Run(place)
    with options.bar(args.quiet) as (progress, _):
        return run_probe(loaded, settings, place, force=True, progress=progress)


def _same(run: Run, loaded: LoadedModel, settings: RunSettings) -> bool:
    """Whether a run is what these settings give."""
    from probe.studies.run import resolve

    plan, info = resolve(loaded, settings), run.info
    return (
        info.model == loaded.name
        and info.window == loaded.window
        and tuple(info.layers) == plan.layers
        and tuple(info.dims) == plan.dims
        and list(info.shown) == [scheme.spec for scheme in plan.asked]
        and info.input.sha256 == plan.input.record().sha256
    )


def _run(number: str) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        from probe.figures.maps import maps_figure
        from probe.figures.named import FIGURES, write_figure
        from probe.schemes.parse import split_specs

        formats = parse_names(args.format) or ["html"]
        row, recorded = FIGURES[number], _recorded(number, args)
        if row.dims is None:
            layers = None if args.layer is None else parse_numbers(args.layer, "layers", ())
            named = args.run_folder is not None and args.scheme is not None
            figure = maps_figure(recorded, split_specs(args.scheme) if named else None, layers, args.values)
        else:
            figure = row.draw(recorded)
        print(*write_figure(figure, args.folder, f"figure-{number}", formats), sep="\n")

    return run


COMMANDS = tuple(
    Command(
        number,
        said,
        _options,
        _run(number),
        python="probe.figures.named.FIGURES",
        more=_EXAMPLES,
        words={"folder": "DIR", "run": "--run"},
    )
    for number, said in NUMBERS.items()
)  # fmt: skip
