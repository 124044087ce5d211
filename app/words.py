"""What the page says: terms explained, errors as a reader of the page meets them, the figure read aloud."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from probe.errors import ProbeError
from probe.recording.info import RunInfo
from probe.thresholds.detectors import DETECTORS, DetectorSettings
from probe.thresholds.verdicts import Verdict

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
DIFFERENCE = "Predicted minus measured, in positions: below zero the hidden state gives way before the likelihood does."
MARGIN = "How far the worst lasting stretch stays inside H, in robust standard deviations; below zero it is beyond."
DETECTOR = "How the threshold is found. " + " ".join(f"`{row.name}`: {row.help}." for row in DETECTORS.values())
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


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _threshold(first: Verdict, window: int, detector: str, settings: DetectorSettings) -> str:
    lasting = f"for at least {settings.run_at(window)} positions"
    if first.threshold is None:
        return f"There is no threshold to cross: {first.unpredicted}."
    if detector == "paper":
        side = first.direction
        return (
            f"H = {_number(first.threshold)} is its value at position M as trained. Past M the model drifts {side} "
            f"it, so failure is predicted where a line stays {side} H {lasting}."
        )
    if detector == "range":
        return (
            f"H is an end of the range that it has at positions {settings.burn_in_at(window)} to {window - 1} as "
            f"trained, widened by {settings.margin:g} robust standard deviations; failure is predicted where a line "
            f"stays beyond it {lasting}."
        )
    return f"H = {_number(first.threshold)} is {DETECTORS[detector].help}; a crossing must last {lasting}."


def _verdict(one: Verdict) -> str:
    scheme = f"Under {literal(one.scheme)}"
    if one.unpredicted or one.unmeasured:
        halves = (
            _told(one.predicted, one.unpredicted, "predicted"),
            _told(one.measured, one.unmeasured, "measured"),
        )
        return f"{scheme} {', and '.join(halves)}."
    if one.predicted is None and one.measured is None:
        return f"{scheme} no failure is predicted and none is measured."
    if one.predicted is None:
        return f"{scheme} no failure is predicted, but one is measured at {one.measured}."
    if one.measured is None:
        return f"{scheme} failure is predicted at {one.predicted}, but none is measured."
    gap = one.measured - one.predicted
    when = "the same position" if gap == 0 else f"{abs(gap)} positions {'later' if gap > 0 else 'earlier'}"
    return f"{scheme} failure is predicted at {one.predicted} and measured at {one.measured}, {when}."


def _told(position: int | None, untold: str | None, what: str) -> str:
    """One half of a verdict of which a half, at least, cannot be told."""
    if untold is not None:
        return f"whether it fails cannot be {what} ({untold})"
    return f"no failure is {what}" if position is None else f"failure is {what} at {position}"


def reading(info: RunInfo, verdicts: Sequence[Verdict], detector: str, settings: DetectorSettings) -> str:
    """One paragraph of Markdown that says what the figure shows.

    Args:
        info: the run's `run.json`.
        verdicts: those shown, all of one site, layer and dim.
        detector: of `DETECTORS`.
        settings: what the verdicts were made with.
    """
    first, window = verdicts[0], info.window
    read = f"{info.input.length} tokens of {literal(info.input.spec)}"
    return " ".join([
        f"{model_name(info.model)} was trained on {window} positions and here reads {read}.",
        f"The upper panel follows dimension {first.dim} of {literal(first.site)} at layer {first.layer}.",
        _threshold(first, window, detector, settings),
        "The lower panel is what the prediction is about, the likelihood of each next token: it is measured to fail "
        "where it leaves its in-window band.",
        *map(_verdict, verdicts),
        "One dimension is an observation; how far to trust it shows in how many layers and dimensions agree.",
    ])  # fmt: skip


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
