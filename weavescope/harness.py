"""Any model under any scheme in EleutherAI's lm-evaluation-harness (extra `lm-eval`).

    import lm_eval
    from weavescope.harness import WeaveLM

    lm = WeaveLM("smollm2", scheme="rerope+logn")
    lm_eval.simple_evaluate(lm, tasks=["lambada_openai"])

`probe lm-eval --model_args pretrained=smollm2,scheme=rerope+logn --tasks ...` is the harness's own command line with
this model class. The harness (https://github.com/EleutherAI/lm-evaluation-harness, 0.4.13) cuts prompts longer than the
model's window from the left, so that nothing past the window is ever tested: here they are read whole, up to
`max_length`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from probe.errors import FieldError, ProbeError
from probe.models.load import LoadedModel, load_model
from probe.provenance import Provenance
from probe.schemes import ORIGIN, Scheme, parse_scheme
from probe.seam.apply import apply_scheme, check_scheme
from probe.tasks.scoring import padded

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
else:
    try:
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("lm_eval", "accelerate"):
            raise
        raise ProbeError(
            "lm-evaluation-harness is not installed; expected it from: pip install 'weavescope[lm-eval]'"
        ) from None

WINDOWS = 64
"""Longest prompt in windows, unless `max_length` says another."""

_log = logging.getLogger("weavescope.harness")

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""(texts of context and continuation, ids of the context, ids of the continuation), as the harness hands them on."""


