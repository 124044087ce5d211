"""How fast the dashboard is, and what it sends and holds: `python tests/app/measure.py OUT.json`, by hand, with nothing
else running. Not a test: what is timed here is the machine too.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
from browser import CHROMIUM, FLAGS, serving

REDRAWS, INTERACTIONS = 20, 100
RUN = "smollm2-text"


def first_picture(browser, port):
    """Seconds from asking for the page to a chart with its labels."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    hosts = set()
    page.on(
        "request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]) if "//" in request.url else None
    )
    began = time.perf_counter()
    page.goto(f"http://localhost:{port}/?run={RUN}")
    page.wait_for_selector(".js-plotly-plot .annotation")
    seconds = time.perf_counter() - began
    page.wait_for_timeout(1500)
    return page, seconds, sorted(hosts)


# Streamlit puts a new chart in the old one's place, so that only what it says tells them apart.
SMOOTHED = "[...document.querySelectorAll('.js-plotly-plot')].some(one => one.textContent.includes('median over'))"


def click(page, label):
    """Choose how hidden dimensions are smoothed, and wait for the chart as it is then; milliseconds."""
    began = time.perf_counter()
    page.get_by_role("radio", name=label, exact=True).click()
    page.wait_for_function(f"{SMOOTHED} === {'false' if label == 'off' else 'true'}", polling=5)
    return 1000 * (time.perf_counter() - began)


def redraws(page):
    """Milliseconds from a click on a control to the chart as it is then, and the largest message that came, kB."""
    came = []
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.on("Network.webSocketFrameReceived", lambda event: came.append(_size(event["response"])))
    for label in ("off", "on"):
        click(page, label)
        page.wait_for_timeout(500)
    network.detach()  # watching takes time itself
    milliseconds = []
    for number in range(REDRAWS):
        milliseconds.append(click(page, ("off", "on")[number % 2]))
        page.wait_for_timeout(300)
    return milliseconds, max(came) / 1000


def _size(frame):
    """Bytes of a frame; one that is not text comes in base64."""
    return len(frame["payloadData"]) if frame["opcode"] == 1 else len(frame["payloadData"]) * 3 // 4


def resident(pid):
    """MB that the server holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError


def main(out):
    """Measure and write."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        cold = []
        for _ in range(3):
            with serving(Path(folder)) as (port, _process):
                page, seconds, _ = first_picture(browser, port)
                cold.append(seconds)
                page.close()
        with serving(Path(folder)) as (port, process):
            first_picture(browser, port)[0].close()
            warm = []
            for _ in range(3):
                page, seconds, hosts = first_picture(browser, port)
                warm.append(seconds)
                page.close()
            page, _, hosts = first_picture(browser, port)
            milliseconds, kilobytes = redraws(page)
            memory = [resident(process.pid)]
            for number in range(INTERACTIONS):
                page.get_by_role("radio", name=("off", "on")[number % 2], exact=True).click()
                page.wait_for_timeout(150)
            memory.append(resident(process.pid))
        browser.close()
    found = {
        "run": RUN, "first_picture_cold_s": cold, "first_picture_warm_s": warm,
        "redraw_ms": milliseconds, "redraw_ms_median": statistics.median(milliseconds), 
        "largest_message_kb": kilobytes, "hosts": hosts,
        "server_mb_before": memory[0], "server_mb_after_100_interactions": memory[1],
    }  # fmt: skip
    Path(out).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
