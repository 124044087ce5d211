"""A figure as a page of its own, small: plotly.js lies once beside the runs, not in every figure."""

from __future__ import annotations

import os
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs, get_plotlyjs_version

_CDN = "https://cdn.plot.ly/plotly-{version}.min.js"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<script src="{place}{local}" onerror="document.write('<script src=&quot;{cdn}&quot;><\\/script>')"></script>
</head>
<body>
<noscript>This figure needs JavaScript.</noscript>
<script>
if (!window.Plotly) document.write(
  "<p>plotly.js could not be loaded: put <code>{local}</code> {where}, " +
  "or open the run in the dashboard (<code>probe app</code>), which brings its own.</p>"
);
</script>
{body}
</body>
</html>
"""


def script_name() -> str:
    """The file with plotly.js, by its version."""
    return f"plotly-{get_plotlyjs_version()}.min.js"


def share_script(runs: Path) -> None:
    """Put plotly.js into a folder of runs, once. A folder that holds anything else is somebody's own: there figures
    take plotly.js from the network.
    """
    if _only_runs(runs):
        put_script(runs)


def put_script(folder: Path) -> None:
    """Put plotly.js into a folder, unless it is there."""
    script = folder / script_name()
    if script.exists():
        return
    part = folder / f".{script.name}.part-{os.getpid()}"
    part.write_text(get_plotlyjs(), encoding="utf-8")
    part.replace(script)


def _only_runs(folder: Path) -> bool:
    seen = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return all(
        (path / "run.json").exists() or path.suffix == ".unfinished" or path.name.startswith("plotly-") for path in seen
    )


def _words(beside: bool) -> dict[str, str]:
    """Where plotly.js is looked for, in a path and in words."""
    if beside:
        return {"place": "", "where": "into this figure's folder"}
    return {"place": "../", "where": "beside this figure's folder"}


def write_page(figure: go.Figure, path: Path, title: str, beside: bool = False) -> None:
    """Write a figure as HTML that finds plotly.js in the folder above its own, or on plotly's CDN, or says that it did
    not.

    Args:
        figure: what to write; its arrays as they are, so that float32 takes half of float64.
        path: the file.
        title: of the page.
        beside: plotly.js is looked for in the figure's own folder.
    """
    body = figure.to_html(include_plotlyjs=False, full_html=False)
    cdn = _CDN.format(version=get_plotlyjs_version())
    text = _PAGE
    words = _words(beside) | {"title": title, "local": script_name(), "cdn": cdn, "body": body}
    for name, value in words.items():
        text = text.replace("{" + name + "}", value)
    path.write_text(text, encoding="utf-8")
