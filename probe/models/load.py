"""Load a model by embedded name, local folder or hub id, with nothing run that the user did not ask for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from probe.defaults import OTHER_SCHEMES, ROPE_SCHEMES, WINDOW_FIELDS
from probe.errors import FieldError, ProbeError, literal, unknown
from probe.models.embedded import EMBEDDED, MODELS
from probe.models.fetched import FETCHED, fetch
from probe.models.plausible import check_plausible
from probe.seam.construction import PREFIX, ProbedModel, load_construction
from probe.seam.families import Family, family_of, unwrapped
from probe.seam.positions import Rope

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to probe: in eval mode, on its device, with its trained window M in tokens."""

    name: str
    source: str
    model: ProbedModel
    tokenizer: PreTrainedTokenizerBase | None
    family: Family
    window: int
    schemes: str = ROPE_SCHEMES
    """What a run shows unless it is told otherwise."""
    layers_shown: tuple[int, ...] = (1, 2)
    dims_shown: tuple[int, ...] = (0, 1)
    input: str = "word:hello"
    detector: str = "range"
    """What judges it unless another is asked for; a construction has the threshold of its theorem, a value at M."""

    without_tokenizer: str = "has no tokenizer"
    """Why there is no tokenizer, where there is none."""

    def tokenizer_for(self, what: str, instead: str = "") -> PreTrainedTokenizerBase:
        """The tokenizer, which `what` needs; `instead` says what would do without.

        Raises:
            ProbeError: there is none; the message says why.
        """
        if self.tokenizer is None:
            raise ProbeError(f"{what}: model {self.name} {self.without_tokenizer}{instead and '; '}{instead}")
        return self.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the embeddings, and so the input ids, live."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.family.layer_list(self.model))


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        ProbeError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = literal(str(error).splitlines()[0])
        raise FieldError("device", hint=f"not usable here ({reason}); try auto or cpu", value=name) from None
    return device


def pick_dtype(name: str, device: torch.device, config: PretrainedConfig) -> torch.dtype:
    """The dtype of that name; "auto" is float32 on CPU and the checkpoint's own elsewhere.

    Raises:
        ProbeError: an unknown dtype.
    """
    if name == "auto":
        saved = getattr(config, "dtype", None)
        return torch.float32 if device.type == "cpu" or not isinstance(saved, torch.dtype) else saved
    if name not in DTYPES:
        raise unknown("dtype", name, ["auto", *DTYPES])
    return DTYPES[name]


def source_of(name: str) -> str:
    """Folder or hub id behind a model's name."""
    if name in EMBEDDED:
        folder = EMBEDDED[name].folder
        if not (folder / "config.json").exists():
            raise ProbeError(f"embedded model {name!r} is not trained yet: run probe train {name}")
        return str(folder)
    if name.strip() and Path(name).is_dir():
        _refuse_adapter(Path(name))
        if not (Path(name) / "config.json").exists():
            raise ProbeError(f"model folder {name}: expected a config.json in it, found none")
        return name
    if name in FETCHED:
        return str(fetch(FETCHED[name]))
    # Hub ids of the supported families are all owner/name: anything else is a slip, answered without asking the hub.
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ProbeError(
            f"unknown model {name!r}: no such folder; embedded models: {', '.join(EMBEDDED)}; fetched at their first "
            f"use: {', '.join(FETCHED)}"
        )
    return name


def _refuse_adapter(folder: Path) -> None:
    """Say what to do with a folder that holds an adapter (PEFT) and no model.

    Raises:
        ProbeError: it is one.
    """
    adapter = folder / "adapter_config.json"
    if not adapter.exists() or (folder / "config.json").exists():
        return
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    raise ProbeError(
        f"model folder {folder}: expected a model, found an adapter alone; load its base model "
        f"({base or 'which its adapter_config.json does not name'}), put the adapter on with peft, and give "
        "weavescope.wrap the result, or save merge_and_unload() of it as a folder"
    )


