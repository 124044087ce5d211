"""The tokenizer of a GGUF file.

llama.cpp writes a byte-level BPE's vocabulary and merges, and the name of the rule by which text is cut before them
(`tokenizer.ggml.pre`). transformers' reader does not look at that name, so that digits, for example, would become other
tokens; here each name has its rule, as in llama.cpp's `llama-vocab.cpp`, and a name without one is refused.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from probe.errors import ProbeError
from probe.models.gguf_header import GgufHeader

_CONTROL, _USER = 3, 4
"""ggml's types of tokens that are no part of running text."""


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _llama3(digits: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([
        _split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
            + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        _BYTES,
    ])  # fmt: skip


def _digits_alone() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2])


def _falcon() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), _GPT2, _split("[0-9][0-9][0-9]")])


PRE = {
    "gpt-2": lambda: _GPT2,
    "olmo": lambda: _GPT2,
    "phi-2": lambda: _GPT2,
    "smollm": _digits_alone,
    "starcoder": _digits_alone,
    "refact": _digits_alone,
    "command-r": _digits_alone,
    "llama-bpe": lambda: _llama3(r"\p{N}{1,3}"),
    "llama3": lambda: _llama3(r"\p{N}{1,3}"),
    "falcon3": lambda: _llama3(r"\p{N}{1,3}"),
    "qwen2": lambda: _llama3(r"\p{N}"),
    "deepseek-r1-qwen": lambda: _llama3(r"\p{N}"),
    "falcon": _falcon,
}
"""How text is cut before the merges, by llama.cpp's name."""


def tokenizer_of(header: GgufHeader) -> PreTrainedTokenizerBase:
    """The tokenizer of a file whose header was checked.

    Raises:
        ProbeError: a kind, or a rule of cutting text, that is not known here.
    """
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return _byte_level(header)
    if kind == "llama":
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(header.path.parent), gguf_file=header.path.name
        )
        return found
    raise ProbeError(f"tokenizer.ggml.model: expected gpt2 or llama, got {kind!r}")


def _byte_level(header: GgufHeader) -> PreTrainedTokenizerBase:
    data = header.metadata
    pre = data.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in PRE:
        raise ProbeError(f"tokenizer.ggml.pre: expected one of {', '.join(PRE)}, got {pre!r}")
    tokens, merges = data["tokenizer.ggml.tokens"], data.get("tokenizer.ggml.merges", [])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    whole = Tokenizer(BPE(vocabulary, pairs, fuse_unk=False, ignore_merges=pre in ("llama-bpe", "llama3")))
    whole.pre_tokenizer = PRE[pre]()
    whole.decoder = decoders.ByteLevel()
    types = data.get("tokenizer.ggml.token_type", [])
    whole.add_special_tokens(
        [AddedToken(tokens[n], special=True, normalized=False) for n, kind in enumerate(types) if kind == _CONTROL]
    )
    whole.add_tokens([AddedToken(tokens[n], normalized=False) for n, kind in enumerate(types) if kind == _USER])
    special = _special(data, tokens)
    if data.get("tokenizer.ggml.add_bos_token") and "bos_token" in special:
        bos = special["bos_token"]
        whole.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    else:
        whole.post_processor = processors.ByteLevel(trim_offsets=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=whole, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = data.get("tokenizer.chat_template")
    return fast


def _special(data: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    """The tokens that have a part to play, by transformers' name of it."""
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    numbers = {f"{name}_token": data.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    return {
        name: tokens[number]
        for name, number in numbers.items()
        if isinstance(number, int) and 0 <= number < len(tokens)
    }
