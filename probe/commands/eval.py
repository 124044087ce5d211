"""`probe eval`: tasks at several lengths, under several schemes, of one model or several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from probe.commands import options, show
from probe.commands.command import Command
from probe.errors import FieldError
from probe.text import parse_lengths

if TYPE_CHECKING:
    from probe.models.load import LoadedModel
    from probe.studies.evaluate import Evaluation
    from probe.studies.journal import Journal


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser, kinds=f"one or several, separated by commas: {options.KINDS}")
    parser.add_argument(
        "--task", default="passkey", metavar="TASK",
        help="one or several, separated by commas; 'probe choices task' lists them (default: passkey)",
    )  # fmt: skip
    options.add_scheme(parser, "origin")
    parser.add_argument("--lengths", help="tokens, or windows: 512,1024 or M/2,M,1.5M (default: M/4,M/2,M,2M)")
    options.add_samples(parser, 50, "samples per length")
    parser.add_argument(
        "--seed",
        type=_seeds,
        default=0,
        metavar="SEEDS",
        help="of the samples; several, as 0,1,2, draw so many each (default: 0)",
    )
    generated = parser.add_argument_group("generated tasks")
    generated.add_argument(
        "--depths",
        type=int,
        metavar="N",
        help="deal the samples to so many depths from 0 to 1, a row for each (default: spread evenly, one row)",
    )
    generated.add_argument(
        "--haystack",
        help="where the task says 'in text': heldout, documents, noise or text:FILE (default: heldout)",
    )
    generated.add_argument(
        "--haystacks",
        type=int,
        metavar="N",
        help="hide things in so many texts only: what samples have in common is read once (default: a text for each)",
    )
    generated.add_argument(
        "--question", metavar="PLACE", help="end, start, or both: where it stands to the text (default: end)"
    )
    generated.add_argument("--prompt", help="plain, or chat for the model's chat template (default: plain)")
    generated.add_argument("--unit", help="of --lengths: tokens, or words, alike for all models (default: tokens)")
    texts = parser.add_argument_group("--task nll")
    texts.add_argument("--tail", type=int, help="mean over the last so many positions (default: a quarter)")
    texts.add_argument("--input", help="what is read, as for 'probe run' (default: heldout)")
    parser.add_argument(
        "--early-stop",
        type=int,
        metavar="N",
        help="leave out a scheme's longer lengths after one where none of at least N answers was right",
    )
    parser.add_argument(
        "--keep",
        type=options.path,
        metavar="DIR",
        help="keep every sample there as it is done, and go on from what is there; makes samples.parquet",
    )
    options.add_output(parser)


def _models(text: str) -> list[str]:
    """Names of models; a folder whose name has a comma is one."""
    names = [text] if Path(text).expanduser().exists() else [part.strip() for part in text.split(",")]
    if not all(names):
        raise FieldError("model", "names separated by commas", repr(text))
    return list(dict.fromkeys(names))


def _seeds(text: str) -> tuple[int, ...]:
    """Seeds separated by commas, as an argparse type."""
    return tuple(options.seed(part.strip()) for part in text.split(","))


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.studies.evaluate import CHOSEN, Evaluation, check_task
    from probe.studies.sweep import Sweep

    chosen = {name: getattr(args, name) for name in CHOSEN}
    check_task(args.task, args.samples, **chosen)
    check_texts(args.scheme)
    writable(args.out)
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    models = _models(args.model)

    def load(name: str) -> LoadedModel:
        return options.load(argparse.Namespace(**vars(args) | {"model": name}))

    def make(loaded: LoadedModel, journal: Journal) -> Evaluation:
        return Evaluation(
            loaded, args.task, args.scheme, lengths, args.samples, args.seed,
            early_stop=args.early_stop, journal=journal, **chosen,
        )  # fmt: skip

    options.carry(Sweep(load, models, make, args.keep), args, show.evaluation)


COMMAND = Command(
    "eval", "pass keys, needles, word counts or likelihood at chosen lengths, under any scheme", _options, _run,
    python="weavescope.load(...).evaluate(...)", words={"length": "--lengths"},
)  # fmt: skip
