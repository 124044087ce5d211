"""The real server and a headless Chromium, driven by Playwright, as a user meets them."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MAIN = Path(__file__).parents[2] / "app" / "main.py"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--disable-quic",
)  # fmt: skip


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def serving(folder, *options):
    """The dashboard on a runs folder below `folder`, launched from there; its port and its process."""
    port = free_port()
    log = folder / f"streamlit-{port}.log"
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN), "--server.port", str(port)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--", "--runs", str(folder / "runs"), *map(str, options)], cwd=folder, stdout=sink, stderr=sink,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        _await(port, process, log)
        yield port, process
    finally:
        process.terminate()
        process.wait(30)


def _await(port, process, log, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        assert process.poll() is None, log.read_text(errors="replace")
        time.sleep(0.1)
    raise AssertionError(f"the dashboard did not start in {seconds} s:\n{log.read_text(errors='replace')}")
