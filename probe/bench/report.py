"""What a benchmark prints."""

from __future__ import annotations

import json
import sys
from typing import Any

from probe.bench.run import warnings
from probe.bench.tables import markdown


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result, as JSON or as a table; a line on stderr warns of every unsteady row."""
    for line in warnings(result["rows"]):
        print(f"probe: warning: {line}", file=sys.stderr)
    print(json.dumps(result, allow_nan=False) if as_json else markdown(result))
