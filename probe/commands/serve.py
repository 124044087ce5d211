"""`probe serve`: an OpenAI-compatible endpoint for a model under a scheme."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys

from probe.commands import options
from probe.commands.command import Command
from probe.errors import FieldError, unknown
from weavescope.serving.limits import Limits

ENGINES = ("auto", "transformers", "vllm")

_EXAMPLES = """\
examples:
  probe serve --model smollm2 --scheme mesa+logn --port 8000
  curl -s localhost:8000/v1/completions -d '{"prompt": "The sea", "max_tokens": 20}'
"""


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--scheme", default="origin", help="one, as 'mesa+logn'; see 'probe schemes' (default: origin)")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="to listen on (default: 8000)")
    parser.add_argument("--max-prompt", type=int, metavar="TOKENS", help="longest prompt (default: four windows)")
    parser.add_argument("--max-new", type=int, default=1024, metavar="TOKENS", help="most to write (default: 1024)")
    parser.add_argument(
        "--max-waiting", type=int, default=64, metavar="N", help="requests at a time; more get 429 (default: 64)"
    )
    parser.add_argument(
        "--engine", default="auto", help="transformers, vllm, or auto: vllm where it is installed (default: auto)"
    )


def _run(args: argparse.Namespace) -> None:
    from probe.schemes import check_texts

    if args.engine not in ENGINES:
        raise unknown("engine", args.engine, ENGINES)
    check_texts(args.scheme)
    if not 0 <= args.port < 1 << 16:
        raise FieldError("port", "0 to 65535", args.port)
    installed = importlib.util.find_spec("vllm") is not None
    if args.engine == "vllm" and not installed:
        raise FieldError("engine", hint="vLLM is not installed here; use transformers", value="vllm")
    _check_free(args.host, args.port)
    if installed and args.engine != "transformers":
        _vllm(args)
    _transformers(args)


def _check_free(host: str, port: int) -> None:
    """Refuse what cannot be listened on, before a model is loaded.

    Raises:
        FieldError: the port is taken, or the host is not this machine's.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise FieldError("port", hint=f"cannot listen on {host}:{port} ({error.strerror})", value=port) from None


def _limits(args: argparse.Namespace, window: int) -> Limits:
    """What was asked for, the longest prompt from the window where it was not.

    Raises:
        FieldError: one under which nothing could be answered.
    """
    return Limits(4 * window if args.max_prompt is None else args.max_prompt, args.max_new, args.max_waiting)


def _transformers(args: argparse.Namespace) -> None:
    from probe.schemes import parse_scheme
    from weavescope.serving.endpoint import serve

    loaded = options.load(args)
    limits = _limits(args, loaded.window)
    scheme = parse_scheme(args.scheme, loaded.window)
    print(
        f"{loaded.name} under {scheme.spec}, prompts of up to {limits.prompt:,} tokens: http://{args.host}:{args.port}/v1",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    serve(loaded, scheme, limits, args.host, args.port)


def _vllm(args: argparse.Namespace) -> None:
    """Become vLLM's own server, under the scheme."""
    from transformers import AutoConfig

    from probe.models.load import model_window, source_of
    from probe.schemes import parse_scheme

    source = source_of(args.model)
    window = args.window or model_window(AutoConfig.from_pretrained(source))
    if window is None:
        raise FieldError("window", hint=f"the config of model {args.model} states no trained window; give one")
    parse_scheme(args.scheme, window)
    limits = _limits(args, window)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", source, "--host", args.host, "--port",
        str(args.port), "--max-model-len", str(limits.prompt + limits.new), "--max-num-seqs",
        str(limits.waiting),
        "--served-model-name", args.model, "--no-enable-prefix-caching", "--load-format", "safetensors",
        # Of this machine's memory: vLLM's own share, 0.92, is for devices that do nothing else.
        "--gpu-memory-utilization", "0.5",
        # As is checked: compiled, in bfloat16, vLLM's CPU engine can write nonsense, with a scheme or without.
        "--dtype", "float32" if args.dtype == "auto" else args.dtype, "--enforce-eager",
    ]  # fmt: skip
    chosen = {"WEAVESCOPE_SCHEME": args.scheme, "WEAVESCOPE_WINDOW": str(window)}
    os.execve(sys.executable, command, os.environ | chosen)  # noqa: S606


COMMAND = Command(
    "serve", "an OpenAI-compatible endpoint for a model under a scheme", _options, _run,
    python="weavescope.serving.endpoint.serve(...)", more=_EXAMPLES,
)  # fmt: skip
