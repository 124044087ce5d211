"""The options that commands share, each defined once, and what they are read into."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.defaults import PROGRESS
from probe.errors import unknown

if TYPE_CHECKING:
    from probe.models.embedded import EmbeddedModel
    from probe.models.load import LoadedModel
    from probe.results import Counted, Result

SCHEMES = "schemes, separated by commas: stair, stair(N=64,E=8), rerope+logn, stair+yarn; see 'probe schemes'"


def path(text: str) -> Path:
    """A path that is not empty, as an argparse type."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a name, got {text!r}")
    return Path(text)


def seed(text: str) -> int:
    """A seed that every generator takes, as an argparse type."""
    if not (text.isdecimal() and int(text) < 1 << 63):
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


KINDS = "rope, alibi, nope, smollm2, a local folder, a GGUF file, a hub id or construction:THEOREM"
"""What --model can be."""


def add_model(parser: argparse.ArgumentParser, default: str = "rope", kinds: str = KINDS, dtype: str = "auto") -> None:
    """--model and how it is loaded.

    Args:
        parser: the command's.
        default: the model's name.
        kinds: what can be named.
        dtype: the default.
    """
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=default, metavar="M", help=f"{kinds} (default: {default})")
    group.add_argument("--window", type=int, metavar="M", help="trained window, if the config's is wrong or missing")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    said = "float32 on CPU, the checkpoint's elsewhere" if dtype == "auto" else dtype
    group.add_argument("--dtype", default=dtype, help=f"auto, float32, float64, bfloat16, float16 (default: {said})")
    group.add_argument("--trust-remote-code", action="store_true", help="run Python code from the model's repository")
    group.add_argument(
        "--allow-pickle", action="store_true",
        help="accept weights that are not safetensors (loading them can run code)",
    )  # fmt: skip


Adder = argparse.ArgumentParser | argparse._ArgumentGroup
"""A parser, or a group of options in one."""


def add_scheme(parser: Adder, default: str | None, said: str | None = None) -> None:
    """--scheme; `said` is the default in words where it follows the model."""
    parser.add_argument("--scheme", default=default, help=f"{SCHEMES} (default: {said or default})")


def add_lengths(parser: Adder, default: str | None, said: str | None = None) -> None:
    """--lengths; `said` is the default in words where it follows the window."""
    parser.add_argument("--lengths", default=default, help=f"tokens, as 128,512 (default: {said or default})")


def add_lengths_of_windows(parser: Adder, said: str) -> None:
    """--lengths of a model whose window M is known when they are read; `said` is the default in words."""
    parser.add_argument("--lengths", help=f"tokens, or windows: 1024,4096 or 1.5M,2M (default: {said})")


def add_samples(parser: Adder, default: int, what: str) -> None:
    """--samples; `what` says of what."""
    parser.add_argument("--samples", type=int, default=default, help=f"{what} (default: {default})")


def add_seed(parser: Adder, what: str = "of everything drawn") -> None:
    """--seed, 0 everywhere."""
    parser.add_argument("--seed", type=seed, default=0, help=f"{what} (default: 0)")


def add_threads(parser: Adder, default: int) -> None:
    """--threads."""
    parser.add_argument("--threads", type=int, default=default, help=f"CPU threads (default: {default})")


def add_repeats(parser: Adder, default: int) -> None:
    """--repeats."""
    parser.add_argument(
        "--repeats", type=int, default=default, help=f"timed repeats, after a warm-up (default: {default})"
    )


def add_texts(parser: Adder, samples: int) -> None:
    """`--length`, `--input`, `--samples`: texts that are read whole."""
    parser.add_argument("--length", type=int, help="tokens of a text (default: 4 windows, of long ones 2)")
    parser.add_argument("--input", default="documents", help="text, as 'probe run' takes it (default: documents)")
    add_samples(parser, samples, "texts")


def add_keep(parser: Adder) -> None:
    """`--keep DIR`: what is measured stays there, and is not measured again."""
    parser.add_argument(
        "--keep", type=path, metavar="DIR", help="keep what is measured there, and go on from what is there"
    )


def add_json(parser: Adder) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")


