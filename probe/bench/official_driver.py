"""One side of the comparison with the official Mesa implementation: a process that answers requests on stdin.

Run by `probe.bench.official`, in two interpreters: ours, with the stock model and a scheme, and the user's, whose
transformers the official code was written for. It must therefore import nothing of this package at the top, and stay
within old Python.

    python official_driver.py SETTINGS      SETTINGS: one JSON object, see `OfficialSettings.side`

Every line on stdin is {"do", "model", "length"}, every line on stdout the answer: {"seconds"}, {"peak_bytes"},
{"logits"} or {"error"}.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any


def _rss() -> Any:
    """The file beside this one, without its package."""
    spec = importlib.util.spec_from_file_location("_weavescope_rss", Path(__file__).with_name("rss.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official_models(settings: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """The model under the official code, which patches the Llama class when it is imported."""
    import torch
    from transformers import AutoModelForCausalLM

    sys.path.insert(0, settings["checkout"])
    module = importlib.import_module("methods.mesa_extrapolation")
    module.position_set.train_length = settings["window"]
    model = AutoModelForCausalLM.from_pretrained(settings["folder"], torch_dtype=torch.float32)
    return {"official": model.eval()}


def our_models(settings: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """The stock model, and one on the same weights under a scheme of ours."""
    from probe.models.random import bench_model, sharing_weights
    from probe.schemes import parse_schemes
    from probe.seam.apply import apply_scheme

    loaded = bench_model(settings["folder"], device="cpu", dtype="float32", window=None, seed=0)
    scheme = parse_schemes(settings["scheme"], loaded.window)[0]
    woven = sharing_weights(loaded.model)
    stack.enter_context(apply_scheme(woven, scheme))
    return {"stock": loaded.model, settings["scheme"]: woven}


class Side:
    """The models of a side, and what can be asked of them."""

    def __init__(self, models: dict[str, Any], settings: dict[str, Any]) -> None:
        import torch

        self.torch, self.models, self.steps = torch, models, settings["steps"]
        self.ids = torch.tensor(json.loads(Path(settings["folder"], "ids.json").read_text()))[None]
        # The official forward has no such argument: it computes every position's logits.
        self.last = {name: {} if name == "official" else {"logits_to_keep": 1} for name in models}

    def prefill(self, name: str, length: int) -> Any:
        """The output of the first `length` tokens."""
        with self.torch.no_grad():
            return self.models[name](self.ids[:, :length], use_cache=True, **self.last[name])

    def step(self, name: str, after: Any) -> Any:
        """The output of one greedy step more."""
        with self.torch.no_grad():
            token = after.logits[:, -1:].argmax(-1)
            cache = after.past_key_values
            return self.models[name](token, past_key_values=cache, use_cache=True, **self.last[name])

    def time_prefill(self, name: str, length: int) -> dict[str, Any]:
        """Seconds of a prefill."""
        began = time.perf_counter()
        self.prefill(name, length)
        return {"seconds": time.perf_counter() - began}

    def time_decode(self, name: str, length: int) -> dict[str, Any]:
        """Median seconds of a step after `length` tokens."""
        after, seconds = self.prefill(name, length), []
        for _ in range(self.steps):
            began = time.perf_counter()
            after = self.step(name, after)
            seconds.append(time.perf_counter() - began)
        return {"seconds": sorted(seconds)[len(seconds) // 2]}

    def peak_memory(self, name: str, length: int) -> dict[str, Any]:
        """Peak bytes above the loaded model, of a prefill and a step."""
        self.step(name, self.prefill(name, 16))
        memory = _rss().PeakMemory()
        self.step(name, self.prefill(name, length))
        return {"peak_bytes": memory.read(), "method": memory.method}

    def logits(self, name: str, length: int) -> dict[str, Any]:
        """Logits of the last position."""
        return {"logits": self.prefill(name, length).logits[0, -1].tolist()}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What was asked for, or why it did not work."""
        known = {
            "prefill": self.time_prefill,
            "decode": self.time_decode,
            "memory": self.peak_memory,
            "logits": self.logits,
        }
        do = known[request["do"]]
        try:
            return do(request["model"], request["length"])
        except Exception as error:  # the official code stops with an assertion at some lengths
            first = (str(error).strip() or "no message").splitlines()[0]
            return {"error": f"{type(error).__name__}: {first}"}


def main() -> None:
    """Load, say so, and answer until stdin ends."""
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what the official code prints is not an answer
    import torch

    torch.set_num_threads(settings["threads"])
    with ExitStack() as stack:
        side = Side((official_models if settings["checkout"] else our_models)(settings, stack), settings)
        print(json.dumps({"torch": torch.__version__, "models": list(side.models)}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(side.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
