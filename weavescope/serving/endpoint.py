"""An OpenAI-compatible endpoint for a model under a scheme (extra `serve`), on transformers' own server.

Requests, streaming and the wording of answers are those of `transformers serve` (5.x,
https://huggingface.co/docs/transformers/serving). Beside it: one model, under one scheme for as long as the server
runs; limits on prompts and on waiting requests; errors as the OpenAI clients read them; and work that stops when nobody
waits for it any more. Requests are answered one after another: a scheme's prompt may fill the machine.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import StoppingCriteria

from probe.errors import ProbeError, out_of_memory
from probe.models.load import LoadedModel
from probe.schemes import Scheme
from probe.seam.apply import apply_scheme, check_scheme
from weavescope.serving.limits import Limits

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse, Response
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.utils import GenerateManager, GenerationState, Modality
except (ImportError, NameError) as error:  # transformers leaves names undefined where its extra is missing
    raise ProbeError("serving needs more packages; expected them from: pip install 'weavescope[serve]'") from error

BODY = 1 << 26
"""Largest request, bytes."""


class _OneModel:
    """In the place of transformers' model manager: the one model, which is there and stays."""

    def __init__(self, loaded: LoadedModel, name: str) -> None:
        self.loaded = loaded
        self.force_model = name

    def process_model_name(self, name: str) -> str:
        """As it is."""
        return name

    def load_model_and_processor(self, name: str, gguf_file: str | None = None) -> tuple[Any, Any]:
        """(model, tokenizer)."""
        return self.loaded.model, self.loaded.tokenizer_for("serving")

    def get_model_modality(self, model: Any, processor: Any = None) -> Modality:
        """Text."""
        return Modality.LLM


class _Cancelled(StoppingCriteria):
    """Ends a generation nobody waits for."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class _Manager(GenerateManager):
    """transformers' sequential generation, with limits, and with an end where the client has gone."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits

    def _check(self, inputs: Any, settings: Any) -> None:
        tokens = int(inputs["input_ids"].shape[-1])
        if not 1 <= tokens <= self.limits.prompt:
            raise HTTPException(400, f"prompt: expected 1 to {self.limits.prompt} tokens, got {tokens}")
        if settings.max_new_tokens is not None and settings.max_new_tokens < 1:
            raise HTTPException(400, f"max_tokens: expected at least 1, got {settings.max_new_tokens}")
        settings.max_new_tokens = min(settings.max_new_tokens or self.limits.new, self.limits.new)
        # A default of the model's that would count the prompt too.
        settings.max_length = None

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> Any:
        """(queue of text, streamer); the streamer's `cancel` ends it at the next token."""
        self._check(inputs, gen_config)
        return super().generate_streaming(model, processor, inputs, gen_config, request_id, response_parser)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, Any]:
        """(text, tokens of the prompt, ids written). Cancelled, it ends at the next token, or does not begin."""
        self._check(inputs, gen_config)
        gone = _Cancelled()

        def generate() -> Any:
            if gone.event.is_set():
                return None
            return model.generate(**inputs, generation_config=gen_config, tokenizer=processor, stopping_criteria=[gone])

        try:
            # The thread will say what became of it, whether anybody still waits or not.
            sequences = await asyncio.shield(self.async_submit(generate))
        except asyncio.CancelledError:
            gone.event.set()
            raise
        tokens = inputs["input_ids"].shape[-1]
        written = sequences[0, tokens:]
        return processor.decode(written, skip_special_tokens=True), tokens, written


class _State(GenerationState):
    """One manager for all requests."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.manager = _Manager(limits)

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        """It."""
        return self.manager


def _error(status: int, message: str) -> JSONResponse:
    """As the OpenAI clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status_code=status)


async def _while_wanted(request: Request, work: Awaitable[Response]) -> Response:
    """What the work gives; it is cancelled once the client has gone."""
    task = asyncio.ensure_future(work)
    while True:
        done, _ = await asyncio.wait({task}, timeout=0.2)
        if done:
            return task.result()
        if await request.is_disconnected():
            task.cancel()
            return Response(status_code=499)


