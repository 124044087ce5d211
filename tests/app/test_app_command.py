"""`probe app` starts the real dashboard, on this machine only."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from probe.commands.app import script
from probe.commands.main import build_parser


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5) as answer:
            return bool(answer.read() == b"ok")
    except (urllib.error.URLError, OSError):
        return False


def test_it_serves_and_ends_with_the_command(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "probe", "app", "--runs", str(tmp_path), "--port", str(port), "--headless"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while not healthy(port) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.2)
        assert healthy(port)
    finally:
        process.terminate()
        process.wait(30)
    deadline = time.monotonic() + 30
    while healthy(port) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not healthy(port), "the server outlived its command"


def test_what_is_started_is_the_dashboard_of_this_code() -> None:
    from probe.commands.app import command

    assert script().name == "main.py" and (script().parent / "views").is_dir()
    started = command(build_parser().parse_args(["app", "--runs", "x; rm -rf y", "--model", "m"]))
    assert started[-4:] == ["--runs", "x; rm -rf y", "--model", "m"]  # one argument each: there is no shell
    assert started[started.index("--server.address") + 1] == "localhost"
