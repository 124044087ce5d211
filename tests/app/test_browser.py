"""The dashboard as a user meets it: the real server and a headless Chromium, driven by Playwright.

With WEAVESCOPE_SCREENSHOTS=docs/figures/app the walk writes the screenshots of README and docs there.
"""

import contextlib
import json
import os
import socket
from pathlib import Path

import pytest
from browser import CHROMIUM, FLAGS, serving

from probe.commands.main import main
from probe.recording.folder import Run
from probe.thresholds.verdicts import read_verdicts

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH"),
]

PAGES = {
    "breaks": ("", "Will it break?"),
    "where": ("where", "Where does it show?"),
    "theory": ("theory", "Theory"),
    "sees": ("sees", "What does a query see?"),
    "works": ("works", "Does it still work?"),
    "runs": ("runs", "Runs"),
}
SIZES = {"wide": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
DRAWN = ".js-plotly-plot .xtick"
ALERT = "[data-testid=stAlertContentError]"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def port(place):
    """The dashboard, launched from a foreign folder."""
    with serving(place) as (port, _):
        yield port


@pytest.fixture
def tab(chromium, port):
    """Open a page; everything it asks of another host, and every traceback, fails the test."""
    foreign, contexts = [], []

    def open_it(path="", size="wide", scheme="light", wait=DRAWN):
        context = chromium.new_context(viewport=SIZES[size], color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: None if f"localhost:{port}" in request.url or request.url.startswith(
            ("data:", "blob:")) else foreign.append(request.url))  # fmt: skip
        page.goto(f"http://localhost:{port}/{path}")
        page.wait_for_selector(wait)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not foreign


def drawn(page):
    """Wait until a chart is there. A page that a busy machine has not begun to draw in a minute is asked for once more;
    one that shows something else says what.
    """
    for attempt in range(2):
        try:
            page.wait_for_selector(DRAWN)
            return
        except playwright.TimeoutError:
            shown = page.inner_text("body").strip()
            assert not shown and attempt == 0, f"no chart, but: {shown[:400]!r}"
            page.reload()


def settled(page):
    """Wait until nothing is being drawn any more."""
    page.wait_for_timeout(400)
    page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')")
    page.wait_for_timeout(400)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_every_page_is_whole_in_both_themes_and_at_both_widths(tab, place, size, scheme):
    docs = os.environ.get("WEAVESCOPE_SCREENSHOTS")
    folder = Path(docs or place)
    folder.mkdir(parents=True, exist_ok=True)
    page = tab("", size, scheme)
    for name, (path, title) in PAGES.items():
        page.goto(page.url.split("/", 3)[0] + "//" + page.url.split("/")[2] + "/" + path)
        drawn(page)
        settled(page)
        assert page.locator("h1", has_text=title).count() == 1
        assert page.locator(ALERT).count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
        background = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
        light = sum(int(part) for part in background[4:-1].split(",")[:3]) > 380
        assert light == (scheme == "light")
        for chart in page.locator(".js-plotly-plot").all():
            box = chart.bounding_box()
            assert box is None or box["width"] < 30 or box["width"] >= 200
        shown = (size, scheme) == ("wide", "light") or name == "breaks"
        if shown or not docs:
            page.screenshot(path=folder / f"{name}-{size}-{scheme}.png")


def test_the_answer_stands_above_the_fold(tab):
    page = tab()
    for text in ("As trained it breaks at", "breaks at 876"):
        box = page.get_by_text(text).first.bounding_box()
        assert box["y"] + box["height"] < 500
    assert page.locator(".js-plotly-plot:has(.annotation)").first.bounding_box()["y"] < 500


def test_a_run_from_the_dialog_is_the_command_lines_and_every_tab_sees_it(tab, place, capsys):
    page, other = tab(), tab("theory")
    page.get_by_role("button", name="New run").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("about").first.wait_for()
    dialog.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Run of rope").first.wait_for()
    other.get_by_text("Run of rope").first.wait_for()
    page.reload()
    page.get_by_text("is done").first.wait_for()
    other.get_by_text("is done").first.wait_for()
    (made,) = (place / "runs").glob("*-rope/run.json")
    page.goto(page.url.split("?")[0] + f"?run={made.parent.name}")
    page.wait_for_selector(DRAWN)
    settled(page)

    capsys.readouterr()
    assert main(["run", "--layer", "all", "--dim", "0-19", "--out", str(place / "by hand"), "--json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    for scheme in ("origin", "dynamic-ntk", "rerope"):
        measured = next(row["measured"] for row in rows if row["scheme"] == scheme)
        crossing = [row["predicted"] for row in rows if row["scheme"] == scheme and row["predicted"] is not None]
        line = page.locator(".ws-answer", has=page.get_by_text(scheme, exact=True)).inner_text()
        assert f"breaks at {measured:,}" in line if measured is not None else "no failure up to 2,048" in line
        assert f"{len(crossing)} of 80" in line
    marks = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].flatMap(one => one.data || [])"
        ".filter(one => (one.name || '').endsWith('measured failure')).map(one => [one.name, Number(one.x[0])])"
    )
    assert dict(marks) == {
        f"{row['scheme']}: measured failure": row["measured"] for row in rows if row["measured"] is not None
    }
    assert read_verdicts(Run(made.parent)).to_json() == rows


def test_a_run_is_deleted_after_a_confirmation(tab, place, probe_into):
    probe_into(place / "runs" / "doomed")
    page = tab("runs?run=doomed")
    page.get_by_role("button", name="Delete this run").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Keep it").click()
    dialog.wait_for(state="hidden")
    assert (place / "runs" / "doomed").is_dir()
    page.get_by_role("button", name="Delete this run").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete it").click()
    page.get_by_text("doomed is deleted").wait_for()
    assert not (place / "runs" / "doomed").exists()


def test_a_cell_of_the_map_shows_its_curve(tab):
    page = tab("where?run=rope-hello")
    settled(page)
    page.get_by_text("over position. Click a cell").wait_for()
    # A click where layer 2, dim 3 is drawn.
    at = page.evaluate(
        "(() => { const one = [...document.querySelectorAll('.js-plotly-plot')].find(plot => plot.layout?.yaxis?.title"
        "?.text === 'layer'); const box = one.getBoundingClientRect(), size = one._fullLayout; return [box.left + "
        "size.xaxis._offset + size.xaxis.d2p(3), box.top + size.yaxis._offset + size.yaxis.d2p(1)]; })()"
    )
    page.mouse.move(*at)
    page.mouse.click(*at)
    page.get_by_text("resid, layer 2, dim 3 over position").wait_for()


def test_a_prompt_of_ones_own_is_read_by_mesa_beside_the_model_as_trained(tab):
    page = tab("sees")
    settled(page)  # a tab that is opened while the page is drawn may be closed again
    page.get_by_role("tab", name="Your own text").click()
    page.get_by_label("or paste a text").fill("The grass is green. The sky is blue. " * 120)
    page.get_by_label("or paste a text").press("Control+Enter")
    page.get_by_role("button", name="Read it").click()
    page.get_by_text("mesa wrote").wait_for()
    assert "above the loaded model" in page.inner_text("body")


def test_a_chart_has_a_name_for_screen_readers_and_controls_have_labels(tab):
    page = tab()
    settled(page)
    assert page.get_by_label("Likelihood and hidden dimensions over position").count() == 1
    bare = page.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden]), button')].filter(one => one.offsetParent "
        "&& !one.labels?.length && !one.getAttribute('aria-label') && !one.textContent.trim() "
        "&& !one.getAttribute('aria-labelledby')).map(one => one.outerHTML.slice(0, 200))"
    )
    assert bare == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")


def test_only_this_machine_can_open_it(port):
    """The address is bound to localhost, also when launched from a folder without a config file."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; it only picks the outward address
            outward = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no outward address")
    with contextlib.closing(socket.socket()) as knock:
        knock.settimeout(5)
        assert knock.connect_ex((outward, port)) != 0


def test_tabs_that_open_a_fresh_server_at_once_are_all_drawn(chromium, tmp_path):
    """Each session imports what it needs in a thread of its own."""
    with serving(tmp_path) as (fresh, _):
        pages = [chromium.new_context().new_page() for _ in range(3)]
        for page, path in zip(pages, ("", "theory", "where"), strict=True):
            page.goto(f"http://localhost:{fresh}/{path}", wait_until="commit")
        for page in pages:
            drawn(page)
            page.context.close()