def add_output(parser: Adder) -> None:
    """--json, --out FILE and --quiet."""
    add_json(parser)
    parser.add_argument(
        "--out", type=path, metavar="FILE", help="write the JSON object there too, as far as it is done"
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing of how far it is")


def add_checkout(parser: Adder, repository: str, release: str) -> None:
    """--checkout and --python: where the code of others is, and what runs it."""
    parser.add_argument("--checkout", type=path, required=True, metavar="DIR", help=f"your checkout of {repository}")
    parser.add_argument(
        "--python", required=True, metavar="FILE", help=f"interpreter of an environment of yours with {release}"
    )


def load(args: argparse.Namespace) -> LoadedModel:
    """The model that the options name.

    Raises:
        ProbeError: it does not load.
    """
    from probe.models.load import load_model

    loaded = load_model(
        args.model, device=args.device, dtype=args.dtype, window=args.window,
        trust_remote_code=args.trust_remote_code, allow_pickle=args.allow_pickle, length=getattr(args, "length", None),
    )  # fmt: skip
    warn_of_window(loaded)
    return loaded


def embedded(name: str) -> EmbeddedModel:
    """The embedded model of that name.

    Raises:
        ProbeError: there is none.
    """
    from probe.models.embedded import EMBEDDED

    if name not in EMBEDDED:
        raise unknown("embedded model", name, EMBEDDED)
    return EMBEDDED[name]


def warn_of_window(loaded: LoadedModel) -> None:
    """A line where --window is above the window that the model's config states."""
    from probe.models.load import model_window

    stated = model_window(loaded.model.config)
    if stated is not None and loaded.window > stated:
        print(
            f"probe: warning: --window {loaded.window} is above the {stated} of the model's config: positions from "
            f"{stated} on count as trained",
            file=sys.stderr,
        )


def _told(file: Path, share: float, line: str) -> None:
    """Write the file so that a reader never sees half of it; one that cannot be written ends no run."""
    part = file.with_name(f"{file.name}.part")
    with suppress(OSError):
        part.write_text(json.dumps({"share": share, "line": line}), encoding="utf-8")
        part.replace(file)


@contextmanager
def bar(quiet: bool) -> Iterator[tuple[Callable[[float, str], None], Callable[[], None]]]:
    """A progress callback that draws on stderr, and what ends the drawing before the context does. It tells the file
    that `PROGRESS` names, too.
    """
    from tqdm import tqdm

    file, shown = os.environ.get(PROGRESS), ("", -1)
    drawn = tqdm(
        total=100, file=sys.stderr, disable=quiet, leave=False,
        bar_format="{desc} {percentage:3.0f}%|{bar:30}| {elapsed}<{remaining}",
    )  # fmt: skip

    def progress(share: float, line: str) -> None:
        nonlocal shown
        if (line, round(100 * share)) != shown:
            shown = line, round(100 * share)
            if file:
                _told(Path(file), share, line)
            drawn.set_description_str(line, refresh=False)
            drawn.n = shown[1]
            drawn.refresh()

    try:
        yield progress, drawn.close
    finally:
        drawn.close()


def carry(work: Counted, args: argparse.Namespace, show: Callable[[Result[Any], bool], None]) -> None:
    """Run a measurement under a progress bar, show it, and write it to --out as far as it comes.

    Args:
        work: what is to be run; it says a line for every step of its `total`.
        args: with `quiet`, `json` and `out`.
        show: given the result, and whether JSON alone is wanted.
    """
    from probe.results import Told, carry_out

    done = 0
    with bar(args.quiet) as (progress, close):

        def step(line: str) -> None:
            nonlocal done
            done += 1
            progress(work.share if isinstance(work, Told) else min(1.0, done / work.total), line)

        def shown(result: Result[Any]) -> None:
            close()
            show(result, args.json)

        if isinstance(work, Told):
            told = work
            told.tell = lambda line: progress(told.share, line)
        carry_out(work, args.out, step, shown)


def step(quiet: bool) -> Callable[[str], None]:
    """A callback that prints a line on stderr for every step."""

    def say(line: str) -> None:
        if not quiet:
            print(f"probe: {line}", file=sys.stderr)

    return say