def model_window(config: PretrainedConfig | SimpleNamespace) -> int | None:
    """The trained window that the config states, if it states one."""
    for field in WINDOW_FIELDS:
        value = getattr(config, field, None)
        if isinstance(value, int) and value > 1:
            return value
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    length: int | None = None,
) -> LoadedModel:
    """Load a causal LM and, if it has one, its tokenizer.

    Args:
        name: an embedded or fetched model's name, a local folder, a GGUF file, a hub id, or
            "construction:3.3(M=32,N=4)".
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto" or a name in `DTYPES`.
        window: trained window M in tokens, where the config's is wrong or missing.
        trust_remote_code: run the repository's own Python code.
        allow_pickle: accept weights that are not safetensors; loading a pickle can run code.
        length: positions that a construction must be built for; other models do not need it.

    Raises:
        ProbeError: anything that keeps the model from loading, as one line that says what to do.
    """
    if name.startswith(PREFIX):
        if window is not None:
            said = f"{literal(name.partition('(')[0])}(M={window})"
            raise FieldError("window", hint=f"the window of a construction is its M; say {said}")
        return _construction(name, dtype, length)
    where = pick_device(device)
    hf_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # its retries are not the user's news; the error at the end is
    hf_logging.disable_progress_bar()
    if name.lower().endswith(".gguf"):
        return _from_gguf(name, where, dtype, window)
    source = source_of(name)
    config = _config(name, source, trust_remote_code)
    _refuse_quantised(name, config)
    family_of(config)  # refused before its weights are read
    trained = _trained_window(name, config, window)
    model = _weights(name, source, pick_dtype(dtype, where, config), trust_remote_code, allow_pickle)
    tokenizer, without = _tokenizer(source, trust_remote_code)
    return _loaded(name, source, model.to(where).eval(), tokenizer, without, trained)


def _from_gguf(name: str, where: torch.device, dtype: str, window: int | None) -> LoadedModel:
    """The model in a GGUF file, dequantised."""
    # Here alone: it imports transformers' converters, which no other model needs.
    from probe.models.gguf import gguf_config, gguf_model, gguf_tokenizer, open_gguf

    header = open_gguf(name)
    config = gguf_config(header)
    family_of(config)
    made = gguf_model(header, config, pick_dtype(dtype, where, config))
    trained = _trained_window(name, config, window or made.window)
    _check_weights(name, made.model, made.info)
    tokenizer, without = gguf_tokenizer(header)
    return _loaded(name, str(header.path), made.model.to(where).eval(), tokenizer, without, trained)


def _refuse_quantised(name: str, config: PretrainedConfig) -> None:
    """Refuse weights that a kernel of their own multiplies with: what hooks see there was not checked against anything.

    Raises:
        ProbeError: they are quantised.
    """
    found = getattr(config, "quantization_config", None)
    if found:
        kind = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", "")
        raise ProbeError(
            f"model {name!r}: its weights are quantised ({kind or 'of an unnamed kind'}), which was not checked "
            "against what dequantised weights give; take the checkpoint before quantisation, or a GGUF file of it"
        )


def wrap_model(
    model: Any, tokenizer: PreTrainedTokenizerBase | None = None, *, window: int | None = None, name: str | None = None
) -> LoadedModel:
    """A model that is in memory already: on a GPU, quantised, with adapters. It stays where it is, and is put in eval
    mode.

    Args:
        model: a causal LM of a supported family; of a PEFT model its base, in which the adapters' layers are.
        tokenizer: its tokenizer, for what needs one.
        window: trained window M in tokens; default what the config states.
        name: for tables and run folders; default the config's name or its family.

    Raises:
        ProbeError: an unsupported family, no window, or something that is no model.
    """
    base = unwrapped(model)
    if not isinstance(base, PreTrainedModel):
        raise FieldError("model", "a causal language model of transformers", type(model).__name__)
    found = name or getattr(base.config, "name_or_path", "") or base.config.model_type
    trained = _trained_window(found, base.config, window)
    return _loaded(found, found, base.eval(), tokenizer, "was given no tokenizer", trained)


def _loaded(
    name: str, source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, without: str, window: int
) -> LoadedModel:
    """The model with what a run shows of it by default."""
    family = family_of(model.config)
    rotates = any(isinstance(positions, Rope) for positions in family.layer_positions(model))
    schemes = ROPE_SCHEMES if rotates else OTHER_SCHEMES
    # On a repeated word an embedded model shows what the paper shows; others were trained on text and expect none such.
    usual = "word:hello" if name in MODELS or tokenizer is None else "heldout"
    return LoadedModel(
        name, source, model, tokenizer, family, window, schemes=schemes, input=usual, without_tokenizer=without
    )


