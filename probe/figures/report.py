"""The report as one page that needs nothing beside it: scores by length, depth maps, time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from probe.figures.style import WINDOW_COLOUR, scheme_colour
from probe.tasks.context import DEFINITION
from probe.tasks.report import Section, choices, context_cells, sections
from probe.tasks.tables import measured

_DASHES = ("solid", "dash", "dot", "dashdot")
BINS = 5
"""Rows of a depth map, where samples were spread and not dealt to depths."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #d0d7de; padding: .3rem .8rem; text-align: left; }
code { background: #f6f8fa; padding: .1rem .3rem; border-radius: 4px; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
.note { color: #59636e; }
"""


def _markdown_code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _lines(
    rows: Sequence[Mapping[str, Any]], value: str, ends: tuple[str, str] | None, unit: str, factor: float = 1.0
) -> list[go.Scatter]:
    """A line per scheme over the length, with what is between `ends` as its interval."""
    traces: list[go.Scatter] = []
    seen: list[str] = []
    for scheme in dict.fromkeys(str(row["scheme"]) for row in rows):
        mine = [row for row in rows if row["scheme"] == scheme and row.get(value) is not None]
        mine.sort(key=lambda row: int(row["length"]))
        if not mine:
            continue
        colour = scheme_colour(scheme)
        y = [factor * float(row[value]) for row in mine]
        errors = None
        if ends is not None and all(row.get(end) is not None for row in mine for end in ends):
            low, high = ([factor * float(row[end]) for row in mine] for end in ends)
            errors = {
                "type": "data", "symmetric": False, "thickness": 1, "width": 3,
                "array": [max(0.0, top - at) for top, at in zip(high, y, strict=True)],
                "arrayminus": [max(0.0, at - bottom) for bottom, at in zip(low, y, strict=True)],
            }  # fmt: skip
        traces.append(
            go.Scatter(
                x=[int(row["length"]) for row in mine], y=y, error_y=errors, name=escape(scheme), mode="lines+markers",
                line={"color": colour, "dash": _DASHES[seen.count(colour) % len(_DASHES)]},
                hovertemplate=f"{escape(scheme)}<br>%{{x:,}} tokens: %{{y:.3g}}{unit}<extra></extra>",
            )
        )  # fmt: skip
        seen.append(colour)
    return traces


def _by_length(traces: Sequence[go.Scatter], window: int | None, title: str, **axis: Any) -> go.Figure:
    figure = go.Figure(list(traces))
    lengths = sorted({int(x) for trace in traces for x in trace.x})
    figure.update_layout(
        template="plotly_white", height=400, margin={"l": 60, "r": 20, "t": 30, "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        xaxis={
            "title": "length (tokens)", "type": "log", "tickvals": lengths, "ticktext": [f"{one:,}" for one in lengths],
        },
        yaxis={"title": title, **axis},
    )  # fmt: skip
    if window:
        line = {"color": WINDOW_COLOUR, "dash": "dash"}
        figure.add_shape(type="line", x0=window, x1=window, yref="paper", y0=0, y1=1, line=line)
        figure.add_annotation(  # which a logarithmic axis has at the logarithm, other than a shape
            x=math.log10(window), yref="paper", y=0.02, text=f"M = {window:,}", showarrow=False, xanchor="right",
            font={"color": WINDOW_COLOUR},
        )  # fmt: skip
    return figure


def length_figure(section: Section) -> go.Figure:
    """Accuracy with Wilson intervals, or nats per token with 95% intervals, by length (the paper's Figs. 3, 4)."""
    if section.share:
        traces = _lines(section.rows, "accuracy", ("low", "high"), "%", 100)
        return _by_length(traces, section.window, "right answers (%)", range=[-4, 104])
    rows = [
        row if row.get("standard_error") is None or row["nll"] is None else
        {**row, "low": row["nll"] - 1.96 * row["standard_error"], "high": row["nll"] + 1.96 * row["standard_error"]}
        for row in section.rows
    ]  # fmt: skip
    return _by_length(_lines(rows, "nll", ("low", "high"), " nats"), section.window, "nats per token")


def _counts(section: Section, scheme: str) -> dict[tuple[str, int], tuple[int, int]]:
    """(right, of so many) by depth, in words, and length."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for row in (row for row in section.raw if row["scheme"] == scheme):
        dealt = row.get("depth")
        for depth, hit in row.get("hits") or ():
            if depth is None:
                continue
            at = min(int(depth * BINS), BINS - 1)
            name = f"{dealt:.0%}" if dealt is not None else f"{100 * at // BINS} to {100 * (at + 1) // BINS}%"
            right, total = found.get((name, int(row["length"])), (0, 0))
            found[name, int(row["length"])] = right + bool(hit), total + 1
    return found


def depth_figure(section: Section, scheme: str) -> go.Figure | None:
    """Right answers by depth of what is asked for and length; None where that is in no one place."""
    counts = _counts(section, scheme)
    if not counts:
        return None
    depths = sorted({name for name, _ in counts}, key=lambda name: int(name.split(" ")[0].rstrip("%")))
    lengths = sorted({length for _, length in counts})
    cells = [[counts.get((depth, length)) for length in lengths] for depth in depths]
    figure = go.Figure(
        go.Heatmap(
            z=[[None if cell is None else 100 * cell[0] / cell[1] for cell in line] for line in cells],
            text=[["" if cell is None else f"{cell[0]}/{cell[1]}" for cell in line] for line in cells],
            x=[f"{length:,}" for length in lengths], y=depths, texttemplate="%{text}", zmin=0, zmax=100,
            colorscale="Viridis", showscale=False, xgap=2, ygap=2,
        )
    )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=260, margin={"l": 70, "r": 10, "t": 40, "b": 40},
        title={"text": escape(scheme), "font": {"size": 14}}, xaxis={"type": "category", "title": "length (tokens)"},
        yaxis={"type": "category", "autorange": "reversed", "title": "depth"},
    )  # fmt: skip
    return figure


def cost_figures(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, go.Figure]]:
    """(caption, figure) of every benchmark: time or memory over the length (the paper's Fig. 5)."""
    found = []
    for result in results:
        chosen, rows = result["settings"], result["rows"]
        timed = any(row.get("seconds") is not None for row in rows)
        if timed:
            traces = _lines(rows, "seconds", ("fastest", "slowest"), " s")
            figure = _by_length(traces, chosen.get("window"), "seconds", type="log")
        else:
            traces = _lines(rows, "peak_bytes", ("least_bytes", "most_bytes"), " MB", 1e-6)
            figure = _by_length(traces, chosen.get("window"), "MB above the model", rangemode="tozero")
        if traces:
            what = chosen.get("what", "benchmark")
            found.append((f"{chosen.get('model')}, {what}: medians, bars from the least to the most repeat", figure))
    return found


def _drawn(figure: go.Figure) -> str:
    drawn: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return drawn


def _chosen(found: Sequence[Section]) -> str:
    lines = [
        f"<li>{_markdown_code(one.model)}: "
        + (f"<strong>{_markdown_code(one.scheme)}</strong> " if one.scheme else "")
        + f"{escape(one.said)}</li>"
        for one in choices(found)
    ]
    return f"<h2>What to use</h2><ul>{''.join(lines)}</ul>"


def _contexts(found: Sequence[Section]) -> str:
    parts = ["<h2>Effective context</h2>", f"<p>{escape(DEFINITION)}</p>"]
    for model in dict.fromkeys(one.model for one in found):
        titles, cells = context_cells(found, model)
        rows = [[_markdown_code(scheme), *map(escape, rest)] for scheme, *rest in cells]
        parts += [f"<h3>{_markdown_code(model)}</h3>", _table(titles, rows)]
    return "".join(parts)


def _shown(section: Section) -> str:
    """One model and task."""
    title = escape(section.title.replace("`", ""))
    parts = [
        f"<h2>{escape(section.model)}: {escape(section.task)}</h2>",
        f"<p class=note>{title}</p>",
    ]
    if section.cannot is not None:
        parts.append(f"<p>Not drawn, since it says nothing about longer inputs: {escape(section.cannot)}.</p>")
    else:
        parts.append(_drawn(length_figure(section)))
        schemes = dict.fromkeys(str(row["scheme"]) for row in section.rows)
        maps = [figure for scheme in schemes if (figure := depth_figure(section, scheme)) is not None]
        parts.append(f"<div class=maps>{''.join(f'<div>{_drawn(figure)}</div>' for figure in maps)}</div>")
    stopped = [row for row in section.rows if row.get("stopped")]
    if stopped:
        lines = [
            f"<li>{_markdown_code(row['scheme'])} at {row['length']:,}: {escape(row['stopped'])}</li>"
            for row in stopped
        ]
        parts.append(f"<p>Not run to its end:</p><ul>{''.join(lines)}</ul>")
    return "".join([*parts, _numbers(section)])


def _numbers(section: Section) -> str:
    lengths = sorted({int(row["length"]) for row in section.rows})
    cells: dict[str, dict[int, str]] = {}
    for row in section.rows:
        value = measured(row)
        if value is None:
            said = "not run"
        elif section.share:
            said = f"{value:.0%}" + (f" ({row['low']:.0%} to {row['high']:.0%})" if "low" in row else "")
        else:
            error = row.get("standard_error")
            said = f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")
        cells.setdefault(str(row["scheme"]), {})[int(row["length"])] = said
    rows = [[_markdown_code(scheme), *(mine.get(length, "") for length in lengths)] for scheme, mine in cells.items()]
    return _table(["scheme", *(f"{length:,}" for length in lengths)], rows)


def _made_with(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for result in results:
        source = result.get("provenance") or {}
        versions = source.get("versions") or {}
        said = ", ".join(
            f"{name} {versions[name]}" for name in ("weavescope", "torch", "transformers") if versions.get(name)
        )
        state = "whole" if result.get("complete", True) else "stopped before its last row"
        commit = str(source.get("git_commit") or "")[:12]
        rows.append([escape(str(one)) for one in (result["kind"], source.get("created") or "", said, commit, state)])
    return "<h2>Made with</h2>" + _table(["kind", "when", "versions", "commit", "state"], rows)


def report_page(results: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, plotly.js inside.

    Args:
        results: of `probe eval`, and of `probe bench` for time and memory, as `Result.to_json` has them.

    Raises:
        ProbeError: no result of an evaluation among them.
    """
    found = sections([result for result in results if result["kind"] == "eval"])
    costs = cost_figures([result for result in results if result["kind"] == "bench"])
    drawn = [f"<p class=note>{escape(said)}</p>{_drawn(figure)}" for said, figure in costs]
    body = [_chosen(found), _contexts(found), *map(_shown, found)]
    if drawn:
        body += ["<h2>Time and memory</h2>", *drawn]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Length extrapolation, measured</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><h1>Length extrapolation, measured</h1>{''.join(body)}{_made_with(results)}</body></html>"
    )
