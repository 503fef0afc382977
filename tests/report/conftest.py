"""What the tests of pages share."""

import pytest
from tests.report.chromium import ARGUMENTS, CHROMIUM, sync_playwright


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()