def _config(name: str, source: str, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration.

    Raises:
        ProbeError: there is none that can be read.
    """
    try:
        raw = PretrainedConfig.get_config_dict(source)[0]
        if isinstance(raw, dict):
            check_plausible(raw, f"model folder {source}" if Path(source).is_dir() else f"model {name}")
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except ProbeError:
        raise
    except Exception as error:
        if Path(source).is_dir():
            raise ProbeError(
                f"model folder {source}: expected a config.json that transformers can read ({_first_line(error)}); "
                "correct it"
            ) from None
        known = ", ".join(EMBEDDED)
        raise ProbeError(
            f"unknown model {name!r}: not embedded ({known}), not a folder, not a reachable hub id "
            f"({_first_line(error)})"
        ) from None


def _trained_window(name: str, config: PretrainedConfig, window: int | None) -> int:
    """The window that was given, or that the config states.

    Raises:
        FieldError: there is none, or it holds no two tokens.
    """
    trained = model_window(config) if window is None else window
    if trained is None:
        raise FieldError("window", hint=f"the config of model {literal(repr(name))} states no trained window; give one")
    if trained < 2:
        raise FieldError("window", "at least 2 tokens", trained)
    return trained


def _weights(
    name: str, source: str, dtype: torch.dtype, trust_remote_code: bool, allow_pickle: bool
) -> PreTrainedModel:
    """The model with its weights.

    Raises:
        ProbeError: they do not load, or are not those that the config describes.
    """
    try:
        # Other shapes are let through here and refused below, with names.
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:
        hint = _weights_hint(Path(source), allow_pickle)
        raise FieldError(
            "model", hint=f"does not load: {literal(_first_line(error))}; {hint}", value=repr(name)
        ) from None
    _check_weights(name, model, info)
    return cast(PreTrainedModel, model)


def _weights_hint(folder: Path, allow_pickle: bool) -> str:
    """What to do about weights that do not load."""
    if any(folder.glob("*.safetensors")):
        return "expected whole safetensors files; get the checkpoint again"
    if not allow_pickle and (any(folder.glob("*.bin")) or not folder.is_dir()):
        return "weights that are not safetensors need {allow_pickle}"
    return "expected the weights beside config.json, as model.safetensors; get the whole checkpoint"


def _check_weights(name: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse a checkpoint that is not this model's: transformers leaves random weights where it has none that fit.

    The loading info already leaves out tied weights and what the model's class declares to be of no use.
    """
    # A head of another task (score.weight) is no part of a language model, and more tensors of a module that is there
    # (scales of a quantised cache) leave its weights what they are; a layer too many is a part that is not there.
    modules = {name for top in (model, model.base_model) for name, _ in top.named_modules()}
    own = {
        model.base_model_prefix,
        *(child for child, _ in (*model.named_children(), *model.base_model.named_children())),
    }
    shapes = [f"{key} is {list(saved)}, not {list(made)}" for key, saved, made in info["mismatched_keys"]]
    wrong = {
        "missing": info["missing_keys"],
        "of another shape": shapes,
        "not the model's": [
            key for key in info["unexpected_keys"] if key.split(".")[0] in own and _module(key) not in modules
        ],
    }
    said = [f"{len(keys)} {what} ({_few(keys)})" for what, keys in wrong.items() if keys]
    if said:
        raise ProbeError(
            f"model {name!r}: its weights are not those that its config.json describes: {'; '.join(said)}; "
            "correct config.json, or get the whole checkpoint"
        )


def _module(key: str) -> str:
    """The path of the module whose tensor it is."""
    return key.rpartition(".")[0]


def _few(keys: Iterable[str], shown: int = 3) -> str:
    """The first few names."""
    names = sorted(keys)
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _construction(name: str, dtype: str, length: int | None) -> LoadedModel:
    model, schemes = load_construction(name, dtype, length)
    meta = model.toy.metadata
    return LoadedModel(
        name, name, model, None, family_of(model.config), meta.M,
        schemes=schemes, layers_shown=(meta.layer + 1,), dims_shown=(meta.dim,), input=f"token:{meta.ordinary[0]}",
        detector="paper",
    )  # fmt: skip


def _tokenizer(source: str, trust_remote_code: bool) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer; or None, where token ids are input enough, and why there is none."""
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code), ""
    except Exception as error:
        if any((Path(source) / file).exists() for file in _TOKENIZER_FILES):
            return None, f"has a tokenizer that does not load ({_first_line(error)})"
        return None, "has no tokenizer"
