"""`probe peers`: a scheme beside its authors' own code."""

from __future__ import annotations

import argparse

from probe.commands import options, show
from probe.commands.command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    from probe.peers.cases import PEERS

    parser.add_argument("--peer", required=True, metavar="NAME", help=f"whose code: {', '.join(PEERS)}")
    options.add_checkout(parser, "their repository", "the transformers that it needs")
    parser.add_argument("--window", type=int, metavar="M", help="trained window (default: 64)")
    parser.add_argument("--length", type=int, metavar="T", help="tokens (default: five windows)")
    options.add_threads(parser, 1)
    options.add_seed(parser, "of weights and tokens")
    options.add_output(parser)


def _run(args: argparse.Namespace) -> None:
    from probe.peers.run import PeerComparison, PeerSettings
    from probe.results import carry_out, writable

    writable(args.out)
    settings = PeerSettings(args.peer, args.checkout, args.python, args.window, args.length, args.threads, args.seed)
    work = PeerComparison.load(settings)
    carry_out(work, args.out, options.step(args.quiet), lambda result: show.peers(result, args.json))


COMMAND = Command(
    "peers", "a scheme beside its authors' own code, from your checkout: are the logits the same?", _options, _run,
    python="probe.peers.run.PeerComparison.load(...)",
)  # fmt: skip
