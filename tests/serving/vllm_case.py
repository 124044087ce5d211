"""One engine of vLLM under a scheme, in a process of its own: reads a case, writes what it generated.

python tests/serving/vllm_case.py CASE.json OUT.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def run(case: dict) -> dict:
    """For each prompt, its continuations: (tokens, their log-probabilities); and how often a request was preempted."""
    os.environ.update(
        {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
         "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1", "HF_HUB_OFFLINE": "1"}
    )  # fmt: skip
    from vllm import LLM, SamplingParams

    chosen = {"additional_config": {"weavescope": {"scheme": case["scheme"], "window": case["window"]}}}
    llm = LLM(
        model=case["model"], enforce_eager=True, dtype="float32", disable_log_stats=False,
        **(chosen if case["scheme"] else {}), **case["engine"],
    )  # fmt: skip
    asked = [{"prompt_token_ids": prompt} for prompt in case["prompts"]]
    greedy = {"temperature": 0, "max_tokens": case["tokens"], "logprobs": 1, "ignore_eos": True}
    how = SamplingParams(**greedy | case["sampling"])
    answers = [
        [(list(one.token_ids), [next(iter(step.values())).logprob for step in one.logprobs]) for one in answer.outputs]
        for answer in llm.generate(asked, how, use_tqdm=False)
    ]
    put_off = sum(one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions")
    return {"answers": answers, "preemptions": put_off}


if __name__ == "__main__":
    told, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(run(json.loads(told.read_text()))))
