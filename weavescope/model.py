"""One object with verbs: a language model, to run under any position scheme, to probe and to score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.bench.generate import Continuation, Generation
from probe.models.load import LoadedModel, load_model, wrap_model
from probe.results import Counted, Result, Told
from probe.schemes import ORIGIN, Scheme, parse_scheme
from probe.seam.apply import apply_scheme
from probe.studies.causes import CauseRow, Causes
from probe.studies.evaluate import Evaluation
from probe.studies.frequencies import FrequencyRow, FrequencyStudy
from probe.studies.journal import Journal
from probe.studies.leads import LeadRow, Leads
from probe.studies.patching import Patching, PatchRow
from probe.studies.pieces import PieceStore
from probe.studies.positional import Positional, PositionalRow
from probe.studies.precision import Precision, PrecisionRow
from probe.studies.run import Numbers, RunSettings, SchemesAsked, run_probe
from probe.studies.scan import Scan, ScanRow
from probe.studies.sweep import Sweep
from probe.studies.tune import TuneRow, Tuning
from probe.tasks.audit import audit
from probe.thresholds.detectors import DetectorSettings
from weavescope.run import Run, removed_with, temporary_run_folder

Progress = Callable[[float, str], None]
"""Told the share done, 0 to 1, and what is going on."""


class Model:
    """A causal language model with its tokenizer and its trained window; made by `load` or `wrap`.

    Attributes:
        loaded: what the library's inside works with: model, tokenizer, family, window and what a run shows by default.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    @property
    def name(self) -> str:
        """As it was named when it was loaded."""
        return self.loaded.name

    @property
    def hf(self) -> Any:
        """The transformers model itself."""
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; None where there is none."""
        return self.loaded.tokenizer

    @property
    def window(self) -> int:
        """Trained window M, tokens."""
        return self.loaded.window

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.loaded.layers

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.loaded.device

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}: {self.loaded.family.name}, {self.layers} layers, window {self.window}, "
            f"{self.hf.dtype} on {self.device})"
        )

    def scheme(self, scheme: str | Scheme) -> Scheme:
        """A scheme for this model's window, from its text; an object is given back.

        Raises:
            ProbeError: the text does not parse, or names something unknown.
        """
        return scheme if isinstance(scheme, Scheme) else parse_scheme(scheme, self.window)

    def encode(self, text: str) -> Tensor:
        """Token ids [1, tokens] of a text, on the model's device.

        Raises:
            ProbeError: there is no tokenizer.
        """
        tokenizer = self.loaded.tokenizer_for("a text", "give token ids")
        ids: Tensor = tokenizer(text, return_tensors="pt").input_ids
        return ids.to(self.device)

    @contextmanager
    def under(
        self, scheme: str | Scheme = ORIGIN, *, backend: str = "pieces", chunk_batch: int | str = "auto", **options: Any
    ) -> Iterator[Model]:
        """Run the model under a scheme inside the context, and leave no trace.

        Args:
            scheme: text such as "mesa+logn", or an object, one of your own too.
            backend: "pieces" (fast) or "dense" (the reference, with gradients).
            chunk_batch: middle chunks of a chunked prompt that go through the model together.
            options: further ones of `probe.seam.apply.apply_scheme`: exact_angles, prompt.

        Raises:
            ProbeError: a scheme that the model has no use for, or one applied already.
        """
        with apply_scheme(self.hf, self.scheme(scheme), backend=backend, chunk_batch=chunk_batch, **options):
            yield self

    def __call__(self, ids: Tensor, **options: Any) -> Any:
        """The transformers model's own forward, without gradients.

        Args:
            ids: token ids [batch, tokens].
            options: of the model's forward.
        """
        with torch.no_grad():
            return self.hf(ids, **options)

    def generate(self, prompt: str | Tensor, **options: Any) -> Any:
        """Continue a prompt, as `generate` of transformers does, greedily unless told otherwise.

        Args:
            prompt: a text, or token ids [batch, tokens].
            options: of `generate`: max_new_tokens, do_sample, ...

        Returns:
            For a text the new text; for ids what transformers returns, the prompt's ids included.
        """
        options = {"do_sample": False} | options
        if isinstance(prompt, Tensor):
            return self.hf.generate(prompt, **options)
        ids = self.encode(prompt)
        # Without a mask, transformers takes a first token that is the model's pad token for padding.
        made = self.hf.generate(ids, **{"attention_mask": torch.ones_like(ids)} | options)
        return self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

    def probe(
        self,
        schemes: SchemesAsked = None,
        *,
        layers: Numbers = None,
        dims: Numbers = None,
        sites: Sequence[str] = ("resid",),
        input: Any = None,
        length: int | None = None,
        samples: int = 1,
        detector: str | None = None,
        burn_in: int | None = None,
        run_length: int | None = None,
        margin: float = 3.0,
        backend: str = "pieces",
        chunk_batch: int | str = "auto",
        seed: int = 0,
        out: str | Path | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Run:
        """Record hidden states past the window under several schemes, predict where the model fails and measure it.

        Args:
            schemes: text, objects or both; default what fits the model. The model as trained is always run.
            layers: 1 is the first; "all"; default 1 and 2.
            dims: 0 is the first; "all"; default 0 and 1.
            sites: names of the table of sites: "resid", "attn", "mlp".
            input: "word:hello", "heldout", "text:FILE", token ids, ...; default what fits the model.
            length: tokens; default four windows, or a file whole.
            samples: sequences to average over, for inputs that have several.
            detector: "range" or "paper"; default what fits the model.
            burn_in: first position of the in-window reference; default M/8.
            run_length: positions that a crossing must last; default max(8, M/16).
            margin: robust standard deviations of slack.
            backend: of the attention, "pieces" or "dense".
            chunk_batch: middle chunks of a chunked prompt in one call, or "auto".
            seed: draws the input.
            out: the run folder to make; default a temporary one, which `Run.save` copies.
            force: replace a run at `out`.
            progress: told how far it is.

        Raises:
            ProbeError: bad settings, an unusable place, hidden states that are not finite.
        """
        settings = RunSettings(
            layers=layers,
            dims=dims,
            sites=sites,
            schemes=schemes,
            input=input,
            length=length,
            samples=samples,
            detector=detector,
            detection=DetectorSettings(burn_in, run_length, margin),
            backend=backend,
            chunk_batch=chunk_batch,
            seed=seed,
        )
        return self.run(settings, out=out, force=force, progress=progress)

    def run(
        self,
        settings: RunSettings,
        *,
        out: str | Path | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Run:
        """`probe`, with the settings as one object."""
        target = temporary_run_folder() if out is None else Path(out)
        told = (lambda _share, _line: None) if progress is None else progress
        run = Run(run_probe(self.loaded, settings, target, force=force, progress=told).path)
        return removed_with(run, target.parent) if out is None else run

    def evaluation(
        self,
        task: str | Sequence[str] = "passkey",
        schemes: SchemesAsked = ORIGIN,
        *,
        lengths: Sequence[int | str] | None = None,
        samples: int = 50,
        seed: int | Sequence[int] = 0,
        tail: int | None = None,
        input: str | None = None,
        prompt: str | None = None,
        haystack: str | None = None,
        unit: str | None = None,
        depths: int | None = None,
        question: str | None = None,
        haystacks: int | None = None,
        early_stop: int | None = None,
    ) -> Evaluation:
        """An evaluation that is yet to run, row by row: for progress, and to keep what is done when it is stopped.

        Args and errors are those of `evaluate`.
        """
        return Evaluation(
            self.loaded, task, schemes or ORIGIN, lengths, samples, seed, tail, input, prompt, haystack, unit, depths,
            question, haystacks, early_stop,
        )  # fmt: skip

    def evaluate(
        self,
        task: str | Sequence[str] = "passkey",
        schemes: SchemesAsked = ORIGIN,
        *,
        lengths: Sequence[int | str] | None = None,
        samples: int = 50,
        seed: int | Sequence[int] = 0,
        tail: int | None = None,
        input: str | None = None,
        prompt: str | None = None,
        haystack: str | None = None,
        unit: str | None = None,
        depths: int | None = None,
        question: str | None = None,
        haystacks: int | None = None,
        early_stop: int | None = None,
        keep: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Result[Any]:
        """Score the model on tasks at several lengths under several schemes.

        Args:
            task: one or several names of the table of tasks: "passkey" (exact answers), "niah-single-1" and other
                needles of RULER, "nll" (nats per token of a text), ...; `choices("task")` lists them.
            schemes: text, objects or both.
            lengths: tokens, or text such as "M/2" and "2M"; default M/4, M/2, M and 2M.
            samples: per length and seed.
            seed: draws them; several draw so many each.
            tail: of "nll", the positions that the mean is over; default the last quarter.
            input: of "nll", what is read, as `probe` takes it; default held-out text.
            prompt: of generated tasks, "plain" or "chat", the model's chat template; default plain.
            haystack: of tasks that hide something in text: "heldout", "documents", "noise" or "text:FILE"; default
                heldout.
            unit: of the lengths of generated tasks, "tokens" or "words"; default tokens.
            depths: deal samples to so many depths from 0 to 1, with a row for each; default spreads them evenly.
            question: where the question of generated tasks stands to the text: "end", "start" or "both"; default end.
            haystacks: hide things in so many texts only, so that what samples have in common is read once; default a
                text of its own for each sample.
            early_stop: leave out a scheme's longer lengths after one where none of at least so many answers was right;
                default never.
            keep: a folder in which every sample is kept as it is done; a call that was stopped goes on from there.
            progress: told how far it is.

        Returns:
            A row per task, length and scheme.

        Raises:
            ProbeError: an unknown task, or what does not fit the model or the task.
        """

        def make(loaded: LoadedModel, journal: Journal) -> Evaluation:
            return Evaluation(
                loaded, task, schemes or ORIGIN, lengths, samples, seed, tail, input, prompt, haystack, unit, depths,
                question, haystacks, early_stop, journal,
            )  # fmt: skip

        work = Sweep(lambda _: self.loaded, [self.name], make, None if keep is None else Path(keep))
        return _finished(work, progress)

    def causes(
        self,
        schemes: SchemesAsked = "origin,rerope",
        *,
        length: int | None = None,
        lengths: Sequence[int | str] | None = None,
        measure: int | None = None,
        samples: int = 2,
        tail: int | None = None,
        seed: int = 0,
        keep: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Result[CauseRow]:
        """Why the model fails past its window, and where it will: unseen distances, or more keys than ever.

        Args:
            schemes: text, objects or both.
            length: tokens of the longest input; default 2M.
            lengths: tokens, or text such as "2M"; default M times 1.125, 1.25, 1.5, 2, 3, 4 and 8 below `length`, and
                `length`.
            measure: longest input that is really run; 0 predicts alone, from passes no longer than the window. Default
                all.
            samples: shipped documents.
            tail: last tokens that a rise is a mean over; default M/4.
            seed: of where the documents' windows end.
            keep: folder for what is measured; what is there is not measured again.
            progress: told how far it is.

        Returns:
            A row per scheme, length and cause.

        Raises:
            ProbeError: what does not fit the model.
        """
        work = Causes(self.loaded, schemes, length, samples, seed, measure, tail, lengths, _store(keep))
        return _finished(work, progress)

    def tune(
        self,
        length: int | None = None,
        schemes: SchemesAsked = None,
        *,
        budget: float | None = None,
        screened: int = 6,
        finalists: int | None = 3,
        checked: int = 8,
        documents: int = 2,
        seed: int = 0,
        keep: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Result[TuneRow]:
        """Which scheme and parameters the model should use at a length: screened inside the window, then checked.

        Args:
            length: tokens to be handled; default 2M.
            schemes: candidates, text, objects or both; default every weave at several bands, with and without log-n.
            budget: seconds for screening and checking; default no limit.
            screened: short prompts per experiment and candidate.
            finalists: candidates that are checked at the length; None for all.
            checked: pass keys at the length; a finalist is asked for a quarter first, who leads for the rest.
            documents: texts that likelihoods are means over.
            seed: of keys and texts.
            keep: folder for what is measured; what is there is not measured again.
            progress: told how far it is.

        Returns:
            A row per candidate, the best first; `settings["proposed"]` is the scheme to use.

        Raises:
            ProbeError: a length inside the window, no tokenizer, or what does not fit the model.
        """
        work = Tuning(
            self.loaded, 2 * self.window if length is None else length, schemes, budget, screened, checked, documents,
            seed, finalists, _store(keep),
        )  # fmt: skip
        return _finished(work, progress)

    def frequencies(
        self,
        schemes: SchemesAsked = ORIGIN,
        *,
        length: int | None = None,
        groups: int | None = None,
        samples: int = 2,
        tail: int | None = None,
        seed: int = 0,
        keep: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Result[FrequencyRow]:
        """Which rotary frequencies cause the failure past the window, from passes no longer than the window.

        Args:
            schemes: text, objects or both; none of them weaves.
            length: tokens of the long input that is stood for; default 2M.
            groups: of neighbouring frequencies; default each by itself.
            samples: shipped documents.
            tail: last tokens that a rise is a mean over; default M/4.
            seed: of where the documents' windows end.
            keep: folder for what is measured; what is there is not measured again.
            progress: told how far it is.

        Returns:
            A row per scheme and group: it alone at unseen distances, and all but it.

        Raises:
            ProbeError: a model without RoPE, a scheme that weaves, or what does not fit.
        """
        work = FrequencyStudy(self.loaded, schemes or ORIGIN, length, groups, samples, tail, seed, _store(keep))
        return _finished(work, progress)

    def scan(
        self,
        schemes: SchemesAsked = None,
        *,
        lengths: Sequence[int | str] | None = None,
        input: str = "documents",
        samples: int = 4,
        tail: int | None = None,
        signals: Sequence[str] | None = None,
        keys: int = 0,
        seed: int = 0,
        keep: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Result[ScanRow]:
        """Every signal at every scheme and length, beside whether the model fails there.

        Args:
            schemes: text, objects or both; default every preset that fits, and log-n on some.
            lengths: tokens, or text such as "2M"; default 1.25, 1.5, 2 and 4 windows, of long ones up to 2.
            input: text, as `probe` takes it.
            samples: texts.
            tail: last tokens that everything is a mean over; default M/4.
            signals: names of `choices("signal")`; default all.
            keys: pass keys that every pair is asked for besides; default none.
            seed: of the texts, and of what the controls draw.
            keep: folder for what is measured; what is there is not measured again.
            progress: told how far it is.

        Returns:
            A row per pair; `units` has the single dimensions and heads that tell best.

        Raises:
            ProbeError: a length inside the window, an unknown signal, a model without a head, or what does not fit.
        """
        store = _store(keep)
        work = Scan(self.loaded, schemes, lengths, input, samples, seed, tail, signals, store, keys)
        return _finished(work, progress)

    def leads(
        self,
        schemes: SchemesAsked = ORIGIN,
        *,
        length: int | None = None,
        input: str = "documents",
        samples: int = 8,
        signals: Sequence[str] | None = None,
        detectors: Sequence[str] | None = None,
        resamples: int = 100,
        seed: int = 0,
        keep: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Result[LeadRow]:
        """Which detector of which signal says that the model fails before its likelihood does, and how long before.

        Args:
            schemes: text, objects or both.
            length: tokens of a text; default 4 windows, of long ones 2.
            input: text, as `probe` takes it.
            samples: texts.
            signals: names of `choices("signal")`; default all but the truth.
            detectors: names of `choices("detector")`; default all.
            resamples: texts drawn again, for the intervals.
            seed: of the texts and the resamples.
            keep: folder for what is measured; what is there is not measured again.
            progress: told how far it is.

        Returns:
            A row per scheme, signal and detector, and one per scheme with the truth.

        Raises:
            ProbeError: a length that leaves nothing past the window, an unknown signal or detector, a model without a
                head, or what does not fit.
        """
        store = _store(keep)
        work = Leads(self.loaded, schemes, length, input, samples, seed, signals, detectors, resamples, store)
        return _finished(work, progress)

    def positional(
        self,
        schemes: SchemesAsked = ORIGIN,
        *,
        length: int | None = None,
        input: str = "documents",
        samples: int = 8,
        seed: int = 0,
        keep: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Result[PositionalRow]:
        """How much of the variance of every layer's output is position, inside the window and past it.

        Args:
            schemes: text, objects or both.
            length: tokens of a text; default 4 windows, of long ones 2.
            input: text, as `probe` takes it.
            samples: texts, at least 3.
            seed: of the texts.
            keep: folder for what is measured; what is there is not measured again.
            progress: told how far it is.

        Returns:
            A row per scheme, layer and side of M.

        Raises:
            ProbeError: too short a length, too few texts, or what does not fit.
        """
        work = Positional(self.loaded, schemes, length, input, samples, seed, _store(keep))
        return _finished(work, progress)

    def precision(
        self,
        schemes: SchemesAsked = None,
        *,
        dtypes: Sequence[str] = ("float32", "bfloat16", "float16"),
        length: int | None = None,
        input: str = "documents",
        seed: int = 0,
        exact_angles: bool = False,
        progress: Progress | None = None,
    ) -> Result[PrecisionRow]:
        """What a number type costs under every scheme, beside the same rounded weights in float64.

        Args:
            schemes: text, objects or both; default every preset that fits, rerope+logn, mesa+logn.
            dtypes: number types.
            length: tokens; default 2M, at most 2048.
            input: text, as `probe` takes it.
            seed: of the text.
            exact_angles: rotary angles in float64; the stock model's are in float32.
            progress: told how far it is.

        Returns:
            A row per type and scheme; "stock" is the model as transformers runs it.

        Raises:
            ProbeError: an unknown type, or what does not fit the model.
        """
        work = Precision(self.loaded, schemes, dtypes, length, input, seed, exact_angles)
        return _finished(work, progress)

    def patch(
        self,
        schemes: SchemesAsked = ORIGIN,
        *,
        length: int | None = None,
        patches: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        input: str = "documents",
        samples: int = 4,
        tail: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Result[PatchRow]:
        """Hidden states put back into what they are inside the window, past it: does the likelihood return?

        Args:
            schemes: text, objects or both.
            length: tokens of the long input; default 2M.
            patches: names of `choices("patch")`; default all.
            layers: 1-based, each changed by itself; default every one. All at once always comes first.
            input: text, as `probe` takes it.
            samples: texts that are patched; as many others say what is known.
            tail: last tokens that a rise is a mean over; default M/4.
            seed: draws the texts and the random direction.
            progress: told how far it is.

        Returns:
            A row per patch and layer, beside the model as it is and with its distances folded back.

        Raises:
            ProbeError: a length inside the window, an unknown patch, a layer that is not there, or what does not fit.
        """
        work = Patching(self.loaded, schemes or ORIGIN, length, patches, layers, input, samples, tail, seed)
        return _finished(work, progress)

    def continuations(
        self,
        schemes: SchemesAsked = "origin,mesa",
        *,
        input: str = "heldout",
        length: int | None = None,
        new: int = 20,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Result[Continuation]:
        """What the model writes after one prompt under several schemes, greedily, with time and memory.

        Args:
            schemes: text, objects or both.
            input: the prompt, as `probe` takes it.
            length: its tokens; default a file whole, else four windows (two of long ones).
            new: tokens to write, less where the model ends its text.
            seed: of what is drawn of the input.
            progress: told how far it is.

        Returns:
            A row per scheme.

        Raises:
            ProbeError: what does not fit the model or the input.
        """
        work = Generation(self.loaded, schemes or ORIGIN, input, length, new, seed)
        return _finished(work, progress)

    def audit(
        self,
        *,
        chunks: Sequence[int] | None = None,
        first: int | None = None,
        length: int | None = None,
        input: str = "heldout",
        samples: int | None = None,
        seed: int = 0,
    ) -> Result[Any]:
        """What share of the trained model's attention a chunked prefill would not see, per layer, head and chunk width.

        Args:
            chunks: widths C of the middle chunks, tokens; default M/8, M/4 and M/2.
            first: tokens F of chunk 0; default Mesa's.
            length: tokens of the input, at most the window; default: the window.
            input: as `probe` takes it.
            samples: sequences; default 16 of the held-out text, 1 of anything else.
            seed: of their places.

        Raises:
            ProbeError: a length past the window, or chunks that do not fit into it.
        """
        return audit(self.loaded, chunks=chunks, first=first, length=length, input=input, samples=samples, seed=seed)


def _store(keep: str | Path | None) -> PieceStore:
    return PieceStore(None if keep is None else Path(keep))


def _finished(work: Counted, progress: Progress | None) -> Result[Any]:
    """The result of a measurement that is run to its end."""
    if progress is not None and isinstance(work, Told):
        told = work
        told.tell = lambda line: progress(told.share, line)
    for done, line in enumerate(work.run(), 1):
        if progress is not None:
            progress(work.share if isinstance(work, Told) else min(1.0, done / work.total), line)
    return work.result(True)


def load(
    name: str = "rope",
    *,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    length: int | None = None,
) -> Model:
    """Load a model, with nothing run that was not asked for.

    Args:
        name: an embedded model ("rope", "alibi", "nope"), one that is fetched at its first use ("smollm2"), a local
            folder, a GGUF file, a hub id, or "construction:3.3(M=32,N=4)".
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto" (float32 on CPU, the checkpoint's own elsewhere), "float32", "float64", "bfloat16", "float16".
        window: trained window M in tokens, where the config's is wrong or missing.
        trust_remote_code: run the repository's own Python code.
        allow_pickle: accept weights that are not safetensors; loading a pickle can run code.
        length: positions that a construction must be built for; other models do not need it.

    Raises:
        ProbeError: anything that keeps it from loading, as one line that says what to do.
    """
    return Model(
        load_model(
            name,
            device=device,
            dtype=dtype,
            window=window,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            length=length,
        )
    )


def wrap(model: Any, tokenizer: Any = None, *, window: int | None = None, name: str | None = None) -> Model:
    """A model that is in memory already: on a GPU, quantised, with PEFT adapters.

    Args:
        model: a causal LM of transformers, of a supported family.
        tokenizer: its tokenizer, for what needs one.
        window: trained window M in tokens; default what its config states.
        name: for tables and run folders; default the config's.

    Raises:
        ProbeError: an unsupported family, or no window.
    """
    return Model(wrap_model(model, tokenizer, window=window, name=name))
