"""The dashboard's shell: `streamlit run app/main.py -- --runs DIR --model FOLDER`. A page is a row of `PAGES`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

# plotly looks for pandas among the loaded modules, and takes one that another session is just importing for whole: two
# tabs that open a fresh server at once broke one of them. This waits until it is.
import pandas  # noqa: F401
import streamlit as st


def _send_for_plotly() -> None:
    """Let a browser that comes for the first time fetch the plotting library, 5 MB, while Python still imports and
    reads: an empty chart, out of sight, for one redraw.
    """
    if "sent_for_plotly" in st.session_state or "User-Agent" not in st.context.headers:
        return
    st.session_state["sent_for_plotly"] = True
    st.html("<style>.st-key-plotly{position:absolute;height:0;overflow:hidden;opacity:0}</style>")
    with st.container(key="plotly"):
        st.plotly_chart(
            {"data": [{"type": "scatter", "y": [0]}], "layout": {"height": 20}}, key="sent_for", alt="nothing yet"
        )


if __name__ == "__main__":
    st.set_page_config(page_title="weavescope", page_icon=str(Path(__file__).parent / "icon.svg"), layout="wide")
    _send_for_plotly()

# Streamlit puts this file's folder on the path, not the one above it, which holds the packages in a checkout.
sys.path.extend({str(Path(__file__).resolve().parent.parent)} - set(sys.path))

from app import words  # noqa: E402 - the packages are on the path from here on
from app.chrome import banner, toast  # noqa: E402
from app.options import Options, parse_options  # noqa: E402
from probe.errors import ProbeError  # noqa: E402


@dataclass(frozen=True)
class Page:
    """One row: its place in the address, its title, a Material icon and the module of `app.views` that draws it, which
    is imported when somebody looks at it.
    """

    path: str
    title: str
    icon: str
    module: str

    def render(self, options: Options) -> None:
        """Draw it."""
        draw: Callable[[Options], None] = import_module(f"app.views.{self.module}").render
        draw(options)


PAGES = (
    Page("break", "Will it break?", ":material/show_chart:", "breaks"),
    Page("where", "Where does it show?", ":material/grid_on:", "where"),
    Page("theory", "Theory", ":material/function:", "theory"),
    Page("sees", "What does a query see?", ":material/visibility:", "sees"),
    Page("works", "Does it still work?", ":material/fact_check:", "works"),
    Page("runs", "Runs", ":material/folder_open:", "manage"),
)


def _guarded(page: Page) -> None:
    """Draw a page; what goes wrong is a message on it, never a traceback."""
    try:
        options = parse_options(sys.argv[1:])
        toast()
        banner(options)
        page.render(options)
    except ProbeError as error:
        st.error(words.plain(error), icon=":material/error:")
    except Exception as error:
        logging.getLogger(__name__).exception("page %s", page.path)
        st.error(f"Something unforeseen went wrong ({type(error).__name__}); the terminal has the details.")


def main() -> None:
    """Draw the shell and the page that was asked for."""
    pages = [
        st.Page(partial(_guarded, row), title=row.title, icon=row.icon, url_path=row.path, default=number == 0)
        for number, row in enumerate(PAGES)
    ]
    st.navigation(pages, position="top").run()


if __name__ == "__main__":
    main()
