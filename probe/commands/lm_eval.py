"""`probe lm-eval`: the command line of EleutherAI's lm-evaluation-harness, with models under schemes."""

from __future__ import annotations

import argparse
import sys

from probe.commands.command import Command
from probe.errors import ProbeError

_MORE = """Everything is passed on to lm-evaluation-harness (extra: pip install 'weavescope[lm-eval]'); its own help is
'probe lm-eval run --help'. --model is weavescope unless given; --model_args takes pretrained=, scheme=, window=,
max_length=, dtype=, allow_pickle= and those of the harness's hf. They split at commas: scheme=mesa(N=64;E=20).

  probe lm-eval --model_args pretrained=smollm2,scheme=rerope+logn --tasks lambada_openai --limit 100
  probe lm-eval --model_args pretrained=./my-model,scheme=mesa+logn --tasks my_task --include_path ./my-tasks
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="of lm_eval: run, ls or validate, and options")


def arguments_of(given: list[str]) -> list[str]:
    """What the harness is called with: `run` where nothing else is said, on models of the class "weavescope"."""
    if not given:
        return []
    verb, rest = ("run", given) if given[0].startswith("-") else (given[0], given[1:])
    said = {one.split("=")[0] for one in rest} & {"--model", "-M", "--config", "-C", "--help", "-h"}
    return [verb, *(["--model", "weavescope"] if verb == "run" and not said else []), *rest]


def _run(args: argparse.Namespace) -> int | None:
    import weavescope.harness  # makes the class known, and says so where the harness is not installed

    del weavescope
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    before = sys.argv
    sys.argv = ["lm_eval", *arguments_of(args.arguments)]
    try:
        parser = HarnessCLI()
        parser.execute(parser.parse_args())
    except (ValueError, KeyError, TypeError, AssertionError, FileNotFoundError) as error:
        if isinstance(error, ProbeError):
            raise
        raise ProbeError(f"lm-evaluation-harness: {type(error).__name__}: {_first_line(error)}") from error
    finally:
        sys.argv = before
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "without a word").splitlines()[0]


COMMAND = Command(
    "lm-eval", "lm-evaluation-harness on any model under any scheme", _options, _run,
    python="weavescope.harness.WeaveLM(...)", more=_MORE, foreign=True,
)  # fmt: skip
