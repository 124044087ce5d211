"""Causal language models of transformers that the seam does not fit, by the reason."""

from __future__ import annotations

LATENT = "multi-head latent attention rotates a part of every key that all heads share, beside one that is not rotated"
LEARNED = "its positions are learned embeddings, or sums of sinusoids, added to the tokens; no scheme reaches them"
CROSS = "it is the decoder of an encoder-decoder, with learned positions and attention to the encoder"
STATE = "some or all of its layers carry a running state (state-space, linear attention, convolution) with no distances"
WRAPS = "it reads pictures or sound too, around a language model of its own"
OTHER = "it rotates, but its attention is not that of any family here, and has not been looked at"
RELATIVE = "its positions are of a kind of its own"

_BY_REASON = {
    LATENT: (
        "deepseek_v2", "deepseek_v3", "deepseek_v32", "axk1", "axk2", "dots3_note", "dots3_note_text", "glm4_moe_lite",
        "glm_moe_dsa", "hy_v4", "longcat_flash", "minicpm3", "youtu", "kimi_linear", "bailing_hybrid",
    ),
    LEARNED: (
        "gpt2", "gpt_neo", "gpt_bigcode", "opt", "bert", "bert-generation", "big_bird", "biogpt", "camembert",
        "data2vec-text", "electra", "ernie", "gpt-sw3", "megatron-bert", "openai-gpt", "rembert", "roberta",
        "roberta-prelayernorm", "roc_bert", "trocr", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod", "ctrl",
        "reformer",
    ),
    CROSS: (
        "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "musicgen", "musicgen_melody",
        "mvp", "pegasus", "plbart", "prophetnet", "whisper",
    ),
    STATE: (
        "falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm", "zamba", "zamba2", "bamba", "falcon_h1",
        "granitemoehybrid", "jamba", "lfm2", "lfm2_moe", "lfm3", "minimax", "nemotron_h", "olmo_hybrid",
        "qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp", "qwen4_exp_text",
        "recurrent_gemma", "inkling_text", "inkling2_text",
    ),
    WRAPS: (
        "llama4", "fuyu", "gemma4_unified_assistant", "gemma4_assistant", "got_ocr2", "git", "moss_transcribe_diarize",
        "emu3", "gemma3n", "gemma4", "gemma4_unified", "mllama", "phi4_multimodal", "moshi",
    ),
    OTHER: (
        "afmoe", "beam", "blt", "codegen", "cohere_compass_text", "dbrx", "deepseek_v4", "doge", "flint",
        "gemma3n_text", "gemma4_text", "gemma4_unified_text", "gpt_neox_japanese", "gptj", "granite_swa",
        "granitemoe_swa", "granitemoeshared", "hrm_text", "jetmoe", "laguna", "mimo_v2_flash", "minimax_m3_vl_text",
        "modernbert-decoder", "nanochat", "roformer", "zaya",
    ),
    RELATIVE: ("cpmant", "xlnet"),
}  # fmt: skip

REFUSED: dict[str, str] = {
    **{name: reason for reason, names in _BY_REASON.items() for name in names},
    "gemma3": "it reads pictures too; its language model, gemma3_text, fits",
    "llama4_text": "its local layers attend within chunks of their own, and its others scale queries by their position",
}
"""Model types that are known not to fit, each with the reason."""
