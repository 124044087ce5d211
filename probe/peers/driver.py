"""The authors' side of the comparison: a process that loads their code and answers requests on stdin.

Run by `probe.peers`. It imports nothing of this package and stays within what transformers 4.31 runs on.

    python driver.py SETTINGS      SETTINGS: {"peer", "checkout", "threads"}

Every line on stdin is {"folder", "out", "length", "prompt", "theirs"}: the model, the file to write logits to (NumPy,
[length, vocabulary], float32), how many token ids, how many of them go through the model in one call before the rest
follow one by one, and the parameters of the authors' code. Every answer is {} or {"error"}.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import math
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cache = Callable[[Any], Any]
"""What happens to a cache between two calls."""


class Stand:
    """A module with some of its names replaced: what a variant of the authors' code sees in its place."""

    def __init__(self, module: Any, **names: Any) -> None:
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def fresh(name: str) -> Any:
    """A module of theirs as it is on disk: nothing that an earlier request replaced in it stays."""
    sys.modules.pop(name, None)
    return importlib.import_module(name)


class Model:
    """A model under the authors' code, and what its cache goes through before and after a call."""

    def __init__(self, model: Any, before: Cache = lambda cache: cache, after: Cache = lambda cache: cache) -> None:
        self.model, self.before, self.after = model.eval(), before, after


def load(folder: str, **options: Any) -> Any:
    """The Llama of a folder, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, **options)


def stand_in(name: str, **names: Any) -> Any:
    """A module that is not installed here, with these names in it."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(names)
    sys.modules[name] = module
    return module


def exact_attention(query: Any, key: Any, value: Any, causal: bool = False, **_: Any) -> Any:
    """What `flash_attn_func` does, in full: output [batch, queries, heads, dim], lse [batch, heads, queries], None."""
    import torch

    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    if causal:
        rows, columns = scores.shape[-2:]
        hidden = torch.ones(rows, columns, dtype=torch.bool).triu(1 + columns - rows)
        scores = scores.masked_fill(hidden, -math.inf)
    out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
    return out, scores.logsumexp(-1), None


def without_flash() -> None:
    """Make imports of flash-attn and Triton work where neither is installed; only `flash_attn_func` does anything."""
    import transformers.models.gpt_neox.modeling_gpt_neox
    import transformers.models.llama.modeling_llama  # noqa: F401  transformers looks for flash-attn when it is imported

    names = {"flash_attn_func": exact_attention, "flash_attn_varlen_func": None, "flash_attn_qkvpacked_func": None}
    stand_in("flash_attn", **names)
    stand_in("flash_attn.flash_attn_interface", **names)
    language = stand_in("triton.language", constexpr=None)
    stand_in("triton", language=language, jit=lambda kernel: kernel, heuristics=lambda _: lambda kernel: kernel)


def rerope(folder: str, theirs: dict) -> Model:
    """bojone/rerope, rerope_patch.py: replaces the attention's forward when it is imported."""
    patch = fresh("rerope_patch")
    patch.training_length, patch.window = theirs["training_length"], theirs["window"]
    return Model(load(folder))


def leaky_rerope(folder: str, theirs: dict) -> Model:
    """bojone/rerope, leaky_rerope_patch.py; the rotary of a model is made with the factor when the model is."""
    patch = fresh("leaky_rerope_patch")
    patch.training_length, patch.window = theirs["training_length"], theirs["window"]
    patch.scaling_factor = theirs["scaling_factor"]
    return Model(load(folder))


def self_extend(folder: str, theirs: dict) -> Model:
    """datamllab/LongLM, SelfExtend.apply without flash attention."""
    without_flash()
    apply: Any = importlib.import_module("SelfExtend").apply
    # The mask buffer of transformers 4.38 has a row for each of the configuration's positions; nothing else reads them.
    model = load(folder, attn_implementation="eager", max_position_embeddings=theirs["mask"])
    apply(model, theirs["group_size"], theirs["window_size"], scale_base=theirs["scale_base"])
    return Model(model)


def self_extend_legacy(folder: str, theirs: dict) -> Model:
    """datamllab/LongLM, legacy_patch_before_4_38/llama_self_extend_patch.py, as its llama_example.py puts it in."""
    from functools import partial

    patch: Any = importlib.import_module("llama_self_extend_patch")
    modify: Any = importlib.import_module("modify_utils").modify_method_of_instance
    sizes = {"group_size_1": theirs["group_size_1"], "group_size_2": theirs["group_size_2"]}
    model = load(folder)
    modify(model, "LlamaAttention", "forward", partial(patch.self_extend_forward, **sizes))
    return Model(model)


