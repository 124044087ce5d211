"""A real server, asked by the official client: answers, streams, limits, and clients that go away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from probe.commands.main import main
from probe.models.load import load_model
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme

openai = pytest.importorskip("openai")

SCHEME = "rerope(N=128)+logn"
TEXT = "The parser raises an error when the file does not exist. " * 120


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Its address; ended by a signal, with exit code 0 or the signal's."""
    port = free_port()
    command = [
        sys.executable, "-m", "probe", "serve", "--model", "rope", "--scheme", SCHEME, "--port", str(port),
        "--engine", "transformers", "--max-prompt", "1500", "--max-new", "400", "--max-waiting", "40",
    ]  # fmt: skip
    with subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    ) as done:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).read()
                break
            except (urllib.error.URLError, OSError):
                assert done.poll() is None, done.stderr and done.stderr.read()
                time.sleep(0.2)
        yield address
        done.send_signal(signal.SIGINT)
        done.wait(30)
        said = done.stderr.read() if done.stderr else ""
        assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def health(server: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(urllib.request.urlopen(f"{server}/health", timeout=30).read())
    return found


def here(prompt: str, new: int) -> str:
    """What `generate` gives under the scheme."""
    loaded = load_model("rope")
    tokenizer = loaded.tokenizer_for("a test")
    inputs = tokenizer(prompt, return_tensors="pt")
    with apply_scheme(loaded.model, parse_scheme(SCHEME, loaded.window)):
        made = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=new)
    return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("characters", [60, 3600])
def test_answers_are_those_of_generate(client: Any, characters: int) -> None:
    """Inside the window and past it, at once and as a stream."""
    asked = {"model": "rope", "prompt": TEXT[:characters], "max_tokens": 12, "temperature": 0}
    answer = client.completions.create(**asked)
    assert answer.choices[0].text == here(TEXT[:characters], 12)
    assert answer.usage.completion_tokens == 12
    parts = [part.choices[0].text for part in client.completions.create(**asked, stream=True) if part.choices]
    assert "".join(part or "" for part in parts) == answer.choices[0].text


def test_thirty_two_requests_at_once_of_which_one_goes_away(server: str, client: Any) -> None:
    lengths = [40 + 97 * (number % 16) for number in range(32)]

    def ask(number: int) -> str:
        if number == 11:
            try:
                client.with_options(timeout=0.3).completions.create(
                    model="rope", prompt=TEXT[:2000], max_tokens=400, temperature=0
                )
            except openai.APITimeoutError:
                return "gone"
            return "answered"
        asked = client.completions.create(model="rope", prompt=TEXT[: lengths[number]], max_tokens=5, temperature=0)
        return str(asked.choices[0].text)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(32)))
    assert answers[11] == "gone"
    for number in (0, 5, 31):
        assert answers[number] == here(TEXT[: lengths[number]], 5)
    for _ in range(100):
        if health(server)["waiting"] == 0:
            break
        time.sleep(0.1)
    assert health(server)["waiting"] == 0


def test_a_stream_that_is_left_ends_at_the_next_token(server: str, client: Any) -> None:
    stream = client.completions.create(model="rope", prompt="def f(", max_tokens=400, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    began = time.perf_counter()
    client.completions.create(model="rope", prompt="def", max_tokens=1, temperature=0)
    assert time.perf_counter() - began < 60 and health(server)["waiting"] <= 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"prompt": TEXT}, "prompt: expected 1 to 1500 tokens, got"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"prompt": "a", "model": "gpt-5"}, "Server is pinned to 'rope'"),
        ({"prompt": ["a", "b"]}, "prompt must be a string"),
        ({"prompt": "a", "temperature": "warm"}, "could not convert string to float"),
        ({"prompt": "a", "stop": 5}, "bad request"),
    ],
)
def test_bad_requests_are_told_why(client: Any, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**{"model": "rope", "max_tokens": 2} | asked)
    assert 400 <= caught.value.status_code < 500 and says in str(caught.value)


def test_what_is_no_request_is_told_so(server: str, client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="has no chat template; use /v1/completions"):
        client.chat.completions.create(model="rope", messages=[{"role": "user", "content": "hello"}])
    for body, says in (
        (b"{", "expected a JSON object"),
        (b"[" * 100_000, "expected a JSON object"),
        (b"\xff\x00", "JSON"),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(f"{server}/v1/completions", body), timeout=30)
        assert caught.value.code == 400 and says in caught.value.read().decode()
    assert [model.id for model in client.models.list()] == ["rope"]
    assert health(server)["scheme"] == SCHEME and health(server)["window"] == 512


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scheme", "magic"], "unknown scheme 'magic'"),
        (["--engine", "sglang"], "unknown engine 'sglang'"),
        (["--port", "99999"], "--port: expected 0 to 65535, got 99999"),
        (["--max-prompt", "0"], "--max-prompt: expected at least 1, got 0"),
        (["--host", "203.0.113.7"], "cannot listen on 203.0.113.7:8000"),
    ],
)
def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(["serve", "--model", "rope", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1]


def test_a_chat_under_a_template(tmp_path: Path) -> None:
    """With the application itself, on a model that has a template."""
    from fastapi.testclient import TestClient

    from weavescope.serving.endpoint import build
    from weavescope.serving.limits import Limits

    loaded = load_model("rope")
    loaded.tokenizer_for("a test").chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    scheme = parse_scheme(SCHEME, loaded.window)
    app = build(loaded, scheme, Limits(600, 8, 1))
    with apply_scheme(loaded.model, scheme), TestClient(app) as asked:
        body = {"messages": [{"role": "user", "content": "The parser raises"}], "max_tokens": 6, "temperature": 0}
        answer = asked.post("/v1/chat/completions", json=body).json()
        for bad in ({"messages": "hello"}, {"messages": [{"content": "x"}]}, {}):
            assert asked.post("/v1/chat/completions", json=bad).status_code == 400
    written = answer["choices"][0]["message"]["content"]
    tokens = torch.tensor(loaded.tokenizer_for("a test")(written)["input_ids"])
    assert answer["usage"]["completion_tokens"] == 6 and 0 < len(tokens) <= 8
