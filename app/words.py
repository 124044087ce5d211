"""What the pages say: terms explained, errors as a reader meets them, numbers as people write them."""

from __future__ import annotations

import re
from pathlib import Path

from probe.errors import ProbeError
from probe.thresholds.detectors import DETECTORS

H = (
    "H, the threshold: a value of this hidden dimension that the model, as trained, does not leave while it works. "
    "The detector `paper` takes the value at position M; `range` takes an end of the range seen inside the window."
)
M = "M, the trained window in tokens: training used positions 0 to M − 1."
PREDICTED = (
    "Predicted failure: the first position from which the hidden dimension stays beyond H for the whole run length."
)
MEASURED = (
    "Measured failure: the first position from which the smoothed negative log-likelihood stays above the band that "
    "the model as trained keeps inside its window. It does not depend on layer or dimension."
)
DETECTOR = "How the threshold is found. " + " ".join(
    f"`{row.name}`: {row.help}." for row in DETECTORS.values() if not row.joint
)
BURN_IN = "First position of the in-window reference. Before it a model is still finding its context."
RUN_LENGTH = (
    "Positions for which a crossing must hold to count. It is also the width over which the likelihood is smoothed."
)
SLACK = "Robust standard deviations by which the in-window range, and the likelihood's band, are widened."
SITES = {
    "resid": "a layer's output", "attn": "its attention's output", "mlp": "its MLP's output",
    "entropy": "attention's entropy, per head", "score_max": "largest score, per head",
    "score_lse": "log-sum-exp of the scores, per head", "first_mass": "attention on the first token, per head",
    "far_mass": "attention past M, per head",
}  # fmt: skip
"""Sites on offer; others, a plugin's, can be typed."""

SITE = "Where values were recorded: " + ", ".join(f"`{name}` {said}" for name, said in SITES.items()) + "."


_LABELS = {
    "layers": "layer",
    "dims": "dim",
    "sites": "site",
    "schemes": "scheme",
    "allow_pickle": "the option allow-pickle of 'probe run'",
}
"""Fields that are not called by their own words."""


def label(field: str) -> str:
    """How a page calls a field: `run_length` is "run length"."""
    return _LABELS.get(field, field.replace("_", " "))


def plain(error: ProbeError) -> str:
    """An error's line in the words of a page."""
    return error.worded(label)


def literal(text: object) -> str:
    """Text from a run as Markdown code, so that nothing in it is a link, a picture or a heading."""
    return "`" + str(text).replace("`", "'").replace("\n", " ") + "`"


def plain_markdown(text: object) -> str:
    """Text in which Markdown sees no markup, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$:])", r"\\\1", " ".join(str(text).split()))


def model_name(model: str) -> str:
    """A model's name as Markdown, without the folders above it."""
    return literal(Path(model).name or model)


def count(number: int) -> str:
    """A whole number as people write it: 12,288."""
    return f"{number:,}"


def duration(seconds: float) -> str:
    """A time as people say it: "under a second", "40 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 1:
        return "under a second"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")


def size(count: float) -> str:
    """Bytes as people say them, in powers of ten: 42 MB."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            value = count / least
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def seconds(value: float) -> str:
    """A measured time with three digits: 12.3 s, 8.65 ms."""
    if value >= 1:
        return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
    return f"{1000 * value:.3g} ms"
