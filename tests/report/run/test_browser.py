"""The report of runs in a real browser: it draws, and says nothing in the console."""

import pytest
from tests.report.chromium import listen, needs_browser
from tests.report.run import samples

from signalprop.report.run import result

pytestmark = needs_browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    samples.write(folder / "sick.sp")
    samples.write(folder / "healthy.sp", sick=False, seed=1)
    samples.hostile(folder / "hostile.sp")
    return folder


@pytest.fixture
def visit(browser):
    """Open a page; fail on any message or error."""
    said, pages = [], []

    def open_page(path):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        pages.append(page)
        listen(page, said)
        page.goto(path.as_uri())
        page.evaluate("window.signalpropReady")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


@pytest.mark.parametrize("names", [["sick.sp"], ["sick.sp", "healthy.sp"], ["hostile.sp"]])
def test_the_page_opens_without_a_word(folder, visit, names):
    with result.read([folder / name for name in names]) as found:
        page = visit(found.save(folder / "page.html"))
    assert page.locator(".plot .heatmaplayer image").count() >= len(names)
    page.select_option("select >> nth=0", "1")
    page.wait_for_function(
        "() => document.querySelector('.plot').data.some((t) => t.visible && t.meta &&"
        " t.meta.choice === 1)"
    )
    page.click("#theme")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
