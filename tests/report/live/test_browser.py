"""The live page in a real browser: it draws, follows, zooms, and says nothing in the console."""

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
from tests.report.chromium import listen, needs_browser
from tests.report.live.serving import Served
from tests.report.run import samples

from signalprop.watching.file.reader import Run
from signalprop.watching.file.writer import RunWriter

pytestmark = needs_browser


class Visit:
    """A page, and what a test asks it.

    Args:
        page: of Playwright.
    """

    def __init__(self, page):
        self.page = page

    def wait(self, condition, argument=None):
        # a function, not text: the page's policy forbids to evaluate text
        self.page.wait_for_function(f"(a) => {condition}", arg=argument, timeout=60_000)

    def ask(self, question):
        return self.page.evaluate(f"() => {question}")

    def drawn(self):
        self.wait("document.querySelector('#timeline .heatmaplayer image')")

    def span(self):
        return self.ask("document.getElementById('timeline').layout.xaxis.range")

    def text(self, selector):
        return self.page.locator(selector).first.inner_text()


@pytest.fixture
def visit(browser):
    """Open the page of runs; fail on any message, error, or request to elsewhere."""
    opened, said, asked = [], [], []

    def open_page(*paths, scheme="light", width=1280):
        served = Served(list(paths)).__enter__()
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        opened.append((page, served))
        listen(page, said)
        page.on("request", lambda request: asked.append((served.url, request.url)))
        page.goto(served.url)
        return Visit(page)

    yield open_page
    for page, served in opened:
        page.close()
        served.__exit__()
    assert said == []
    own = [url for base, url in asked if not url.startswith((base, "data:", "blob:"))]
    assert own == []


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    return samples.write(tmp_path_factory.mktemp("runs") / "sick.sp")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "healthy.sp"
    return samples.write(path, sick=False, seed=1)


def test_verdict_alerts_and_figures(visit, sick):
    page = visit(sick)
    page.drawn()
    assert page.text(".verdict .word").lower() == "issues found"
    assert "First: A layer stops learning, from step 4,000 on" in page.text(".verdict p")
    assert page.page.locator(".alert").count() == 2
    page.wait("document.querySelectorAll('#scalars-plot .trace').length >= 3")
    page.wait("document.querySelector('#window-plot .heatmaplayer image')")
    assert "Every step before step 7,050" in page.text("#window-caption")
    assert page.page.locator(".modebar-btn[data-title*='loud'], .modebar-btn--logo").count() == 0
    assert page.text("#pulse").startswith(("recording", "not being written"))


def test_an_alert_explains_itself_and_shows_its_sites(visit, sick):
    page = visit(sick)
    page.drawn()
    page.page.click("#alert-0-0")
    assert "fell by 14.2 nats" in page.text(".alert.chosen .more")
    assert page.page.locator("#chosen button").all_inner_texts() == [
        "block1.attention.query ×", "block1.attention.key ×",
    ]  # fmt: skip
    page.wait("document.querySelectorAll('#lines .scatterlayer .trace').length >= 2")
    page.page.click("text=Zoom to these steps")
    page.wait("document.getElementById('timeline').layout.xaxis.range[1] < 8000")
    low, high = page.span()
    assert 2000 < low < 4000 < 4600 < high


def test_a_mark_in_the_figure_opens_its_alert(visit, sick):
    page = visit(sick)
    page.drawn()
    marks = page.page.locator("#timeline .scatterlayer .trace:first-child .point")
    box = marks.first.bounding_box()
    page.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait("document.querySelector('.alert.chosen')")
    assert "A layer stops learning" in page.text(".alert.chosen")


def test_a_row_becomes_a_line(visit, sick):
    page = visit(sick)
    page.drawn()
    at = page.ask(
        "(() => { const p = document.getElementById('timeline'), b = p.getBoundingClientRect(),"
        " x = p._fullLayout.xaxis, y = p._fullLayout.yaxis3;"
        " return [b.left + x._offset + 0.5 * x._length, b.top + y._offset + 2.5 / 38 * y._length];"
        " })()"
    )
    page.page.mouse.move(*at)
    page.wait("document.querySelector('#timeline .hoverlayer .hovertext')")
    page.page.mouse.click(*at)
    page.wait("document.querySelectorAll('#chosen button').length === 1")
    assert page.text("#chosen button") == "block0.attention.key ×"


