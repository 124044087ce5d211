"""EleutherAI's harness on models under schemes: its own numbers where nothing is woven, ours where something is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import weavescope as ws
from probe.commands.main import main
from probe.errors import ProbeError
from probe.tasks.scoring import draw_passkeys, passkey_hits

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from weavescope.harness import WeaveLM  # noqa: E402

TEXTS = [
    "The parser raises an error when the file does not exist, and returns None otherwise.",
    "def walk(tree):\n    for node in tree:\n        yield node\n",
    "Return the number of items in the list. " * 12,
    "A queue is a collection of entities that are maintained in a sequence.",
]
LONGEST = 300
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


@pytest.fixture(scope="module")
def rope() -> ws.Model:
    return ws.load("rope", dtype="float64")


def stock(model: ws.Model, **options: Any) -> HFLM:
    return HFLM(pretrained=model.hf, tokenizer=model.tokenizer, max_length=LONGEST, **options)


PAIRS = [
    *((text[: len(text) // 2], text[len(text) // 2 :]) for text in TEXTS),
    *((TEXTS[0], choice) for choice in (" a", " b", "c")),  # one context, several choices
    ("", "An empty context stands before this."),
]


@pytest.mark.parametrize("size", [1, 3])
def test_origin_gives_the_log_likelihoods_of_the_stock_class(rope: ws.Model, size: int) -> None:
    asked = instances("loglikelihood", PAIRS)
    mine = WeaveLM(rope, max_length=LONGEST, batch_size=size).loglikelihood(asked, disable_tqdm=True)
    theirs = stock(rope, batch_size=size).loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in theirs], rel=1e-5, abs=1e-5)


def test_origin_gives_the_rolling_likelihoods_of_the_stock_class(rope: ws.Model) -> None:
    """In windows, of which the last overlaps."""
    asked = instances("loglikelihood_rolling", [(text * 6,) for text in TEXTS])
    mine = WeaveLM(rope, max_length=LONGEST).loglikelihood_rolling(asked, disable_tqdm=True)
    theirs = stock(rope).loglikelihood_rolling(asked, disable_tqdm=True)
    assert mine == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_origin_writes_what_the_stock_class_writes(rope: ws.Model, size: int) -> None:
    options = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    asked = instances("generate_until", [(text, options) for text in TEXTS])
    mine = WeaveLM(rope, max_length=LONGEST, batch_size=size).generate_until(asked, disable_tqdm=True)
    assert mine == stock(rope, batch_size=size).generate_until(asked, disable_tqdm=True) and len(set(mine)) >= 3


@pytest.mark.parametrize("spec", ["mesa", "dynamic-ntk", "leaky-rerope", "rerope+logn", "streaming-llm"])
def test_a_scheme_sees_every_inputs_own_length_in_a_batch(rope: ws.Model, spec: str) -> None:
    asked = instances("loglikelihood", [(text * 12, " It is.") for text in TEXTS])
    alone = WeaveLM(rope, scheme=spec).loglikelihood(asked, disable_tqdm=True)
    together = WeaveLM(rope, scheme=spec, batch_size=4).loglikelihood(asked, disable_tqdm=True)
    assert [value for value, _ in alone] == pytest.approx([value for value, _ in together], rel=1e-9)
    assert alone != WeaveLM(rope).loglikelihood(asked, disable_tqdm=True)


def test_a_long_text_is_read_in_one_window(rope: ws.Model) -> None:
    """Its likelihood is the sum over the whole, which the harness alone would cut at the window."""
    text = TEXTS[2] * 8
    lm = WeaveLM(rope, scheme="rerope")
    (found,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]), disable_tqdm=True)
    ids = torch.tensor([[lm.prefix_token_id, *lm.tok_encode(text)]])
    assert ids.shape[1] > 2 * rope.window
    with rope.under("rerope"):
        scores = rope(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
    assert found == pytest.approx(float(scores.sum()), rel=1e-9)


def test_continuations_of_unlike_lengths_that_read_alike_keep_their_own_scores(rope: ws.Model) -> None:
    """Where one request's context is another's with part of its continuation. The stock class (0.4.13) takes the scores
    of the shorter one from the wrong positions then, so it is no reference here.
    """
    text = TEXTS[3]
    pairs = [(text[:20], text[20:]), ("", text)]
    together = WeaveLM(rope).loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    alone = [WeaveLM(rope).loglikelihood(instances("loglikelihood", [pair]), disable_tqdm=True)[0] for pair in pairs]
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], rel=1e-12)


def test_inputs_beyond_the_longest_are_cut_with_a_warning(rope: ws.Model, caplog: pytest.LogCaptureFixture) -> None:
    asked = instances("loglikelihood", [(TEXTS[2] * 4, " It is.")])
    short = WeaveLM(rope, max_length=100)
    (cut,) = short.loglikelihood(asked, disable_tqdm=True)
    assert "is cut to the last 101" in caplog.text and "read whole" in caplog.text
    assert cut == pytest.approx(
        HFLM(pretrained=rope.hf, tokenizer=rope.tokenizer, max_length=100).loglikelihood(asked, disable_tqdm=True)[0],
        rel=1e-6,
    )


def test_only_logits_that_are_read_are_computed(rope: ws.Model) -> None:
    seen = []
    handle = rope.hf.get_output_embeddings().register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape))
    try:
        WeaveLM(rope).loglikelihood(instances("loglikelihood", [(TEXTS[0], " It is.")]), disable_tqdm=True)
    finally:
        handle.remove()
    assert [shape[1] for shape in seen] == [len(rope.tokenizer.encode(" It is.", add_special_tokens=False))]


def test_bad_arguments_are_refused_by_name(rope: ws.Model, tiny_folder: Path) -> None:
    for arguments, says in (
        ({"pretrained": rope, "scheme": "magic"}, "unknown scheme 'magic'"),
        ({"pretrained": rope, "max_length": 1}, "max_length: expected at least 2 tokens, got 1"),
        ({"pretrained": str(tiny_folder)}, "has no tokenizer"),
        ({"pretrained": "nope", "scheme": "pi"}, "nope"),
    ):
        with pytest.raises(ProbeError, match=says):
            WeaveLM(**arguments)


@pytest.fixture(scope="module")
def local_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of pass keys at two windows, as docs/harness.md shows it."""
    folder = tmp_path_factory.mktemp("tasks")
    model = ws.load("rope")
    with (folder / "keys.jsonl").open("w") as file:
        for sample in draw_passkeys(model.loaded, 1024, 6, 0):
            prompt = model.tokenizer.decode(sample.prompt[1:], clean_up_tokenization_spaces=False)
            file.write(json.dumps({"prompt": prompt, "key": sample.key}) + "\n")
    (folder / "keys.yaml").write_text(f"""
task: passkey_1024
dataset_path: json
dataset_kwargs:
  data_files: {folder / "keys.jsonl"}
test_split: train
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{key}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 6, do_sample: false}}
metric_list:
  - metric: exact_match
    ignore_punctuation: true
filter_list:
  - name: key
    filter:
      - function: regex
        regex_pattern: "([0-9]+)"
      - function: take_first
""")
    return folder


