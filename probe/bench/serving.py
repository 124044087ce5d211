"""Time to first token and time per token of vLLM under schemes, beside vLLM as it is: `python -m probe.bench.serving`.

Runs in vLLM's own environment. Every scheme is an engine in a process of its own, one after another, on the same
tokens: a request of a length, alone, and its greedy continuation. Stock is vLLM without a scheme. Past the window its
table of angles ends, and what lies behind it is read: its times are those of the same work, its text is nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

STOCK = "stock"


def measured(model: str, scheme: str, lengths: list[int], new: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of one scheme: median seconds to the first token, and per token after it."""
    os.environ.update(
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1",
         "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    )  # fmt: skip
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    import random

    from vllm import LLM, SamplingParams  # type: ignore[import-not-found, unused-ignore]

    section = {} if scheme == STOCK else {"additional_config": {"weavescope": {"scheme": scheme}}}
    llm = LLM(
        model=model, enforce_eager=True, dtype="float32", max_model_len=max(lengths) + new + 1, max_num_seqs=1,
        max_num_batched_tokens=2048, enable_prefix_caching=False, disable_log_stats=False, **section,
    )  # fmt: skip
    rng, rows = random.Random(0), []  # noqa: S311
    vocabulary = llm.llm_engine.model_config.get_vocab_size()

    def took(prompt: list[int], tokens: int) -> tuple[float, float]:
        """(seconds to the first token, per token after it), by the engine's own clock."""
        how = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        (answer,) = llm.generate([{"prompt_token_ids": prompt}], how, use_tqdm=False)
        times = answer.metrics
        return times.first_token_latency, (times.last_token_ts - times.first_token_ts) / (tokens - 1)

    took([rng.randrange(vocabulary) for _ in range(256)], 4)
    for length in lengths:
        prompt = [rng.randrange(vocabulary) for _ in range(length)]
        first, later = zip(*(took(prompt, 1 + new) for _ in range(repeats)), strict=True)
        rows.append(
            {"scheme": scheme, "length": length, "first_token": statistics.median(first),
             "per_token": statistics.median(later), "repeats": repeats}
        )  # fmt: skip
    return rows


def main() -> None:
    """All schemes in turn, and a table with ratios to stock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or hub id")
    parser.add_argument("--scheme", default="origin,rerope,stair,self-extend")
    parser.add_argument("--lengths", default="4096,12288")
    parser.add_argument("--new", type=int, default=32, help="tokens after the first (default: 32)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    lengths = [int(length) for length in args.lengths.split(",")]
    if args.one:
        print("\n" + json.dumps(measured(args.model, args.one, lengths, args.new, args.repeats)))
        return
    from probe.provenance import Provenance
    from probe.schemes.parse import split_specs

    rows: list[dict[str, Any]] = []
    for scheme in [STOCK, *split_specs(args.scheme)]:
        command = [sys.executable, "-m", "probe.bench.serving", "--one", scheme, "--model", args.model]
        command += ["--lengths", args.lengths, "--new", str(args.new), "--repeats", str(args.repeats)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
        rows += json.loads(done.stdout.strip().splitlines()[-1])
        if args.out:
            found = {"kind": "serving", "settings": vars(args), "provenance": vars(Provenance.now()), "rows": rows}
            Path(args.out).write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    base = {row["length"]: row for row in rows if row["scheme"] == STOCK}
    print("| tokens | scheme | first token | of stock | per token | of stock |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for row in sorted(rows, key=lambda row: row["length"]):
        stock = base[row["length"]]
        print(
            f"| {row['length']} | {row['scheme']} | {row['first_token']:.2f} s | "
            f"{row['first_token'] / stock['first_token']:.2f} | {1000 * row['per_token']:.0f} ms | "
            f"{row['per_token'] / stock['per_token']:.2f} |"
        )


if __name__ == "__main__":
    main()
