"""The pages in a real browser, while a run writes: what is appended is seen, once, whatever happens to page, server and run."""

import contextlib
import re
import shutil
import socket
import threading
from pathlib import Path

import pytest
import uvicorn
from web_runs import HOSTILE, answer, make_run, step, train, warn, write_events

from tunesmith.rundir import lock
from tunesmith.rundir.records.events import Progress, StageEnd, StageStart
from tunesmith.web.application import application
from tunesmith.web.stream import Pace

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
SOON = 2000  # ms in which what was appended has to be seen
PACE = Pace(look=0.1, state=0.2, heartbeat=0.5, retry=0.2)
GOLDEN = Path(__file__).with_name("run_page.aria.txt")

if CHROMIUM is None:
    pytest.skip("no chromium is installed: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")


class Site:
    """The pages of a folder, served; may be stopped and started again at the same address."""

    def __init__(self, folder: Path, key: str | None = None):
        self.folder, self.key, self.port = folder, key, 0
        self.start()

    def start(self):
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        app = application(self.folder, key=self.key, pace=PACE, is_closing=lambda: self.server.should_exit)
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=3))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def site(tmp_path):
    opened = Site(tmp_path)
    yield opened
    opened.stop()


@pytest.fixture
def page(browser, site, request):
    """A page that fails its test when it says an error, or asks anybody but its server."""
    context = browser.new_context(**getattr(request, "param", {}))
    opened = context.new_page()
    faults = []
    opened.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda asked: None if asked.url.startswith(site.url) else faults.append(f"asked {asked.url}"))
    yield opened
    context.close()
    assert [fault for fault in faults if "ERR_CONNECTION" not in fault and "ERR_INCOMPLETE" not in fault] == []


def _shows(page, text, timeout=SOON):
    sync_api.expect(page.locator("main")).to_contain_text(text, timeout=timeout)


def _is_live(page):
    sync_api.expect(page.locator("#link")).to_have_text("live", timeout=10_000)


def _has_steps(page, *steps):
    """The table of figures has these steps."""
    sync_api.expect(page.locator("#steps tbody th")).to_have_text([str(step) for step in steps], timeout=SOON)


def test_what_is_appended_is_seen_soon_and_a_reloaded_page_has_all_of_it(page, site, tmp_path):
    run = make_run(tmp_path)
    with lock.writing(run.path):
        train(run, 3)
        page.goto(f"{site.url}/runs/toy")
        _shows(page, "running: train", 10_000)
        _is_live(page)
        page.locator("#steps summary").click()
        write_events(run, StageStart(stage="train"), *(step(number + 1) for number in range(5)))
        _shows(page, "step 5")
        _has_steps(page, 1, 2, 3, 4, 5)
        assert page.locator("#steps[open]").count() == 1  # it stayed open
        page.reload()
        _has_steps(page, 1, 2, 3, 4, 5)
        write_events(run, StageEnd(stage="train", outcome="failed", seconds=1.0, error="no room"))
        write_events(run, StageStart(stage="train"), step(1), Progress(stage="train", title="a bar", done=2, total=8))
        _shows(page, "a bar")
        assert page.locator("progress").first.evaluate("bar => [bar.value, bar.max]") == [2, 8]


def test_a_server_that_comes_back_goes_on_where_it_was_without_doubles(page, site, tmp_path):
    run = make_run(tmp_path)
    train(run, 2)
    page.goto(f"{site.url}/runs/toy")
    _is_live(page)
    site.stop()
    sync_api.expect(page.locator("#link")).to_contain_text("lost", timeout=10_000)
    write_events(run, step(3), step(4))
    warn(run, "said once")
    site.start()
    _shows(page, "said once", 10_000)
    _has_steps(page, 1, 2, 3, 4)
    page.wait_for_timeout(500)
    assert page.locator("#warnings li").count() == 1


def test_a_run_that_dies_is_said_to_be_dead_and_a_file_made_anew_is_shown_anew(page, site, tmp_path):
    run = make_run(tmp_path)
    with contextlib.ExitStack() as holding:
        holding.enter_context(lock.writing(run.path))
        train(run, 3)
        page.goto(f"{site.url}/runs/toy")
        _shows(page, "running: train", 10_000)
    _shows(page, "killed in train")
    _shows(page, f"tunesmith run {run.path}")
    run.events_file.unlink()
    train(run, 2)
    _shows(page, "step 2")
    _has_steps(page, 1, 2)


