"""A real Chromium by Playwright. Tests that need them are skipped where they lack.

`make browser` installs Playwright, `apt install chromium` the browser; another one is named by CHROMIUM.
"""

import contextlib
import os
import shutil

import pytest

REFUSED = "Failed to load resource"  # Chromium's own line for each status of 400 and above, and for lost connections


@contextlib.contextmanager
def chromium():
    """Context manager with a browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright (`make browser`)")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not path:
        pytest.skip("no Chromium on PATH or in CHROMIUM: no browser opens a page")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tabs:
    """Context manager: opens pages of one server, each in a context of its own.

    At the end, they have caused no trouble: no message on the console, no error, no dialog, no request elsewhere.
    """

    def __init__(self, browser, address: str):
        self._browser, self._address = browser, address
        self._contexts: list = []
        self._trouble: list[str] = []
        self._allowed: list[str] = []

    def open(self, fragment: str = "", allow: tuple[str, ...] = (), **options):
        """Open a page. Messages that begin with one of `allow` are no trouble."""
        self._allowed += allow
        self._contexts.append(self._browser.new_context(**options))
        page = self._contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: self._trouble.append(message.text))
        page.on("pageerror", lambda error: self._trouble.append(str(error)))
        page.on("dialog", lambda dialog: self._trouble.append(f"dialog {dialog.message}"))
        page.on("request", self._request)
        page.goto(self._address + fragment)
        return page

    def _request(self, request) -> None:
        if not request.url.startswith(self._address):
            self._trouble.append(request.url)

    def __enter__(self) -> "Tabs":
        return self

    def __exit__(self, *error: object) -> None:
        for context in self._contexts:
            context.close()
        assert [one for one in self._trouble if not one.startswith(tuple(self._allowed))] == []