class WeaveLM(HFLM):
    """A model under a scheme, as the harness wants it: loglikelihood, rolling loglikelihood and generate_until.

    Args:
        pretrained: as `weavescope.load` takes it: an embedded name, a folder, a GGUF file, a hub id; or a `Model`.
        scheme: its text; in `--model_args`, which split at commas, with semicolons: "mesa(N=64;E=20)".
        window: trained window M, where the config's is wrong or missing.
        device: "auto", "cpu", "cuda", ...; the harness's `--device`. A CUDA device where there is none is "auto".
        dtype: "auto", "float32", ...
        max_length: tokens of the longest input, from which longer ones are cut at the left; default 64 windows.
        trust_remote_code: run Python code from the model's repository.
        allow_pickle: accept weights that are not safetensors.
        options: of the harness's `HFLM`: batch_size, add_bos_token, ...

    Raises:
        ProbeError: a model or scheme that does not fit, or a model without tokenizer.
    """

    def __init__(
        self,
        pretrained: Any,
        scheme: str | Scheme = ORIGIN,
        window: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        max_length: int | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        **options: Any,
    ) -> None:
        loaded: LoadedModel = getattr(pretrained, "loaded", None) or load_model(
            str(pretrained), device=_device(device), dtype=dtype, window=None if window is None else int(window),
            trust_remote_code=bool(trust_remote_code), allow_pickle=bool(allow_pickle),
        )  # fmt: skip
        tokenizer = loaded.tokenizer_for("lm-evaluation-harness", "give a model that has one")
        self.loaded = loaded
        self.scheme = scheme if isinstance(scheme, Scheme) else parse_scheme(scheme.replace(";", ","), loaded.window)
        check_scheme(loaded.model, self.scheme)
        longest = WINDOWS * loaded.window if max_length is None else int(max_length)
        if longest < 2:
            raise FieldError("max_length", "at least 2 tokens", longest)
        super().__init__(pretrained=loaded.model, tokenizer=tokenizer, max_length=longest, **options)
        _log.warning(
            "scheme %s, window M = %d: inputs of up to %d tokens are read whole (the harness's own limit would be M)",
            self.scheme.spec, loaded.window, longest,
        )  # fmt: skip

    @override
    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results: the model's, and the scheme with what it was made with."""
        source = Provenance.now()
        told: dict[str, Any] = super().get_model_info()
        return told | {
            "weavescope_model": self.loaded.name,
            "weavescope_scheme": self.scheme.spec,
            "weavescope_parameters": dict(self.scheme.parameters),
            "weavescope_window": self.loaded.window,
            "weavescope_max_length": self.max_length,
            "weavescope_version": source.versions.get("weavescope"),
            "weavescope_git_commit": source.git_commit,
        }

    @override
    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """The harness's own generation under the scheme; prompts come padded at the left, with a mask."""
        with apply_scheme(self.model, self.scheme):
            made: Tensor = super()._model_generate(context, max_length, stop, **options)
        return made

    @override
    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of whole inputs under the scheme: what the harness tries batch sizes with."""
        with apply_scheme(self.model, self.scheme):
            logits: Tensor = super()._model_call(inps, attn_mask, labels)
        return logits

    @override
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether greedy decoding would give it) of every request.

        As the harness's, which pads at the right without a mask and keeps the logits of every position: here a scheme
        that depends on an input's length sees its own, and only logits that somebody reads are computed. Requests that
        the model reads alike share a pass.
        """
        from tqdm import tqdm

        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            groups.setdefault(self._read(context, continuation), []).append(number)
        found: dict[int, tuple[float, bool]] = {}
        # The longest first: what does not fit fails at once.
        inputs = sorted(groups, key=lambda read: (-len(read), read))
        size = override_bs or (self._detect_batch_size() if self.batch_size == "auto" else int(self.batch_size))
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), disable=hidden, desc="Running loglikelihood requests") as bar:
            for start in range(0, len(inputs), size):
                batch = inputs[start : start + size]
                longest = max(len(requests[number][2]) for read in batch for number in groups[read])
                for read, logits in zip(batch, self._last_logits(batch, longest), strict=True):
                    for number in groups[read]:
                        found[number] = self._answer(logits, requests[number])
                        bar.update()
        return [found[number] for number in range(len(requests))]

    def _read(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[int, ...]:
        """What the model reads: all but the last token, cut at the left where it is too long."""
        if not context or not continuation or len(continuation) > self.max_length:
            raise ProbeError(
                f"expected a context and a continuation of 1 to {self.max_length} tokens, got {len(context)} and "
                f"{len(continuation)}"
            )
        whole = [*context, *continuation]
        if len(whole) > self.max_length + 1:
            _log.warning(
                "an input of %d tokens is cut to the last %d; give a larger max_length", len(whole), self.max_length + 1
            )
        return tuple(whole[-(self.max_length + 1) :][:-1])

    @torch.no_grad()
    def _last_logits(self, batch: Sequence[tuple[int, ...]], count: int) -> Tensor:
        """Logits [batch, count, vocabulary] of the last positions."""
        options: dict[str, Any] = {} if count >= max(map(len, batch)) else {"logits_to_keep": count}
        with apply_scheme(self.model, self.scheme):
            logits: Tensor = self.model(**padded(batch, self.device), use_cache=False, **options).logits
        return logits

    def _answer(self, logits: Tensor, request: Request) -> tuple[float, bool]:
        texts, _, continuation = request
        truth = torch.tensor(continuation, device=logits.device)
        own = logits[-len(continuation) :]
        scores = torch.log_softmax(own, -1, dtype=self.softmax_dtype).gather(-1, truth[:, None])
        answer = float(scores.sum()), bool((own.argmax(-1) == truth).all())
        if texts is not None:  # windows of a rolling likelihood have none
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answer


def _device(asked: str | None) -> str:
    """The device to load to: the harness asks for "cuda:0" where its user named none, on any machine."""
    if asked is None or (asked.startswith("cuda") and not torch.cuda.is_available()):
        return "auto"
    return asked


def register() -> None:
    """Make the class known to the harness as "weavescope"; a second call changes nothing."""
    from lm_eval.api.registry import model_registry, register_model

    if "weavescope" not in model_registry:
        register_model("weavescope")(WeaveLM)


register()