def streaming_llm(folder: str, theirs: dict) -> Model:
    """mit-han-lab/streaming-llm, enable_streaming_llm and its cache, which evicts after a call or before it."""
    enable: Any = importlib.import_module("streaming_llm.enable_streaming_llm").enable_streaming_llm
    model = load(folder)
    cache = enable(model, theirs["start_size"], theirs["recent_size"])
    if theirs["evict"] == "after":
        return Model(model, after=cache)
    return Model(model, before=lambda past: cache.evict_for_space(past, 1))


def lm_infinite(folder: str, theirs: dict) -> Model:
    """Glaciohound/LM-Infinite, convert_llama_model."""
    convert: Any = importlib.import_module("models.llama").convert_llama_model
    model = load(folder, attn_implementation="eager")
    return Model(convert(model, theirs["local_branch"], theirs["global_branch"]))


def dual_chunk(folder: str, theirs: dict) -> Model:
    """HKUNLP/ChunkLlama, on `exact_attention`: as it is, or with float32 merging weights and no temperature."""
    without_flash()
    patch = fresh("chunkllama_attn_replace")
    if theirs["merge"] == "float32":
        patch.torch = Stand(patch.torch, bfloat16=patch.torch.float32)
    if not theirs["mscale"]:
        patch.get_mscale = lambda scale=1: 1.0
    patch.replace_with_chunkllama(theirs["pretraining_length"], theirs["local_window_size"])
    return Model(load(folder, attn_implementation="eager"))


def mesa(folder: str, theirs: dict) -> Model:
    """soacker/Mesa-Extrapolation, methods/mesa_extrapolation.py, with its log-n scaling or without."""
    module = fresh("methods.mesa_extrapolation")
    if not theirs["logn"]:
        module.np = Stand(module.np, log=lambda _: math.inf)
    for name in ("train_length", "first_chunk", "first_chunk_cache", "last_context", "max_token_len", "push_width"):
        setattr(module.position_set, name, theirs[name])
    return Model(load(folder))


SUBFOLDERS = {"self-extend-legacy": "legacy_patch_before_4_38"}
"""Where below the checkout a peer's modules lie, if not at its top."""
PEERS: dict[str, Callable[[str, dict], Model]] = {
    "rerope": rerope, "leaky-rerope": leaky_rerope, "self-extend": self_extend,
    "self-extend-legacy": self_extend_legacy,
    "streaming-llm": streaming_llm, "lm-infinite": lm_infinite, "dual-chunk": dual_chunk, "mesa": mesa,
}  # fmt: skip


def logits(peer: Model, ids: Any, prompt: int) -> Any:
    """[length, vocabulary]: `prompt` tokens in one call, the rest one by one."""
    import torch

    cache, made = None, []
    with torch.no_grad():
        for part in [ids[:, :prompt], *ids[:, prompt:].split(1, 1)] if prompt < ids.shape[1] else [ids]:
            out = peer.model(part, past_key_values=peer.before(cache), use_cache=True)
            cache = peer.after(out.past_key_values)
            made.append(out.logits[0].float())
    return torch.cat(made)


def answer(name: str, request: dict) -> dict:
    """Logits of a request, written to its file; or why there are none."""
    import numpy
    import torch

    try:
        ids = torch.tensor(json.loads(Path(request["folder"], "ids.json").read_text()))[None, : request["length"]]
        made = logits(PEERS[name](request["folder"], request["theirs"]), ids, request["prompt"])
        numpy.save(request["out"], made.numpy())
    except Exception as error:  # others' code may fail in any way
        first = (str(error).strip() or "no message").splitlines()[0]
        return {"error": f"{type(error).__name__}: {first}"}
    return {}


def main() -> None:
    """Say hello, and answer until stdin ends."""
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what others' code prints is not an answer
    import torch

    torch.set_num_threads(settings["threads"])
    sys.path.insert(0, str(Path(settings["checkout"], SUBFOLDERS.get(settings["peer"], ""))))
    print(json.dumps({"torch": torch.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(settings["peer"], json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
