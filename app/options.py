"""What the dashboard was launched with: `streamlit run app/main.py -- --runs DIR --model FOLDER`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from probe.errors import FieldError, ProbeError

RUNS_VARIABLE = "WEAVESCOPE_RUNS"
MODELS_VARIABLE = "WEAVESCOPE_MODELS"


@dataclass(frozen=True)
class Options:
    """The folder that runs are read from and written to, and models beside the embedded ones."""

    runs: Path
    models: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    """Errors become a message on the page; exiting would end the server's script without a word."""

    def error(self, message: str) -> NoReturn:
        raise ProbeError(f"launch options: {message}; known after '--': --runs DIR, --model NAME (repeatable)")


def parse_options(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Options:
    """Read launch options; an option wins over its environment variable.

    Args:
        arguments: what follows `--` in `streamlit run app/main.py -- ...`.
        environment: `WEAVESCOPE_RUNS` is the runs root (default ./runs), `WEAVESCOPE_MODELS` names models, separated
            as `PATH` is.

    Raises:
        ProbeError: an unknown option, or a runs root that is not a folder.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--runs", default=environment.get(RUNS_VARIABLE) or "runs")
    parser.add_argument("--model", action="append", default=[])
    given = parser.parse_args(arguments)
    runs = Path(given.runs).expanduser().resolve()
    if runs.exists() and not runs.is_dir():
        raise FieldError("runs", hint="expected a folder, found a file", value=given.runs)
    named = given.model or environment.get(MODELS_VARIABLE, "").split(os.pathsep)
    return Options(runs, tuple(dict.fromkeys(name for name in named if name)))
