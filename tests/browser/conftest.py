"""A headless Chromium, driven by selenium; without one the tests of the pages are skipped, and say why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from browser.page import Page

REQUIRED = "ROLECALL_TEST_BROWSER"
"""``required`` makes a Chromium that is not there a failure."""


def _programs() -> tuple[str, str] | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def chromium_driver() -> Iterator[webdriver.Chrome]:
    """Run a Chromium for a while; raises ``LookupError`` if there is none."""
    programs = _programs()
    if programs is None:
        raise LookupError(
            "no Chromium with its chromedriver is on the PATH (Debian: apt install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    """Run one Chromium for all tests."""
    with ExitStack() as stack:
        try:
            driver = stack.enter_context(chromium_driver())
        except LookupError as error:
            if os.environ.get(REQUIRED) == "required":
                pytest.fail(str(error))
            pytest.skip(str(error))
        yield driver


@pytest.fixture
def page(chromium: webdriver.Chrome) -> Iterator[Page]:
    """Return an empty tab of usual size in light colours; what it stored is forgotten afterwards."""
    tab = Page(chromium)
    tab.resize(1280, 900)
    tab.colours("light")
    tab.problems()
    yield tab
    tab.leave()