def test_texts_of_a_run_stay_texts(page, site, tmp_path):
    run = make_run(tmp_path)
    answer(run, "instruction", [1.0, 0.0], HOSTILE)
    answer(run, "tuned", [0.0, 1.0], HOSTILE)
    page.goto(f"{site.url}/runs/toy")
    _is_live(page)
    warn(run, HOSTILE)  # it comes by the stream and by a part that is fetched
    _shows(page, "<script>alert(1)</script><img src=x onerror=alert(2)>\\u202e&amp;")
    page.goto(f"{site.url}/runs/toy/answers")
    _shows(page, "question 1 <script>", 10_000)
    assert page.locator("main script, main img").count() == 0


@pytest.mark.parametrize(
    "page",
    [{"viewport": {"width": 360, "height": 700}, "color_scheme": scheme} for scheme in ("light", "dark")],
    indirect=True,
)
def test_at_360_pixels_nothing_stands_out_and_every_text_can_be_read(page, site, tmp_path):
    run = make_run(tmp_path)
    answer(run, "instruction", [1.0, 0.0], "x" * 300)
    answer(run, "tuned", [0.0, 1.0], "x" * 300)
    train(run)
    for path in ("/", "/runs/toy", "/runs/toy/answers?show=all", "/compare?a=toy&b=toy"):
        page.goto(f"{site.url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        pale = page.evaluate(CONTRAST)
        assert pale == [], (path, pale)


def test_by_keyboard_and_without_script(browser, site, tmp_path):
    run = make_run(tmp_path)
    answer(run, "instruction", [1.0, 0.0])
    answer(run, "tuned", [0.0, 1.0])
    context = browser.new_context(java_script_enabled=False, reduced_motion="reduce")
    page = context.new_page()
    page.goto(site.url)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # to the content
    page.keyboard.press("Tab")
    for key in ("Tab", "Enter"):  # past the table, which scrolls, to the run
        page.keyboard.press(key)
    page.wait_for_url("**/runs/toy")
    page.get_by_role("link", name="Answers", exact=True).click()
    assert "only tuned 1" in page.inner_text("main") and "question 1" in page.inner_text("main")
    context.close()


def test_a_form_of_ours_is_let_in_and_the_stream_with_it(browser, tmp_path):
    train(make_run(tmp_path), 1)
    site = Site(tmp_path, key="a key")
    context = browser.new_context()
    page = context.new_page()
    page.goto(site.url)
    page.get_by_label("key").fill("a key")
    page.get_by_role("button", name="Enter").click()
    page.get_by_role("link", name="toy").click()
    _is_live(page)
    context.close()
    site.stop()


def test_what_is_read_aloud_is_what_it_was(browser, site, tmp_path):
    """Of the parts that say how the run is; where it is meant to read otherwise, the file is written anew."""
    run = make_run(tmp_path)
    answer(run, "instruction", [1.0, 0.0, 1.0])
    answer(run, "tuned", [1.0, 1.0, 1.0])
    write_events(run, StageStart(stage="train"), step(1), step(2, dev=0.8), step(3, norm=None))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site.url}/runs/toy")
    parts = [page.locator(f"#{part}").aria_snapshot() for part in ("now", "arms", "training")]
    context.close()
    spoken = "\n".join(parts).replace(str(tmp_path), "FOLDER")
    spoken = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "MOMENT", re.sub(r"Process \d+", "Process N", spoken))
    assert spoken == GOLDEN.read_text().rstrip("\n"), spoken


# The texts of a page whose contrast with what is behind them is below 4.5 to 1.
CONTRAST = """
() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = (colour) => { const [r, g, b] = colour.map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length && (colour.length < 4 || colour[3] === 1)) return colour.slice(0, 3);
    }
    return parse(getComputedStyle(document.documentElement).colorScheme.includes("dark") ? "0 0 0" : "255 255 255");
  };
  const pale = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || element.closest("svg, option, select, noscript")) continue;
    const colour = parse(getComputedStyle(element).color).slice(0, 3);
    const [one, other] = [light(colour), light(behind(element))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) pale.push(`${element.tagName} ${element.className} ${element.textContent.slice(0, 30)} ${ratio}`);
  }
  return pale;
}
"""
