"""Files of results, and Markdown tables of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probe.errors import ProbeError


def read(path: Path) -> dict[str, Any]:
    """A JSON object from a file; JSON lines are taken as its `rows`.

    Raises:
        ProbeError: it cannot be read, or holds no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        result = (
            {"rows": [json.loads(line) for line in text.splitlines()]} if path.suffix == ".jsonl" else json.loads(text)
        )
    except (OSError, ValueError) as error:
        raise ProbeError(f"{path}: expected a JSON file ({error})") from None
    if not isinstance(result, dict):
        raise ProbeError(f"{path}: expected a JSON object")
    return result


def pipe_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A Markdown table; columns of numbers are set to the right."""
    rule = ["---:" if number else "---" for number in numbers]
    return "\n".join("| " + " | ".join(line) + " |" for line in (titles, rule, *rows))
