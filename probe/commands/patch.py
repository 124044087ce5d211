"""`probe patch`: hidden states put back into what they were inside the window: does the likelihood return?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from probe.commands import options, show
from probe.commands.command import Command
from probe.errors import FieldError
from probe.text import parse_numbers

_EXAMPLES = """\
examples:
  probe patch --length 2048                                  the embedded model: does clamping its dimensions help?
  probe patch --model nope --length 1024 --input heldout
  probe patch --model smollm2 --length 12288 --samples 1 --layer none      all layers at once, and no single one
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_scheme(parser, "origin")
    parser.add_argument("--length", type=int, help="tokens of the long input (default: 2M)")
    parser.add_argument("--patch", help="names, separated by commas: clamp, positional, random (default: all)")
    parser.add_argument(
        "--layer", default="all", help="layers that are changed by themselves: 1,3, all or none; all at once always "
        "is (default: all)",
    )  # fmt: skip
    parser.add_argument("--input", default="documents", help="text, as 'probe run' takes it (default: documents)")
    options.add_samples(
        parser, 4, "texts that are patched; as many others say what is known, dozens for a positional part"
    )
    parser.add_argument("--tail", type=int, help="last tokens that a rise is a mean over (default: M/4)")
    options.add_seed(parser, "of the texts and the random direction")
    options.add_output(parser)


def _layers(text: str) -> Sequence[int] | None:
    if text == "none":
        return []
    if text == "all":
        return None
    try:
        return parse_numbers(text, "layers", ())
    except FieldError:
        raise FieldError("layers", "numbers as 1,3, all or none", repr(text)) from None


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.studies.patching import Patching

    check_texts(args.scheme)
    writable(args.out)
    patches = None if args.patch is None else [name.strip() for name in args.patch.split(",")]
    layers = _layers(args.layer)
    work = Patching(
        options.load(args), args.scheme, args.length, patches, layers, args.input, args.samples, args.tail, args.seed
    )
    options.carry(work, args, show.patching)


COMMAND = Command(
    "patch", "hidden states put back into their range inside the window: does the likelihood return?", _options, _run,
    python="weavescope.load(...).patch(...)", more=_EXAMPLES, words={"patches": "--patch"},
)  # fmt: skip
