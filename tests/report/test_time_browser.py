"""Time in a real browser: a trace's section, and the page of a horizon."""

import dataclasses

import pytest
from tests.report import time_samples as samples
from tests.report.samples import deep
from tests.report.test_browser import drawn, pytestmark, visit  # noqa: F401
from tests.report.time_samples import curve, horizons


def test_a_trace_draws_what_happens_over_time(visit):  # noqa: F811
    axes = (*samples.deep(3), samples.lstm("dec", h=(0.0, 1e-3, 1e-2)))
    page = visit(dataclasses.replace(deep(1), time=axes))
    assert all(count > 0 for count in drawn(page))
    assert page.locator("#through tbody tr").count() == 7
    page.click("#through thead button:text-is('nats per step')")
    assert page.locator("#through tbody tr").first.locator("td").first.inner_text() == "dec"
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_horizon(visit, scheme):  # noqa: F811
    both = horizons(curve(0.5), curve(0.999, layer=1), spectra=True, exponents=True)
    page = visit(both, scheme=scheme)
    assert all(count > 0 for count in drawn(page))
    page.select_option("select[data-figure]", "1")
    page.wait_for_function(
        "[...document.querySelectorAll('.plot')][2].data"
        ".every(t => t.visible === (t.meta.choice === 1))"
    )
    rows = page.locator("#horizons tbody tr")
    page.click("#horizons thead button:text-is('to 1/e')")
    assert rows.first.locator("td").first.inner_text() == "rnn l0"
    assert "> 60" in rows.last.inner_text()
