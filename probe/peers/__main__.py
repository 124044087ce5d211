"""One of our schemes beside its authors' own code, on the same weights and tokens: are the logits the same?

    python -m probe.peers --peer rerope --checkout rerope --python VENV/bin/python

DIR is the user's own checkout of the authors' repository, and VENV an environment of the user's with the transformers release that
it needs: the code runs there, in a process of its own, and nothing of it is here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from probe.errors import ProbeError, exit_code, stoppable
from probe.foreign import check_checkout, commit, started, transformers_of
from probe.models.random import Shape
from probe.peers.cases import PEERS, Peer, cases
from probe.peers.compare import SAME, SHARPEN, rows
from probe.results import deliver, pipe_table, writable

DRIVER = Path(__file__).with_name("driver.py")
LAYERS, WIDTH, HEADS, VOCAB = 3, 64, 4, 96
"""Of the random model."""
_TITLES = {
    "name": "tokens come in", "kv_heads": "key heads", "ours": "ours", "length": "T", "inside": "inside M", "past": "past M",
    "first": "from position", "off_by_one": "ours off by one", "stock": "no scheme", "verdict": "verdict",
}  # fmt: skip


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def table(made: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table. Differences are relative to the largest logit."""
    right = [not isinstance(made[0].get(name), str) for name in _TITLES]
    return pipe_table(list(_TITLES.values()), [[_cell(row.get(name)) for name in _TITLES] for row in made], right)


def _run(args: argparse.Namespace) -> None:
    peer = PEERS[args.peer]
    compared = cases(args.peer, args.window, args.length)
    writable(args.out)
    if args.threads < 1:
        raise ProbeError(f"--threads: expected at least 1, got {args.threads}")
    check_checkout(args.checkout, peer.file, peer.repository)
    release = transformers_of(args.python, peer.releases)
    torch.set_num_threads(args.threads)
    shape = Shape(
        layers=LAYERS, width=WIDTH, heads=HEADS, vocab=VOCAB, window=peer.window if args.window is None else args.window
    )
    settings = {"peer": args.peer, "checkout": str(args.checkout.resolve()), "threads": args.threads}
    made: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, started(args.python, DRIVER, settings) as process:
        try:
            for row in rows(peer, shape, compared, process, Path(folder), args.seed):
                made.append(row)  # one by one: an interrupt must not take the finished ones along
        finally:
            if made:
                said = process.hello | {"transformers": release}
                deliver(_result(args, peer, shape, said, made), args.out, lambda result: _show(result, args.json))


def _show(result: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(result, allow_nan=False) if as_json else table(result["rows"]))


def _result(
    args: argparse.Namespace, peer: Peer, shape: Shape, theirs: dict[str, Any], made: list[dict[str, Any]]
) -> dict[str, Any]:
    """The rows, with what they were made with."""
    from probe.provenance import environment

    return {
        "bench": "peers", "peer": args.peer, "repository": peer.repository, "licence": peer.licence, "file": str(peer.file),
        "commit": commit(args.checkout), "sha256": hashlib.sha256((args.checkout / peer.file).read_bytes()).hexdigest(),
        "theirs": theirs, "layers": LAYERS, "width": WIDTH, "heads": HEADS, "vocab": VOCAB,
        "window": shape.window, "sharpen": SHARPEN, "same": SAME, "dtype": "float32", "seed": args.seed,
        "environment": environment(), "rows": made,
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m probe.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, choices=list(PEERS), help="whose code")
    parser.add_argument("--checkout", type=Path, required=True, metavar="DIR", help="checkout of their repository")
    parser.add_argument("--python", required=True, metavar="FILE", help="interpreter with the transformers it needs")
    parser.add_argument("--window", type=int, metavar="M", help="trained window (default: 64)")
    parser.add_argument("--length", type=int, metavar="T", help="tokens (default: five windows)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each side (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON object there too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    args = _parser().parse_args(argv)
    with stoppable():
        return exit_code(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
