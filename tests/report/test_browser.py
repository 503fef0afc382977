"""The page in a real browser: it draws, it is silent, and it asks for nothing."""

import re

import pytest
from tests.report.chromium import listen, needs_browser
from tests.report.samples import deep, diagnosed, named_badly, traced

pytestmark = needs_browser


@pytest.fixture
def visit(browser, tmp_path):
    """Open the report of a result; fail on any message, error or request."""
    pages, said, asked = [], [], []

    def open_report(result, *, assets="inline", scheme="light"):
        path = result.save(tmp_path / "report.html", assets=assets)
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        pages.append(page)
        listen(page, said)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.evaluate("window.signalpropReady")
        return page

    yield open_report
    for page in pages:
        page.close()
    assert said == []
    allowed = re.compile(r"^(data:|blob:|file://.*/(report\.html|plotly\.min\.js)$)")
    assert [url for url in asked if not allowed.match(url)] == []


def drawn(page):
    return page.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.trace').length)"
    )


@pytest.mark.parametrize("assets", ["inline", "directory"])
def test_figures_are_drawn(visit, assets):
    page = visit(diagnosed(traced("mlp-sigmoid-30")), assets=assets)
    kinds, depth, learning = drawn(page)
    assert kinds >= 3
    assert depth >= 7
    assert learning == 3
    assert page.locator(".modebar-btn[data-title*='loud']").count() == 0
    assert page.locator(".plotlyjsicon, .modebar-btn--logo").count() == 0


def test_theme_follows_the_system_and_the_button(visit):
    page = visit(deep(3), scheme="dark")

    def ink():
        return page.evaluate(
            "[getComputedStyle(document.body).color,"
            " document.querySelector('.plot').layout.font.color]"
        )

    dark = ink()
    page.click("#theme")
    light = ink()
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    assert page.locator("#theme").inner_text() == "Dark theme"


def test_a_finding_zooms_to_its_sites(visit):
    result = diagnosed(traced("mlp-sigmoid-30"))
    page = visit(result)
    page.click(".finding.tip .zoom")  # it is about the input
    page.wait_for_function("document.querySelectorAll('.plot')[1].layout.xaxis.range[1] < 5")
    shapes = page.evaluate("document.querySelectorAll('.plot')[1].layout.shapes.length")
    assert shapes == 1
    assert page.locator("tr.marked").count() == 1
    names = page.evaluate("document.querySelectorAll('.plot')[1].layout.xaxis.ticktext")
    assert names == ["input", "0", "1"]


def test_tables_sort_and_filter(visit):
    trace = traced("mlp-sigmoid-30")
    page = visit(diagnosed(trace))
    page.click("#sites thead button:text-is('decay')")
    first = page.locator("#sites tbody tr").first.locator("td").first.inner_text()
    assert first == min(trace.blocks, key=lambda block: block.decay).end
    page.fill("input[data-table=sites]", "sigmoid")
    assert page.locator("#sites tbody tr:visible").count() == 30


def test_a_thousand_layers(visit):
    page = visit(diagnosed(deep(1000)))
    _, depth, _ = drawn(page)
    assert depth >= 6
    assert page.locator(".plot >> nth=1 >> .xaxislayer-above text, .x3tick").count() < 60
    assert page.locator("#sites tbody tr:visible").count() == 200
    page.click("button[data-table=sites].more")
    assert page.locator("#sites tbody tr:visible").count() == 2002


@pytest.mark.parametrize("name", ["mlp-relu-dead", "produces-nan", "lstm-cell-loop", "unet"])
def test_odd_networks(visit, name):
    assert all(count > 0 for count in drawn(visit(diagnosed(traced(name)))))


def test_names_run_nothing(visit):
    page = visit(diagnosed(named_badly()))
    assert page.locator("img").count() == 0
    assert page.locator("a[href^=http]").count() == 0


def test_reads_on_a_phone(visit):
    page = visit(diagnosed(traced("gpt2")))
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
