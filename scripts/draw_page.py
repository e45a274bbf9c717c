"""Draw the pictures of pages in docs: the bundled model's grid with the card of one cell, and the explorer."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from real_models import real_model

import layerscope
from layerscope.serving.app import make_app
from layerscope.serving.options import ServeOptions
from layerscope.serving.server import Server, listening
from layerscope.view.page.view import write_view

DOCS = Path(__file__).parent.parent / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Keep what a browser shows."""
    with sync_playwright() as playwright:
        found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
        browser = playwright.chromium.launch(executable_path=found, args=("--no-sandbox", "--disable-gpu"))
        draw_page(browser)
        draw_explorer(browser)
        browser.close()


def draw_page(browser: Browser) -> None:
    """A run's page, with the card of the cell at which the answer first comes on top."""
    shown = browser.new_page(viewport={"width": 1320, "height": 860}, color_scheme="light")
    with tempfile.TemporaryDirectory() as folder:
        page = write_view([layerscope.probe()], Path(folder) / "view.html")
        shown.goto(f"{page.as_uri()}#track=Moscow")
        shown.wait_for_selector("html[data-ready]")
        shown.locator("#pane-a tbody tr").nth(8).locator("td").last.hover()
        shown.locator("#cell-card").wait_for()
        shown.screenshot(path=DOCS / "page.png")


def draw_explorer(browser: Browser) -> None:
    """Two texts that differ in one word, as a difference."""
    shown = browser.new_page(viewport={"width": 1320, "height": 940}, color_scheme="light")
    with served() as address:
        shown.goto(address)
        shown.wait_for_selector("html[data-ready]")
        shown.fill("#track", "Paris, Berlin")
        shown.press("#track", "Enter")
        shown.wait_for_selector("html[data-looks='2']")
        shown.click("#compare")
        shown.fill("#text", "The capital of France is called")
        shown.wait_for_selector("#marks >> text=Outputs differ")
        shown.mouse.move(2, 2)
        shown.evaluate("scrollTo(0, 0)")
        shown.screenshot(path=DOCS / "explorer.png")


@contextmanager
def served() -> Iterator[str]:
    """The address of a server with SmolLM2-135M-Instruct."""
    app = make_app([real_model("smollm2")], ServeOptions(device="cpu"))
    listener = listening("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token={app.token}"
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
