"""The dashboard as a user meets it: the real server and a headless Chromium, driven by its devtools protocol."""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from websockets.sync.client import connect

from probe.recording.place import Place
from probe.thresholds.verdicts import read_verdicts

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MAIN = Path(__file__).parents[2] / "app" / "main.py"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on PATH: {', '.join(NAMES)}"),
]

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--hide-scrollbars",
    "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip

KEY_CODES = {"ArrowRight": 39}


class Page:
    """One tab."""

    def __init__(self, socket):
        self._socket = socket
        self._number = 0

    def call(self, method, **parameters):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, script):
        """What a line of JavaScript gives."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def text(self):
        """All text of the page, also that of figures and of what a canvas says to screen readers."""
        return self.value("document.body ? document.body.textContent : ''")

    def wait(self, script, seconds=60):
        """Until the script gives something true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.value(f"!!({script})")
            if found:
                return
            time.sleep(0.2)
        raise AssertionError(f"not so after {seconds} s: {script}\n{self.text()}")

    def press(self, key):
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEY_CODES[key])

    def screenshot(self, path):
        shot = self.call("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(shot["data"]))


def _port(process, log, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = re.search(r"DevTools listening on ws://[^:]+:(\d+)/", log.read_text(errors="replace"))
        if found:
            return int(found[1])
        assert process.poll() is None, log.read_text(errors="replace")
        time.sleep(0.1)
    raise AssertionError(f"Chromium did not start in {seconds} s:\n{log.read_text(errors='replace')}")


@contextlib.contextmanager
def browse(binary, url, folder, width=1400, height=1700):
    """A tab that has opened `url`; `folder` is for Chromium's profile and its log."""
    log = folder / "chromium.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", url],
            stdout=sink, stderr=sink,
        )  # fmt: skip
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{_port(process, log)}/json/list", timeout=30) as answer:
            tab = next(target for target in json.load(answer) if target["type"] == "page")
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()


@pytest.fixture
def server(runs, tmp_path, tiny_folder):
    """Address of the dashboard, launched from a foreign folder."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    log = tmp_path / "streamlit.log"
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN), "--server.port", str(port)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--", "--runs", str(runs), "--model", str(tiny_folder)], cwd=tmp_path, stdout=sink, stderr=sink,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        _await_server(port, process, log)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _await_server(port, process, log, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        assert process.poll() is None, log.read_text(errors="replace")
        time.sleep(0.2)
    raise AssertionError(f"the dashboard did not start in {seconds} s:\n{log.read_text(errors='replace')}")


def content(selector):
    """JavaScript for an element's text, "" where it is not there yet."""
    return f"(document.querySelector({selector!r}) || {{textContent: ''}}).textContent"


FIGURE, TABLE, ALERT = (
    content(".js-plotly-plot"),
    content("[data-testid=stDataFrame]"),
    content("[data-testid=stAlert]"),
)


def test_figure_and_table_are_drawn_and_follow_the_slider(server, runs, probe_into, tmp_path):
    run = probe_into(runs / "first")
    with browse(CHROMIUM, f"http://localhost:{server}/", tmp_path) as page:
        page.wait(f"{FIGURE}.includes('resid, layer 1, dim 0')")
        page.wait(f"{TABLE}.includes('rerope')")
        for text in ("M = 64", "H = ", "origin", "dynamic-ntk", "rerope", "negative log-likelihood"):
            assert text in page.value(FIGURE)
        for text in ("Threshold H", "Predicted failure", "Measured failure"):
            assert text in page.value(TABLE)
        for one in read_verdicts(run):
            if one.place.under("origin") == Place("origin", "resid", 1, 0) and one.predicted is not None:
                assert str(one.predicted) in page.value(TABLE)
        assert "reads 160 tokens" in page.text()

        page.value("document.querySelector('input[type=range][aria-label=Layer]').focus()")
        page.press("ArrowRight")
        page.wait(f"{FIGURE}.includes('resid, layer 2, dim 0')")
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 20_000


def test_a_run_that_cannot_be_made_says_why(server, runs, tmp_path):
    """The form's default is a word, which a model without a tokenizer cannot read: its error reaches the page."""
    with browse(CHROMIUM, f"http://localhost:{server}/", tmp_path) as page:
        page.wait(f"{ALERT}.includes('There are no runs')")
        page.wait("document.querySelector('[data-testid=stFormSubmitButton] button')")
        page.value("document.querySelector('[data-testid=stFormSubmitButton] button').click()")
        page.wait(f"{ALERT}.includes('has no tokenizer')")
        assert "Traceback" not in page.text()


def test_the_mesa_page_is_offered_and_draws_its_split(server, tmp_path):
    with browse(CHROMIUM, f"http://localhost:{server}/", tmp_path) as page:
        page.wait(f"{content('[data-testid=stSidebarNav]')}.includes('Mesa split')")
        page.value("[...document.querySelectorAll('[data-testid=stSidebarNav] a')].at(-1).click()")
        page.wait("[...document.images].some(image => image.complete && image.naturalWidth >= 500)")
        assert "Middle chunks" in page.text()


def test_only_this_machine_can_open_it(server):
    """The address is bound to localhost, also when launched from a folder without a config file."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; it only picks the outward address
            outward = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no outward address")
    with contextlib.closing(socket.socket()) as knock:
        knock.settimeout(5)
        assert knock.connect_ex((outward, server)) != 0