def test_zooming_with_mouse_wheel_keys_and_buttons(visit, sick):
    page = visit(sick)
    page.drawn()
    box = page.page.locator("#timeline .nsewdrag").last.bounding_box()
    y = box["y"] + box["height"] / 2
    page.page.mouse.move(box["x"] + 0.3 * box["width"], y)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 0.5 * box["width"], y, steps=5)
    page.page.mouse.up()
    page.wait("document.getElementById('timeline').layout.xaxis.range[1] < 5500")
    low, high = page.span()
    assert 2500 < low < 3500 < 4500 < high < 5500
    page.wait("document.getElementById('scalars-plot').layout.xaxis.range[1] < 5500")
    page.page.keyboard.down("Control")
    page.page.mouse.wheel(0, 300)
    page.page.keyboard.up("Control")
    page.wait("document.getElementById('timeline').layout.xaxis.range[0] < a", low - 10)
    page.page.focus("#timeline")
    page.page.keyboard.press("0")
    page.wait("document.getElementById('timeline').layout.xaxis.range[1] > 9900")
    page.page.click("#closer")
    page.wait("document.getElementById('timeline').layout.xaxis.range[1] < 8000")
    page.page.keyboard.press("Tab")
    low = page.span()[0]
    page.page.click("#later")
    page.wait("document.getElementById('timeline').layout.xaxis.range[0] > a", low + 100)
    box = page.page.locator("#timeline .nsewdrag").last.bounding_box()
    page.page.mouse.dblclick(box["x"] + 100, box["y"] + 100)
    page.wait("document.getElementById('timeline').layout.xaxis.range[1] > 9900")


def test_other_statistics(visit, sick):
    page = visit(sick)
    page.drawn()
    page.page.select_option("#statistic", "learning_share")
    page.wait("document.getElementById('timeline').layout.coloraxis.cmin < 0")
    assert "sums to 1" in page.text("#meaning")
    page.page.select_option("#statistic", "activation_rms")
    page.wait("document.getElementById('timeline').data.some((t) => t.name === 'special')")
    assert "Red: not finite" in page.text("#timeline-caption")
    page.page.select_option("#scale", "change")
    page.wait("document.getElementById('timeline').layout.coloraxis.cmin < 0")


def test_dark_mode(visit, sick):
    page = visit(sick, scheme="dark")
    page.drawn()
    ink = (
        "[getComputedStyle(document.body).color,"
        " document.getElementById('timeline').layout.font.color]"
    )
    dark = page.ask(ink)
    page.page.click("#theme")
    page.wait("document.getElementById('timeline').layout.font.color !== a", dark[1])
    light = page.ask(ink)
    assert dark[0] != light[0]
    assert page.text("#theme") == "Dark theme"


def test_two_runs_are_compared(visit, sick, healthy):
    page = visit(sick, healthy)
    page.drawn()
    assert page.page.locator(".verdict").count() == 2
    heats = "document.getElementById('timeline').data.filter((t) => t.name === 'heat')"
    axes = page.ask(f"{heats}.map((t) => [t.xaxis || 'x', t.coloraxis])")
    assert axes == [["x", "coloraxis"], ["x2", "coloraxis"]]
    page.wait("document.querySelectorAll('#scalars-plot .scatterlayer .trace').length === 6")
    page.page.uncheck("text=sick.sp >> input")
    page.wait(f"{heats}.length === 1")
    assert page.page.locator(".alert").count() == 0
    page.page.check("text=sick.sp >> input")
    page.wait(f"{heats}.length === 2")
    page.page.select_option("#layout", "below")
    page.wait("document.getElementById('timeline').layout.xaxis2.domain[0] === 0")


def test_it_follows_a_run_that_begins_later(visit, tmp_path):
    path = tmp_path / "run.sp"
    page = visit(path)
    page.wait("document.querySelector('.verdict')")
    assert "does not exist yet; this page waits for it" in page.text(".verdict p")
    assert not page.page.locator("#show").is_visible()
    with RunWriter(path, log=samples.LOG, every=0.1) as writer:
        samples.record(writer, range(0, 2000, 50), sick=True)
        page.drawn()
        page.wait("document.querySelector('.verdict p').innerText.includes('step 1,950')")
        assert page.text(".verdict .word").lower() == "no alerts"
        page.page.click("#closer")
        page.wait("document.getElementById('timeline').layout.xaxis.range[1] < 1900")
        zoomed = page.span()
        samples.record(writer, range(2000, 5000, 50), sick=True)
        page.wait("document.querySelector('.alert')")
        page.wait("document.querySelector('.verdict p').innerText.includes('step 4,950')")
        assert page.span() == zoomed  # what is looked at stays
        page.page.check("#follow")
        page.wait("document.getElementById('timeline').layout.xaxis.range[1] > 4900")
        assert page.text("#pulse").startswith("recording")