def _said(error: Exception) -> tuple[int, str]:
    """(HTTP status, message) of what a request ran into."""
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory(error)):
        return 503, "out of memory: send a shorter prompt"
    if isinstance(error, ProbeError):
        return 400, str(error)
    # Values of a request reach transformers' code as they are; what else goes wrong is not the client's doing.
    asked = isinstance(error, KeyError | TypeError | ValueError | AttributeError | TemplateError)
    return (400, f"bad request: {_named(error)}") if asked else (500, f"the server ran into {_named(error)}")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Counted(Response):
    """A response, after whose last byte, or end in the middle, one request fewer is waiting."""

    def __init__(self, inner: Response, done: Callable[[], None]) -> None:
        super().__init__()
        self.inner, self.done = inner, done

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.inner(scope, receive, send)
        finally:
            self.done()


@dataclass
class _Desk:
    """Where requests wait: how many do, how many were answered."""

    limits: Limits
    waiting: int = 0
    served: int = 0

    def released(self) -> None:
        """One fewer waits."""
        self.waiting -= 1

    async def answered(
        self, request: Request, handle: Callable[[dict[str, Any], str], Awaitable[Response]]
    ) -> Response:
        """What a handler makes of a request, or why there is no answer."""
        if self.waiting >= self.limits.waiting:
            return _error(429, f"{self.limits.waiting} requests are waiting already; try again later")
        self.waiting += 1
        try:
            body = await _body(request)
            response = await _while_wanted(request, handle(body, f"weave-{self.served}"))
            self.served += 1
        except Exception as error:  # a request must never end the server
            response = _error(*_said(error))
        except BaseException:
            self.released()
            raise
        return _Counted(response, self.released)


def build(loaded: LoadedModel, scheme: Scheme, limits: Limits) -> FastAPI:
    """The application: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health`.

    The scheme is to be applied around the server (`serve` does).

    Args:
        loaded: the model.
        scheme: what it runs under, for `/health` and `/v1/models`.
        limits: what a request may ask for.

    Raises:
        ProbeError: no tokenizer, or a scheme that does not fit.
    """
    loaded.tokenizer_for("serving")
    check_scheme(loaded.model, scheme)
    manager, state = _OneModel(loaded, loaded.name), _State(limits)
    chats, texts = ChatCompletionHandler(manager, state), CompletionHandler(manager, state)
    app = FastAPI(title=f"{loaded.name} under {scheme.spec}", docs_url=None, redoc_url=None, openapi_url=None)
    desk = _Desk(limits)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        if not getattr(loaded.tokenizer, "chat_template", None):
            return _error(400, f"model {loaded.name} has no chat template; use /v1/completions")
        return await desk.answered(request, chats.handle_request)

    @app.post("/v1/completions")
    async def text(request: Request) -> Response:
        return await desk.answered(request, texts.handle_request)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        one = {"id": loaded.name, "object": "model", "owned_by": "weavescope", "scheme": scheme.spec}
        return {"object": "list", "data": [one | {"max_model_len": limits.prompt + limits.new}]}

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {
            "status": "ok", "model": loaded.name, "scheme": scheme.spec, "window": loaded.window,
            "waiting": desk.waiting, "served": desk.served,
        }  # fmt: skip

    return app


async def _body(request: Request) -> dict[str, Any]:
    """The JSON of a request.

    Raises:
        HTTPException: it is too large, or no JSON object.
    """
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > BODY:
        raise HTTPException(413, f"expected at most {BODY} bytes, got {said}")
    held = bytearray()
    async for part in request.stream():
        held += part
        if len(held) > BODY:
            raise HTTPException(413, f"expected at most {BODY} bytes")
    try:
        found = json.loads(bytes(held))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "expected a JSON object")
    return found


def serve(loaded: LoadedModel, scheme: Scheme, limits: Limits, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Answer requests until the process is told to stop.

    Args:
        loaded: the model.
        scheme: for all requests.
        limits: what a request may ask for.
        host: to listen on; by default this machine alone.
        port: to listen on.

    Raises:
        ProbeError: no tokenizer, a scheme that does not fit, or a port that is taken.
    """
    app = build(loaded, scheme, limits)
    with apply_scheme(loaded.model, scheme):
        uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)
