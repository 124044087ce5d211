"""`probe precision`: what a number type costs under every scheme."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command
from probe.text import parse_names

_EXAMPLES = """\
examples:
  probe precision                                               the embedded model, every scheme, three types
  probe precision --model smollm2 --scheme origin,rerope,mesa --dtypes bfloat16 --length 9216
  probe precision --dtypes float32 --exact-angles               what float32 angles are worth

The reference is the same model, its weights rounded to the same type, in float64 with float64 angles: it needs up
to 12 bytes per weight beside the model.
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser, dtype="float32")
    options.add_scheme(parser, None, "every preset that fits the model, rerope+logn, mesa+logn")
    parser.add_argument("--dtypes", help="types, separated by commas (default: float32,bfloat16,float16)")
    parser.add_argument("--length", type=int, help="tokens (default: 2M, at most 2048)")
    parser.add_argument("--input", default="documents", help="text, as 'probe run' takes it (default: documents)")
    parser.add_argument("--exact-angles", action="store_true", help="rotary angles in float64, as the reference's are")
    options.add_seed(parser, "of the text")
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.studies.precision import USUAL, Precision

    if args.scheme is not None:
        check_texts(args.scheme)
    writable(args.out)
    dtypes = parse_names(args.dtypes)
    work = Precision(
        options.load(args), args.scheme, USUAL if dtypes is None else tuple(dtypes), args.length, args.input, args.seed,
        args.exact_angles,
    )  # fmt: skip
    options.carry(work, args, show.precision)


COMMAND = Command(
    "precision", "what bfloat16, float16 and float32 cost under every scheme, beside float64", _options, _run,
    python="weavescope.load(...).precision(...)", more=_EXAMPLES,
)  # fmt: skip
