"""The embedded models' tokenizer: a byte-level BPE of 1024 tokens in which every digit is its own token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from probe.tasks import passkey

VOCAB_SIZE = 1024
BOS, EOS = "<bos>", "<eos>"
# The words that the paper repeats (Sec. 3.4 and the rebuttal) and the filler must be whole tokens, or a
# "constant" input would not be constant: they are given weight in the merges' counts.
WHOLE_WORDS = ("hello", "good")
_TEMPLATE_WEIGHT = 3000


def _with_templates(texts: Iterable[str]) -> Iterator[str]:
    yield from texts
    for text in (passkey.TASK, *passkey.FILLER, passkey.NEEDLE.format(key=""), passkey.QUESTION):
        for _ in range(_TEMPLATE_WEIGHT):
            yield text
    for word in WHOLE_WORDS:
        yield f" {word}" * _TEMPLATE_WEIGHT


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Train the tokenizer; `encode` puts `<bos>` first, as Llama's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_with_templates(texts), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=EOS)
