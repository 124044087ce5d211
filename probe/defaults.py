"""What a run is made with where nobody said, and no model need be loaded to know."""

from __future__ import annotations

ROPE_SCHEMES, OTHER_SCHEMES = "origin,dynamic-ntk,rerope", "origin,rerope,stair"
"""What a run shows, on models with and without RoPE frequencies."""

PROGRESS = "WEAVESCOPE_PROGRESS"
"""Environment variable with a file that is told how far a command is, as JSON {"share": 0.4, "line": "rerope"}: for a
dashboard, or a scheduler."""

WINDOW_FIELDS = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length")
"""Where a model's config states its trained window, the first that is there."""


def usual_length(window: int) -> int:
    """Tokens of an input: four windows M, of windows of 4096 and more two."""
    return max(2 * window, min(4 * window, 8192))
