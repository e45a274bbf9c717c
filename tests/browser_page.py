"""A page opened in a browser: what it asks and says is written down, and its grid is read as people see it."""

import csv
import io
import os
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import pytest
from playwright.sync_api import Browser, BrowserContext, Download, Error, Locator, Page, Playwright, Route, expect

PICTURES = Path(__file__).resolve().parents[1] / "test-output"
"""Where screenshots are kept."""
DESKTOP = {"width": 1360, "height": 900}
PHONE = {"width": 390, "height": 844}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Without a sandbox, which root has not. Drawn by the processor: where there is no accelerator Chromium imitates one in
# a process of its own, which a watchdog ends when a busy machine keeps it waiting, and a picture that was being made
# then never comes.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-gpu-watchdog")
HANGS_MS = 600_000
"""Every wait is for something that the page says or does. This only ends one that would never end."""


def launched(playwright: Playwright) -> Browser:
    """A Chromium: the system's, else Playwright's own; without either the tests skip, but fail where CI is set."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    try:
        return playwright.chromium.launch(executable_path=found, args=FLAGS, timeout=HANGS_MS)
    except Error as error:
        _without(f"no browser can be had: {error.message.splitlines()[0]}; `make test` installs Debian's chromium")


def _without(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Opened:
    """One page in a context of its own, cut off from every network."""

    page: Page
    context: BrowserContext
    path: Path
    asked: list[str]
    """Addresses of all requests but the one for the file."""
    said: list[str] = field(default_factory=list)
    """Warnings, errors and dialogs."""

    @classmethod
    def at(cls, browser: Browser, path: Path, fragment: str = "", **options: Any) -> "Opened":
        """Open a file and wait until it is ready.

        Args:
            browser: where.
            path: the page's file.
            fragment: what stands behind the `#` of its address.
            options: of Playwright's `new_context`; a desktop in light colours where nothing is said.
        """
        options = {"viewport": DESKTOP, "color_scheme": "light", "reduced_motion": "reduce"} | options
        context = browser.new_context(accept_downloads=True, **options)
        context.set_default_timeout(HANGS_MS)
        opened = cls(context.new_page(), context, path, [])
        context.route("**/*", opened._routed)
        opened.page.on(
            "console", lambda one: opened.said.append(f"{one.type}: {one.text}") if _loud(one.type) else None
        )
        opened.page.on("pageerror", lambda error: opened.said.append(f"error: {error}"))
        opened.page.on("dialog", lambda dialog: (opened.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        opened.page.goto(path.as_uri() + (f"#{fragment}" if fragment else ""))
        opened.page.wait_for_selector("html[data-ready]")
        return opened

    def _routed(self, route: Route) -> None:
        if route.request.url.partition("#")[0] == self.path.as_uri():
            route.continue_()
        else:
            self.asked.append(route.request.url)
            route.abort()

    def close(self) -> None:
        """Close it, and see that it asked for nothing and complained of nothing."""
        self.context.close()
        assert self.asked == []
        assert self.said == []

    # The grid

    def cell(self, layer: int, column: int, pane: str = "a") -> Locator:
        """A cell by its layer and the place of its column, counted from 0."""
        rows = self.page.locator(f"#pane-{pane} tbody tr")
        return rows.nth(rows.count() - 1 - layer).locator("td").nth(column)

    def tops(self, pane: str = "a") -> list[list[str]]:
        """What every cell shows first, by layer and column; empty where there is no row."""
        script = """rows => rows.reverse().map(
          row => [...row.cells].slice(1).map(cell => cell.querySelector('.tok')?.textContent ?? ''))"""
        found: list[list[str]] = self.page.locator(f"#pane-{pane} tbody tr").evaluate_all(script)
        return found

    def within(self, selector: str) -> list[list[list[str]]]:
        """What of a kind every cell holds, by layer and column."""
        script = """(rows, selector) => rows.reverse().map(
          row => [...row.cells].slice(1).map(
            cell => [...cell.querySelectorAll(selector)].map(one => one.textContent)))"""
        found: list[list[list[str]]] = self.page.locator("#pane-a tbody tr").evaluate_all(script, selector)
        return found

    def colour(self, layer: int, column: int) -> tuple[int, ...]:
        """Red, green and blue of a cell's ground."""
        said = self.cell(layer, column).evaluate("cell => getComputedStyle(cell).backgroundColor")
        return tuple(int(float(part)) for part in said[said.index("(") + 1 : said.index(")")].replace(",", " ").split())

    def switched(self, action: Any) -> None:
        """Do something that changes what the grid shows, and wait for it."""
        self.page.evaluate("delete document.documentElement.dataset.gridMs")
        action()
        self.page.wait_for_selector("html[data-grid-ms]")

    def choose(self, group: str, text: str) -> None:
        """Choose a lens or a way to hold two against each other."""
        label = self.page.locator(f"#{group} label", has_text=text).filter(has=self.page.locator(f"text=/^{text}$/"))
        self.switched(label.locator("input").check)

    def select(self, id: str, value: str) -> None:
        """Choose in a list that changes what the grid shows."""
        self.switched(lambda: self.page.select_option(f"#{id}", value))

    def colour_by(self, text: str) -> None:
        """Choose what the cells' colour says."""
        self.page.locator("#choose-colour label", has_text=text).locator("input").check()

    def search(self, text: str) -> None:
        """Type into the search and wait for its result."""
        result = self.page.locator("#search-result")
        self.page.fill("#search", "")
        expect(result).to_have_text("")
        self.page.fill("#search", text)
        expect(result).not_to_have_text("")

    def card(self, within: str = "#cell-card") -> list[tuple[str, str]]:
        """Tokens and probabilities that a card lists."""
        items = self.page.locator(f"{within} ol.top > li")
        found = items.evaluate_all(
            "all => all.map(li => ['.name', '.p'].map(part => li.querySelector(part).textContent))"
        )
        return [(name, p) for name, p in found]

    # Files

    def downloaded(self, locator: Locator) -> tuple[str, bytes]:
        """Name and content of the file that a click saves; of a chart once it is drawn, so that nothing else is due."""
        figure = locator.locator("xpath=ancestor::figure[contains(@class, 'chart')]")
        if figure.count():
            self.drawn(figure)
        with self.page.expect_download() as waiting:
            locator.click()
        download: Download = waiting.value
        return download.suggested_filename, Path(download.path()).read_bytes()

    def table(self, locator: Locator) -> list[dict[str, str]]:
        """The rows of a CSV file that a click saves."""
        name, content = self.downloaded(locator)
        assert name.endswith(".csv")
        return list(csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))

    def picture(self, name: str, *, whole: bool = False) -> None:
        """Keep what the page looks like."""
        PICTURES.mkdir(exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=whole)

    def draw_charts(self) -> None:
        """Bring every chart that is shown into view, so that it is drawn."""
        for figure in self.page.locator("figure.chart:visible").all():
            self.drawn(figure)

    def drawn(self, figure: Locator) -> None:
        """Bring a chart into view and wait until it says that it is drawn."""
        figure.scroll_into_view_if_needed()
        figure.and_(self.page.locator(".drawn")).wait_for()

    # Layout and access

    def too_wide(self) -> int:
        """By how many pixels the page is wider than its window."""
        found: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return found

    def focused(self) -> Mapping[str, Any]:
        """The element that has the keyboard's focus, and whether that can be seen."""
        script = """() => {
          const node = document.activeElement;
          const outlined = (one) => {
            const style = one && getComputedStyle(one);
            return Boolean(style) && style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
          };
          return {
            tag: node.tagName, id: node.id, name: node.getAttribute('name'), layer: node.layer, column: node.column,
            seen: outlined(node) || (node.type === 'radio' && outlined(node.nextElementSibling)),
          };
        }"""
        found: Mapping[str, Any] = self.page.evaluate(script)
        return found

    def findings(self) -> Sequence[str]:
        """What axe-core calls serious or critical."""
        if not self.page.evaluate("Boolean(window.axe)"):
            self.page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
        result = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {one['help']} {node['target']} {node.get('failureSummary', '')}"
            for one in result["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]


def _loud(kind: str) -> bool:
    return kind in ("warning", "error", "assert")


def as_shown(token: str) -> str:
    """A token with everything that would not be seen written out, for tokens without joined letters or pictures."""
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    hidden = [unicodedata.category(char)[0] in "CZ" for char in token]
    shown = [signs.get(c, f"U+{ord(c):04X}") if away else c for c, away in zip(token, hidden, strict=True)]
    parts = [f"◌{c}" if _on_nothing(token, hidden, at) else c for at, c in enumerate(shown)]
    return "".join(parts) or "empty"


def _on_nothing(token: str, hidden: Sequence[bool], at: int) -> bool:
    """Whether a character is a mark without a letter before it."""
    return unicodedata.category(token[at])[0] == "M" and (at == 0 or hidden[at - 1])
