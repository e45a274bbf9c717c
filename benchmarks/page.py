"""Size and speed of the page about a deep model: 80 layers, 16 positions, five lenses, lists of twenty.

The run is made of random numbers, so that nothing is compressed that would not be in a real one. Times are those of a
browser on this machine: of opening, from the request to the moment when the grid can be used; of another lens, from the
click to the picture on the screen, the first time with unpacking the lens's numbers and later without.

    python benchmarks/page.py                # prints a table
    python benchmarks/page.py --repeat 9     # more openings; medians and worst are told
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import layerscope
from layerscope.view.page.view import write_view

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser_page import DESKTOP, launched  # noqa: E402
from made_run import made  # noqa: E402

N_LAYERS, N_POSITIONS, TOP_K, N_TOKENS = 80, 16, 20, 100_000
LENSES = ("logit", "next_norm", "raw", "tuned", "prism")
MOST_MB, MOST_OPENING_MS, MOST_SWITCH_MS = 15, 2000, 200
SWITCH = """async lens => {
  const began = performance.now();
  const painted = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  delete document.documentElement.dataset.gridMs;
  document.querySelector(`#choose-lens input[value=${lens}]`).click();
  while (!document.documentElement.dataset.gridMs) await new Promise(done => setTimeout(done));
  await painted();
  return performance.now() - began;
}"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="openings of the page")
    repeat = parser.parse_args().repeat
    texts = [f" token{i:06d}" for i in range(N_TOKENS)]
    run = made(layerscope.probe(suite="berlin", top_k=5), N_LAYERS, N_POSITIONS, LENSES, TOP_K, texts)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        began = time.perf_counter()
        path = write_view([run], Path(folder) / "view.html")
        writing_s = time.perf_counter() - began
        browser = launched(playwright)
        measured = [_opened(browser, path) for _ in range(repeat)]
        print(f"80 layers x 16 positions x 5 lenses, Chromium {browser.version}, {repeat} openings")
        print(f"  size     {path.stat().st_size / 1e6:6.2f} MB  (at most {MOST_MB})")
        print(f"  writing  {writing_s:6.2f} s")
        _told("opening", [opening for opening, _, _ in measured], MOST_OPENING_MS)
        _told("first switch to a lens", [ms for _, first, _ in measured for ms in first], MOST_SWITCH_MS)
        _told("later switch", [ms for _, _, later in measured for ms in later], MOST_SWITCH_MS)
        browser.close()


def _opened(browser: Browser, path: Path) -> tuple[float, list[float], list[float]]:
    """Milliseconds of opening, of each lens for the first time, and of each once more."""
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    began = time.perf_counter()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("html[data-ready]", state="attached")
    opening = 1000 * (time.perf_counter() - began)
    page.wait_for_timeout(1000)  # charts that come into view are drawn meanwhile
    first = [float(page.evaluate(SWITCH, lens)) for lens in LENSES[1:]]
    later = [float(page.evaluate(SWITCH, lens)) for lens in LENSES]
    context.close()
    return opening, first, later


def _told(name: str, ms: Sequence[float], most: int) -> None:
    print(f"  {name:24} median {statistics.median(ms):6.0f} ms, worst {max(ms):6.0f} ms  (at most {most})")


if __name__ == "__main__":
    main()