def score(found: dict[str, Any]) -> float:
    return next(value for key, value in found["results"]["passkey_1024"].items() if key.startswith("exact_match,"))


@pytest.mark.parametrize("spec", ["origin", "rerope(N=128)+logn", "mesa"])
def test_a_local_task_gives_what_our_own_evaluation_gives(
    local_task: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = ws.load("rope")
    manager = TaskManager(include_path=str(local_task), include_defaults=False)
    lm = WeaveLM(model, scheme=spec, batch_size=3)
    found = lm_eval.simple_evaluate(lm, tasks=["passkey_1024"], task_manager=manager, bootstrap_iters=0)
    drawn = draw_passkeys(model.loaded, 1024, 6, 0)
    ours = passkey_hits(model.loaded, model.scheme(spec), drawn).double().mean()
    # Mesa decodes by other positions than it prefills: its answers are near ours, not the same.
    assert abs(score(found) - float(ours)) <= (0.34 if spec == "mesa" else 0.0)
    assert found["config"]["weavescope_scheme"] == spec or spec in found["config"]["weavescope_scheme"]


def test_summaries_have_rouge_and_bleu_of_what_the_model_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example in docs/, on texts past the window, against the libraries on what `generate` gives."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = shutil.copytree(EXAMPLES / "summaries", tmp_path / "summaries")
    reports = [{"text": f"{text} " * 60, "summary": text * 2} for text in TEXTS[:2]]
    (folder / "reports.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    task = (folder / "summaries.yaml").read_text().replace("reports.jsonl", str(folder / "reports.jsonl"))
    (folder / "summaries.yaml").write_text(task.replace("max_gen_toks: 512", "max_gen_toks: 40"))
    lm = WeaveLM("rope", scheme="rerope(N=128)+logn")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(lm, tasks=["summaries"], task_manager=manager, bootstrap_iters=0)
    got = {key.split(",")[0]: value for key, value in found["results"]["summaries"].items()}
    wrote = [sample["resps"][0][0] for sample in found["samples"]["summaries"]]
    assert len(lm.tok_encode(reports[0]["text"])) > 2 * 512 and all(wrote)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = [(report["summary"], text) for report, text in zip(reports, wrote, strict=True)]
    assert got["rougeL"] == pytest.approx(np.mean([scorer.score(*pair)["rougeL"].fmeasure for pair in pairs])) != 0
    assert got["bleu"] == pytest.approx(corpus_bleu(wrote, [[reference for reference, _ in pairs]]).score)


def test_the_command_line_is_the_harnesss(local_task: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "probe", "lm-eval", "--model_args", "pretrained=rope,scheme=rerope(N=128)+logn",
        "--tasks", "passkey_1024", "--include_path", str(local_task), "--output_path", str(tmp_path), "--limit", "3",
    ]  # fmt: skip
    import os

    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.rglob("results_*.json")
    written = json.loads(file.read_text())
    assert score(written) == 1.0 and written["config"]["weavescope_window"] == 512
    assert np.isclose(written["config"]["weavescope_max_length"], 64 * 512)


def test_what_does_not_fit_is_a_line(local_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model_args", "pretrained=rope,scheme=magic", "--include_path", str(local_task)]
    for task, says in (("passkey_1024", "unknown scheme 'magic'"), ("no_such_task", "Tasks not found: no_such_task")):
        assert main(["lm-eval", *given, "--tasks", task]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("probe: error:") and says in said


def test_without_the_harness_it_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from probe.commands.main import main\nsys.exit(main(['lm-eval', '--tasks', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install 'weavescope[lm-eval]'" in done.stderr
