"""Headless Chromium for tests of pages: found on this machine, never fetched, never online."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
SLOW = 180_000  # milliseconds: the machine may be busy

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"
)


@contextmanager
def new_page(**settings):
    """A page of a browser of its own; the test is skipped where Playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            page = browser.new_page(**settings)
            page.set_default_timeout(SLOW)
            yield page
        finally:
            browser.close()


def screenshot(page, name: str, folder: Path) -> Path:
    """Keep the whole page as a picture, in $FINER1_SCREENSHOTS where it is set."""
    kept = Path(os.environ.get("FINER1_SCREENSHOTS") or folder) / f"{name}.png"
    kept.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(kept), full_page=True)
    return kept
