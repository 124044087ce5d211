"""Other people's code beside ours: a process in the user's interpreter, and weights and ids that both sides load.

The code of others stays in the user's checkout, and runs with the releases it was written for. What runs in that
process is a driver: a file of this package that imports nothing of it at the top, reads one JSON object a line, and
answers with one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from transformers.utils import logging as hf_logging

from probe.errors import FieldError, ProbeError, literal
from probe.models.random import ROPE_BASE, Shape, random_llama

_ROOT = Path(__file__).parents[1]


class Process:
    """A driver in some interpreter, with more in its environment: one request at a time.

    `settings` is the driver's argument. Where its "checkout" is empty the driver works with this package, and finds it.
    """

    def __init__(
        self, python: str, driver: Path, settings: Mapping[str, Any], log: IO[str], more: Mapping[str, str]
    ) -> None:
        self.python, self.log = python, log
        # Without this, Python puts the driver's folder on the path, where it could hide modules of theirs.
        environment = os.environ | {"PYTHONSAFEPATH": "1"} | dict(more)
        if not settings["checkout"]:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        command = [python, str(driver), json.dumps(dict(settings))]
        try:
            self.process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        except OSError as error:
            raise FieldError("python", hint=f"cannot be run ({error.strerror})", value=python) from None
        try:
            self.hello = self._line()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Kill it, whatever it is doing."""
        self.process.kill()
        self.process.wait()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or [f"status {self.process.returncode}"])[-1]
            raise ProbeError(f"the process of {self.python} ended: {last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The driver's answer to one request; one that failed has "error".

        Raises:
            ProbeError: the process ended; the message has the last line it wrote.
        """
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: reading says why
            self.process.stdin.write(json.dumps(dict(request)) + "\n")
            self.process.stdin.flush()
        return self._line()


@contextmanager
def started(
    python: str, driver: Path, settings: Mapping[str, Any], more: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """A driver that is ended with the context."""
    with TemporaryFile("w+") as log:
        process = Process(python, driver, settings, log, more or {})
        try:
            yield process
        finally:
            process.end()


def save_model(shape: Shape, folder: Path, ids: int, seed: int, sharpen: float = 1.0) -> list[int]:
    """Random weights and token ids as a folder that transformers from 4.31 on loads.

    Args:
        shape: of the Llama; its weights are float32.
        folder: where to; it exists.
        ids: how many token ids, in `ids.json`.
        seed: of weights and ids.
        sharpen: factor on the weights of queries and keys. Freshly drawn ones give scores near 0, and so an attention
            that hardly looks at positions.

    Returns:
        The token ids.
    """
    hf_logging.disable_progress_bar()
    model = random_llama(shape, torch.device("cpu"), torch.float32, seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weights.mul_(sharpen)
    model.save_pretrained(folder)
    config = shape.config()
    old = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps, "rope_theta": ROPE_BASE, "initializer_range": config.initializer_range,
        "tie_word_embeddings": False, "use_cache": True, "pretraining_tp": 1, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings",
    ):  # fmt: skip
        old[name] = getattr(config, name)
    (folder / "config.json").write_text(json.dumps(old, indent=2), encoding="utf-8")
    (folder / "generation_config.json").unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(seed)
    drawn: list[int] = torch.randint(shape.vocab, (ids,), generator=generator).tolist()
    (folder / "ids.json").write_text(json.dumps(drawn), encoding="utf-8")
    return drawn


@dataclass(frozen=True)
class Release:
    """Whose code it was, for a result's provenance.

    Attributes:
        repository: where it is published.
        licence: its licence, "none" where there is none.
        file: the file that was compared, below the checkout.
        commit: of the checkout, where it is one and git is here.
        sha256: of the file.
        transformers: the release that it ran on.
        torch: likewise.
    """

    repository: str
    licence: str
    file: str
    commit: str | None
    sha256: str
    transformers: str
    torch: str | None = None

    @classmethod
    def of(cls, checkout: Path, file: Path, repository: str, licence: str, transformers: str) -> Release:
        """That of a checkout on disk."""
        digest = hashlib.sha256((checkout / file).read_bytes()).hexdigest()
        return cls(repository, licence, str(file), commit(checkout), digest, transformers)


def check_checkout(checkout: Path, file: Path, repository: str) -> None:
    """Refuse a folder that is no checkout of a repository.

    Raises:
        ProbeError: `file` is not in it.
    """
    if not (checkout / file).is_file():
        raise FieldError("checkout", hint=f"expected a checkout of {repository}, found no {file} in it", value=checkout)


def transformers_of(python: str, releases: Sequence[str]) -> str:
    """The transformers release of an interpreter.

    Args:
        python: the interpreter's file.
        releases: what the others' code runs on, as "4.31".

    Raises:
        ProbeError: no interpreter, or it has another release.
    """
    if not Path(python).is_file():
        raise FieldError("python", hint="expected a Python interpreter, found no such file", value=python)
    code = "from importlib.metadata import version; print(version('transformers'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FieldError("python", hint=f"cannot be run ({literal(error)})", value=python) from None
    found = done.stdout.strip()
    if done.returncode or not found.startswith(tuple(f"{release}." for release in releases)):
        raise FieldError(
            "python", hint=f"the code needs transformers {' or '.join(releases)}, found {literal(found or 'none')}; "
            f"make an environment with pip install 'transformers=={releases[0]}.*' torch 'numpy<2'", value=python,
        )  # fmt: skip
    return found


def commit(checkout: Path) -> str | None:
    """The checkout's commit, where it is one and git is here."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
