"""Pages of trials in a real browser."""

import pytest
from tests.report import trials_samples as samples
from tests.report.test_browser import drawn, pytestmark, visit  # noqa: F401


@pytest.mark.parametrize("name", ["helped", "nothing", "healthy", "odd", "named_badly"])
def test_figures_are_drawn(visit, name):  # noqa: F811
    page = visit(getattr(samples, name)(), scheme="dark")
    assert all(count > 0 for count in drawn(page))
    assert page.locator("img").count() == 0


def test_the_menu_shows_one_candidate_and_the_untouched(visit):  # noqa: F811
    page = visit(samples.helped())
    shown = (
        "[...document.querySelectorAll('.plot')].at(-1).data"
        ".filter(t => t.visible).map(t => t.meta && t.meta.choice)"
    )
    page.select_option("select[data-figure]", "2")
    page.wait_for_function(f"{shown}.includes(2) && !{shown}.includes(0)")
    found = page.evaluate(shown)
    assert len(found) == 6
    assert found.count(2) == 3


def test_the_table_sorts_by_the_gain(visit):  # noqa: F811
    page = visit(samples.helped())
    page.click("#candidates thead button:text-is('gain')")
    first = page.locator("#candidates tbody tr").first.locator("td").first.inner_text()
    assert first == "rate"  # diverged
    page.click("#candidates thead button:text-is('gain')")
    first = page.locator("#candidates tbody tr").first.locator("td").first.inner_text()
    assert first.startswith("remove-softmax")


def test_reads_on_a_phone(visit):  # noqa: F811
    page = visit(samples.helped())
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
