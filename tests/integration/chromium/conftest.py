"""Shared by the tests that open pages in Chromium."""

import pytest

from tests.support.chromium import Tabs, chromium
from tests.support.serving_page import PageServer


@pytest.fixture(scope="module")  # no longer: Playwright's event loop runs as long as the browser
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def server():
    """The app of jobs.serve with a scripted model."""
    with PageServer() as server:
        yield server


@pytest.fixture
def opened(browser, server):
    """Opens the server's page with a key."""
    with Tabs(browser, server.address) as tabs:
        yield lambda key=server.key, **options: tabs.open(f"#key={key}" if key else "", **options)
