"""The answer to 'will it break?', a sentence per scheme, from a run's verdicts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from app import words
from app.look import Look
from probe.recording.info import RunInfo
from probe.schemes import ORIGIN
from probe.thresholds.detectors import DETECTORS
from probe.thresholds.verdicts import Verdict

State = Literal["breaks", "holds", "announced", "untold"]


@dataclass(frozen=True)
class Answer:
    """What a run says of one scheme.

    Attributes:
        scheme: the scheme's text.
        state: measured to break or to hold; announced by hidden dimensions where nothing could be measured; or untold.
        head: the verdict in a few words.
        more: what it rests on.
        first: the earliest predicted failure, and where; None where there is none.
        measured: the measured failure.
        interval: of the measured failure, in words; None where there is none.
    """

    scheme: str
    state: State
    head: str
    more: str
    first: Verdict | None
    measured: int | None
    interval: str | None = None


def answers(
    info: RunInfo, verdicts: Sequence[Verdict], intervals: Mapping[str, str | None] | None = None
) -> list[Answer]:
    """An answer per scheme, in the order of the verdicts.

    Args:
        info: of the run.
        verdicts: of every place that was recorded.
        intervals: of the measured failures by scheme, in words, where they are known.
    """
    known = intervals or {}
    return [
        _answer(info, [one for one in verdicts if one.scheme == scheme], known.get(scheme))
        for scheme in dict.fromkeys(one.scheme for one in verdicts)
    ]


def _answer(info: RunInfo, mine: Sequence[Verdict], interval: str | None) -> Answer:
    crossing = [one for one in mine if one.predicted is not None]
    first = min(crossing, key=lambda one: one.predicted or 0, default=None)
    measured, unmeasured = mine[0].measured, mine[0].unmeasured
    state: State
    if measured is not None:
        state, head = "breaks", f"breaks at {words.count(measured)}"
    elif unmeasured is None:
        state, head = "holds", f"no failure up to {words.count(info.input.length)}"
    elif first is not None:
        state, head = "announced", f"failure predicted at {words.count(first.predicted or 0)}"
    else:
        state, head = "untold", "cannot tell"
    more = _more(info, mine, crossing, first)
    if interval is not None:
        more = f"95% over {info.input.samples} samples: {interval}. {more}"
    return Answer(mine[0].scheme, state, head, more, first, measured, interval)


def _more(info: RunInfo, mine: Sequence[Verdict], crossing: Sequence[Verdict], first: Verdict | None) -> str:
    measured, unmeasured = mine[0].measured, mine[0].unmeasured
    if measured is not None:
        likelihood = "The likelihood leaves its in-window band there for good."
    elif unmeasured is None:
        likelihood = "The likelihood stays in its in-window band."
    else:
        likelihood = f"Whether the likelihood fails cannot be measured: {unmeasured}."
    return f"{likelihood} {_dims(info, mine, crossing, first)}"


def _dims(info: RunInfo, mine: Sequence[Verdict], crossing: Sequence[Verdict], first: Verdict | None) -> str:
    unpredicted = next((one.unpredicted for one in mine if one.unpredicted is not None), None)
    of = f"{words.count(len(mine))} recorded dimension" + "s" * (len(mine) != 1)
    if first is None:
        return f"Of {of} none leaves its range." if unpredicted is None else f"Of {of}: {unpredicted}."
    measured, unmeasured = mine[0].measured, mine[0].unmeasured
    where = f"the first at {words.count(first.predicted or 0)} ({first.place.title})"
    told = f"{words.count(len(crossing))} of {of} leave their range, {where}"
    if measured is None and unmeasured is None:
        return f"{told}: false alarms."
    return f"{told}."


STYLE = """<style>
.ws-answers{display:flex;flex-direction:column;gap:.35rem;margin:0}
.ws-answer{display:grid;grid-template-columns:auto minmax(7rem,max-content) minmax(11rem,max-content) 1fr;
 gap:.7rem;align-items:baseline;padding:.3rem .6rem;border-left:4px solid var(--c);border-radius:4px;
 background:rgba(128,128,128,.07)}
.ws-answer code{background:none;padding:0;font-weight:600;color:inherit;overflow-wrap:anywhere}
.ws-answer .ws-more{font-size:.9rem;opacity:.82}
.ws-state{font-weight:600;white-space:nowrap}
.ws-state::before{content:attr(data-sign);display:inline-block;width:1.3em}
@media (max-width:700px){.ws-answer{grid-template-columns:1fr;gap:.1rem}}
</style>"""

_SIGNS: Mapping[State, str] = {"breaks": "✕", "holds": "✓", "announced": "!", "untold": "?"}


def answers_html(found: Sequence[Answer], now: Look) -> str:
    """The answers as HTML; nothing of a run in it is markup."""
    lines = [
        f'<div class="ws-answer" role="listitem" style="--c:{now.scheme(one.scheme)}"><span aria-hidden="true"></span>'
        f"<code>{escape(one.scheme)}</code>"
        f'<span class="ws-state" data-sign="{_SIGNS[one.state]}">{escape(one.head)}</span>'
        f'<span class="ws-more">{escape(one.more)}</span></div>'
        for one in found
    ]
    return f'{STYLE}<div class="ws-answers" role="list">{"".join(lines)}</div>'


def headline(info: RunInfo, found: Sequence[Answer]) -> str:
    """One sentence of Markdown over all: does the model break, and what helps."""
    window, length = words.count(info.window), words.count(info.input.length)
    name = words.model_name(info.model)
    origin = next((one for one in found if one.scheme == ORIGIN), None)
    helped = [words.literal(one.scheme) for one in found if one.scheme != ORIGIN and one.state == "holds"]
    read = f"{name} was trained on {window} tokens and here reads {length} of {words.literal(info.input.spec)}."
    if info.input.length <= info.window:
        return f"{read} That is inside its window, where nothing can break for length."
    if origin is None:
        return read
    if origin.state == "untold" or origin.state == "announced":
        return f"{read} **This input cannot tell whether it breaks.**"
    if origin.state == "holds":
        return f"{read} **As trained it does not break on it.**"
    also = f" Under {' and '.join(helped)} it does not." if helped else ""
    return f"{read} **As trained it breaks at {words.count(origin.measured or 0)}.**{also}"


def detector_line(detector: str) -> str:
    """What a dimension's range is, by the detector."""
    return f"`{detector}`: {DETECTORS[detector].help}"
