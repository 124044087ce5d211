"""`probe generate`: what a model writes after a long prompt, under several schemes, beside time and memory."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command

_EXAMPLES = """\
examples:
  probe generate --input text:report.txt --scheme origin,mesa+logn --new 32
  probe generate --model smollm2 --input document:moby-dick-1 --length 12288 --scheme "origin,rerope(N=2048),mesa"
  torchrun --nproc-per-node 2 -m probe generate --input document:sotu-1946 --length 8192 --scheme mesa
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_scheme(parser, "origin,mesa")
    parser.add_argument("--input", default="heldout", help="the prompt, as for 'probe run' (default: heldout)")
    parser.add_argument("--length", type=int, help="tokens of the prompt (default: as for 'probe run')")
    parser.add_argument("--new", type=int, default=20, help="tokens to write, greedily (default: 20)")
    options.add_seed(parser, "of what is drawn of the input")
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.bench.generate import Generation
    from probe.results import writable
    from probe.schemes import check_texts
    from probe.seam.parallel import joined

    check_texts(args.scheme)
    writable(args.out)
    with joined() as ranks:
        work = Generation(options.load(args), args.scheme, args.input, args.length, args.new, args.seed, ranks)
        if ranks is None or ranks.rank == 0:
            options.carry(work, args, show.generation)
        else:  # it works along, and says nothing
            for _ in work.run():
                pass


COMMAND = Command(
    "generate", "what a model writes after a long prompt under several schemes, beside time and memory", _options, _run,
    python="weavescope.load(...).continuations(...)", more=_EXAMPLES,
)  # fmt: skip
