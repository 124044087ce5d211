"""`probe app`: the dashboard, from an install or a checkout."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from probe.commands.command import Command
from probe.errors import ProbeError


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", metavar="DIR", help="folder that runs are read from and written to (default: runs)")
    parser.add_argument("--model", action="append", default=[], metavar="M", help="a model to offer; repeatable")
    parser.add_argument("--port", type=int, help="port on this machine (default: 8501)")
    parser.add_argument("--headless", action="store_true", help="open no browser")


def script() -> Path:
    """The dashboard's main file: inside weavescope where that is installed, else beside this package in a checkout.

    Raises:
        ProbeError: it is in neither place.
    """
    installed = find_spec("weavescope.app") if find_spec("weavescope") else None
    places = [Path(installed.origin).parent] if installed is not None and installed.origin else []
    for folder in (*places, Path(__file__).parents[2] / "app"):
        if (folder / "main.py").is_file():
            return folder / "main.py"
    raise ProbeError("the dashboard's files are not here; install weavescope again")


def command(args: argparse.Namespace) -> list[str]:
    """What is run: streamlit, bound to this machine only.

    Raises:
        ProbeError: streamlit is not installed.
    """
    if find_spec("streamlit") is None:
        raise ProbeError("the dashboard needs streamlit: pip install 'weavescope[app]'")
    server = ["--server.address", "localhost"]
    if args.port is not None:
        server += ["--server.port", str(args.port)]
    if args.headless:
        server += ["--server.headless", "true"]
    chosen = [] if args.runs is None else ["--runs", args.runs]
    for model in args.model:
        chosen += ["--model", model]
    return [sys.executable, "-m", "streamlit", "run", str(script()), *server, "--", *chosen]


def _run(args: argparse.Namespace) -> int:
    return subprocess.run(command(args), check=False).returncode  # noqa: S603


COMMAND = Command(
    "app", "start the dashboard on this machine", _options, _run, python="streamlit run app/main.py, in a checkout",
)  # fmt: skip
