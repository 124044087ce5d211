"""One look for every figure: a scheme has the same colour everywhere, and lines are labelled where they end."""

from __future__ import annotations

import zlib

# Okabe & Ito's palette, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/).
_FIXED = {"origin": "#000000", "dynamic-ntk": "#E69F00", "rerope": "#0072B2", "stair": "#009E73", "mesa": "#D55E00"}
_REST = ("#CC79A7", "#56B4E9", "#8C6D1F", "#7B3FA0", "#5F7D2B", "#A0522D")
WINDOW_COLOUR = "#666666"
THRESHOLD_COLOUR = "#B00020"


def scheme_colour(spec: str) -> str:
    """Hex colour of a scheme, by its spec; the same in every figure; other parameters, another colour."""
    if spec in _FIXED:
        return _FIXED[spec]
    return _REST[zlib.crc32(spec.encode()) % len(_REST)]
