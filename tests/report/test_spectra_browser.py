"""Pages of spectra and of theory in a real browser."""

import pytest
from tests.report import spectra_samples as samples
from tests.report.test_browser import drawn, pytestmark, visit  # noqa: F401

from signalprop.report.theory.result import around


@pytest.mark.parametrize("name", ["deep_mlp", "conv", "broken", "isometry"])
def test_figures_are_drawn(visit, name):  # noqa: F811
    assert all(count > 0 for count in drawn(visit(getattr(samples, name)())))


def test_the_menu_shows_one_block(visit):  # noqa: F811
    page = visit(samples.residual(5))

    def shown():
        return page.evaluate(
            "[...document.querySelectorAll('.plot')].at(-1).data"
            ".filter(t => t.visible).map(t => t.meta.choice)"
        )

    for choice in ("0", "3"):
        page.select_option("select[data-figure]", choice)
        page.wait_for_function(
            "[...document.querySelectorAll('.plot')].at(-1)"
            f".data.every(t => t.visible === (t.meta.choice === {choice}))"
        )
        assert set(shown()) == {int(choice)}


def test_a_phase_diagram(visit):  # noqa: F811
    page = visit(around("tanh", (1.5, 0.05), 50), scheme="dark")
    assert drawn(page)[0] >= 2