def test_a_run_that_starts_again(visit, tmp_path):
    path = samples.write(tmp_path / "run.sp", steps=range(0, 8000, 50))
    page = visit(path)
    page.drawn()
    page.page.click("#alert-0-0")
    page.page.click("#closer")
    page.wait("document.getElementById('timeline').layout.xaxis.range[1] < 7000")
    samples.write(path, steps=range(0, 600, 50), sick=False)
    page.wait("document.querySelector('.verdict p').innerText.includes('step 550')")
    page.wait("document.getElementById('timeline').layout.xaxis.range[1] < 700")
    assert page.page.locator(".alert").count() == 0
    assert page.page.locator("#chosen button").count() == 0


def test_a_file_that_turns_out_to_be_damaged(visit, tmp_path):
    path = samples.write(tmp_path / "run.sp", steps=range(0, 1000, 50))
    page = visit(path)
    page.drawn()
    bad = tmp_path / "bad"
    bad.write_bytes(b"this is no run" * 500)
    bad.replace(path)
    page.wait("document.querySelector('.verdict.damaged')")
    assert page.text(".verdict p") == "run.sp is no run file"


def test_it_comes_back_after_the_server(visit, sick, browser):
    served = Served([sick]).__enter__()
    page = browser.new_page()
    page.goto(served.url)
    again = Visit(page)
    again.drawn()
    again.page.evaluate("() => { window.sameVisit = true; }")
    port = served.socket.getsockname()[1]
    served.__exit__()
    again.wait("document.getElementById('pulse').innerText.includes('no connection')")
    with Served([sick], port):
        again.wait("document.getElementById('pulse').innerText.includes('last written')")
        assert again.ask("window.sameVisit")
        again.page.click("#closer")
        again.wait("document.getElementById('timeline').layout.xaxis.range[1] < 8000")
        page.close()


def test_a_killed_training_leaves_all_it_had_flushed(visit, tmp_path):
    path = tmp_path / "run.sp"
    program = f"""
        import sys
        from tests.report.run import samples
        from signalprop.watching.file.writer import RunWriter
        writer = RunWriter({str(path)!r}, log=samples.LOG, every=0.05)
        step = 0
        while True:
            samples.record(writer, range(step, step + 500, 50), sick=True)
            step += 500
            writer.flush()
            print(step - 50, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        try:
            for _ in range(4):
                flushed = int(process.stdout.readline())
            page = visit(path)
            page.drawn()
            flushed = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            rest = process.stdout.read().split()
    flushed = max([flushed, *map(int, rest)])
    with Run(path) as run:
        last = int(run.steps[-1])
    assert last >= flushed
    page.wait("document.querySelector('.verdict p').innerText.includes(a)", f"step {last:,}")
    page.wait(
        "document.getElementById('timeline').layout.xaxis.range[1] >= a", last - 25
    )  # fmt: skip


def test_hostile_names_do_nothing(visit, tmp_path):
    page = visit(samples.hostile(tmp_path / "run.sp"))
    page.drawn()
    page.page.click("#alert-0-0")
    page.page.wait_for_timeout(300)
    assert samples.HOSTILE in page.text(".alert.chosen")
    assert page.page.locator("img").count() == 0
    assert page.page.locator("main a[href]").count() == 0
    assert page.page.locator("svg a").count() == 0
    assert page.page.locator("main script").count() == 0
    assert page.page.locator("main svg svg, [onload], [onclick], [onerror]").count() == 0


@pytest.mark.parametrize("width", [400, 1280])
def test_fits_the_screen(visit, sick, width):
    page = visit(sick, width=width)
    page.drawn()
    assert page.ask("document.documentElement.scrollWidth") <= width
    room = page.ask("document.getElementById('timeline')._fullLayout.xaxis._length")
    assert room > 0.45 * width


def test_everything_has_a_name_and_a_place_in_the_order(visit, sick):
    page = visit(sick)
    page.drawn()
    nameless = page.ask(
        "[...document.querySelectorAll('button, select, input')].filter((n) => n.offsetParent)"
        ".filter((n) => !(n.innerText || n.ariaLabel || (n.labels && n.labels.length))).length"
    )
    assert nameless == 0
    page.page.focus("#theme")
    page.page.keyboard.press("Tab")
    assert page.ask("document.activeElement.id") == "alert-0-0"
    page.page.keyboard.press("Enter")
    page.wait("document.querySelector('.alert.chosen')")
    assert page.ask("document.activeElement.id") == "alert-0-0"
    page.page.fill("#add", "head")
    page.page.press("#add", "Enter")
    page.wait("document.querySelectorAll('#chosen button').length === 3")


def test_a_picture_can_be_saved(visit, sick):
    page = visit(sick)
    page.drawn()
    made = page.ask(
        "Plotly.toImage(document.getElementById('timeline'), { format: 'png', width: 800,"
        " height: 500 })"
    )
    assert re.match(r"data:image/png;base64,.{5000,}", made)
