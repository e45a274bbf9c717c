"""Draw docs/page.png, the README's picture of a page: the bundled model's grid with the card of one cell."""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import layerscope
from layerscope.view.page.view import write_view

PICTURE = Path(__file__).parent.parent / "docs" / "page.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Probe, open the page, point at a cell, and keep what the browser shows."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = write_view([layerscope.probe()], Path(folder) / "view.html")
        found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
        browser = playwright.chromium.launch(executable_path=found, args=("--no-sandbox", "--disable-gpu"))
        shown = browser.new_page(viewport={"width": 1320, "height": 860}, color_scheme="light")
        shown.goto(f"{page.as_uri()}#track=Moscow")
        shown.wait_for_selector("html[data-ready]")
        shown.locator("#pane-a tbody tr").nth(8).locator("td").last.hover()
        shown.locator("#cell-card").wait_for()
        shown.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
