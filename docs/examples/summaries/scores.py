"""ROUGE's F-measures of one summary, by the rouge-score library; what sacrebleu makes a corpus BLEU of."""

from __future__ import annotations

from typing import Any

from rouge_score.rouge_scorer import RougeScorer

KINDS = ["rouge1", "rouge2", "rougeL"]


def rouge_and_bleu(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Scores of what a model wrote for a line of the data."""
    found = RougeScorer(KINDS, use_stemmer=True).score(doc["summary"], results[0])
    return {kind: found[kind].fmeasure for kind in KINDS} | {"bleu": (doc["summary"], results[0])}
