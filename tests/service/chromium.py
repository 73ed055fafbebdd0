"""A real browser (Debian's Chromium, driven by Playwright), and what has to hold on every page that it opens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
]
PATIENCE_MS = 60_000
NEEDS_CHROMIUM = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, to test the page"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:  # noqa: ANN401
    """The page with its styles there. Whatever it throws, and whatever it loads from elsewhere, fails the test."""
    defaults: dict[str, Any] = {
        "viewport": {"width": 1200, "height": 800},
        "accept_downloads": True,
        "locale": "en-GB",
    }
    context = browser.new_context(**defaults | options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    thrown: list[object] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: thrown.append(error))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector(".card")
    yield page
    context.close()
    assert not thrown
    assert all(address.startswith((url, "data:", "blob:")) for address in asked)


def complaints(page: Page) -> list[str]:
    """What axe-core finds serious in the page as it stands."""
    violations = Axe().run(page).response["violations"]
    return [
        f"{found['id']}: {node['html'][:120]}"
        for found in violations
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]
