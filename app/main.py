"""The dashboard's shell: `streamlit run app/main.py -- --runs DIR --model FOLDER`. A page is a row of `PAGES`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import streamlit as st

# Streamlit puts this file's folder on the path, not the one above it, which holds the packages in a checkout.
sys.path.extend({str(Path(__file__).resolve().parent.parent)} - set(sys.path))

from app import words
from app.options import Options, parse_options
from app.views import mesa, thresholds
from probe.errors import ProbeError


@dataclass(frozen=True)
class Page:
    """One row: its place in the address, its title, a Material icon and what draws it."""

    path: str
    title: str
    icon: str
    render: Callable[[Options], None]


PAGES = (
    Page("thresholds", "Thresholds", ":material/show_chart:", thresholds.render),
    Page("mesa", "Mesa split", ":material/view_comfy_alt:", mesa.render),
)


def _guarded(page: Page) -> None:
    """Draw a page; what goes wrong is a message on it, never a traceback."""
    try:
        page.render(parse_options(sys.argv[1:]))
    except ProbeError as error:
        st.error(words.plain(error), icon=":material/error:")
    except Exception as error:
        logging.getLogger(__name__).exception("page %s", page.path)
        st.error(f"Something unforeseen went wrong ({type(error).__name__}); the terminal has the details.")


def main() -> None:
    """Draw the shell and the page that was asked for."""
    st.set_page_config(page_title="weavescope", page_icon=":material/show_chart:", layout="wide")
    pages = [
        st.Page(partial(_guarded, row), title=row.title, icon=row.icon, url_path=row.path, default=number == 0)
        for number, row in enumerate(PAGES)
    ]
    st.navigation(pages).run()


main()
