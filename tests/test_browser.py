"""The page in a real browser, opened from disk without a network: what it shows is what the rows say, at every turn.

Tolerances. Numbers are read as shown: six digits in a download, two or three beside a chart, and 16 bits of a
logarithm (3.4e-4) in what the page packs.
"""

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from playwright.sync_api import Browser, Error, sync_playwright

from browser_page import DESKTOP, PHONE, Opened, as_shown, launched
from layerscope.run import Run, Shown
from layerscope.view.page.view import write_view
from made_run import HOSTILE, made
from properties import slow

PUBLISHED = "run-20251004-1804"
LENSES = ("logit", "next_norm", "raw", "tuned", "prism")
Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests of the page; it starts before any page is built, so that without one nothing is."""
    with sync_playwright() as playwright:
        found = launched(playwright)
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """`open_page(path, **options)`; afterwards, no page of the test may have asked or complained."""
    opened: list[Opened] = []

    def open_(path: Path, **options: Any) -> Opened:
        opened.append(Opened.at(browser, path, **options))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


@pytest.fixture(scope="session")
def run(five_lens_run: Path) -> Run:
    return Run.read(five_lens_run)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="session")
def one(run: Run, folder: Path) -> Path:
    """The bundled model's run under five lenses."""
    return write_view([run], folder / "one.html")


@pytest.fixture(scope="session")
def hostile(run: Run, folder: Path) -> Path:
    """Tokens that try to be markup, break lines or turn text around."""
    return write_view([made(run, 6, len(HOSTILE), ("logit", "raw"), 5, HOSTILE)], folder / "hostile.html")


@pytest.fixture(scope="session")
def deep(run: Run, folder: Path) -> Path:
    """80 layers, 16 positions, five lenses."""
    texts = [f"token{i:06d}" for i in range(100_000)]
    return write_view([made(run, 80, 16, LENSES, 20, texts)], folder / "deep.html")


@pytest.fixture(scope="session")
def published(shared: Path, folder: Path) -> Path:
    """Three published models, the first with records of all positions, the second without."""
    runs = [Run.read(shared / "reference" / PUBLISHED, model) for model in ("Qwen3-8B", "Qwen3-14B", "gemma-2-9b")]
    return write_view(runs, folder / "published.html")


def rows_of(run: Run, lens: str, fact_index: int = 0, variant: str = "orig") -> pl.DataFrame:
    """Rows of one fact under one lens."""
    return run.rows.filter(prompt_id="pos", fact_index=fact_index, prompt_variant=variant, lens=lens)


def by_cell(rows: pl.DataFrame) -> dict[tuple[int, int], dict[str, Any]]:
    """Rows by layer and place of the position."""
    places = {position: place for place, position in enumerate(sorted(rows["position"].unique()))}
    return {(row["layer"], places[row["position"]]): row for row in rows.iter_rows(named=True)}


def assert_list(found: list[tuple[str, str]], tokens: list[str], probs: list[float]) -> None:
    """A list as it is shown against the numbers that it shows."""
    assert [name for name, _ in found] == [as_shown(token) for token in tokens]
    for (_, shown), p in zip(found, probs, strict=True):
        if shown.startswith("<"):
            assert p < 1e-18
        else:
            assert float(shown) == pytest.approx(p, rel=0.06, abs=0) if "e" in shown else abs(float(shown) - p) < 6e-4


# Without a browser


class Broken:
    """A Playwright that finds no browser."""

    chromium: "Broken"

    def __init__(self) -> None:
        self.chromium = self

    def launch(self, **_: object) -> None:
        raise Error("Executable doesn't exist")


def test_without_a_browser_the_tests_skip_but_fail_in_continuous_integration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser can be had: Executable doesn't exist"):
        launched(Broken())
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="no browser can be had"):
        launched(Broken())


# What is opened


def test_a_page_opens_from_disk_and_draws_all_its_charts_in_silence(one: Path, open_page: Open):
    opened = open_page(one)
    opened.draw_charts()
    assert opened.page.locator("figure.chart.drawn").count() >= 14
    assert opened.page.locator("h1:visible").inner_text()


def test_every_cell_shows_the_most_likely_token_of_its_row(run: Run, one: Path, open_page: Open):
    rows = by_cell(rows_of(run, "logit"))
    shown = open_page(one).tops()
    assert len(shown) * len(shown[0]) == len(rows)
    for (layer, place), row in rows.items():
        assert shown[layer][place] == as_shown(row["top1"])


@pytest.mark.parametrize("lens", ["raw", "tuned", "prism"])
def test_another_lens_shows_its_own_tokens(run: Run, one: Path, open_page: Open, lens: str):
    opened = open_page(one)
    opened.choose("choose-lens", lens)
    rows = by_cell(rows_of(run, lens))
    for layer, tokens in enumerate(opened.tops()):
        for place, token in enumerate(tokens):
            row = rows.get((layer, place))  # the tuned lens has no row at layer 0
            assert token == ("" if row is None else as_shown(row["top1"]))


def test_another_prompt_shows_its_own_tokens_and_words(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    opened.select("choose-fact", "pos/3")
    rows = by_cell(rows_of(run, "logit", 3))
    shown = opened.tops()
    assert {(layer, place): shown[layer][place] for layer, place in rows} == {
        key: as_shown(row["top1"]) for key, row in rows.items()
    }
    asked = next(
        p for p in run.record.suite.prompts if (p.prompt_id, p.fact_index, p.prompt_variant) == ("pos", 3, "orig")
    )
    assert asked.text in opened.page.inner_text("#prompt-text")


def test_every_fact_at_once_shows_the_last_position_of_each(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    opened.select("choose-fact", "every")
    rows = run.rows.filter("is_next", prompt_variant="orig", lens="logit", layer=run.record.model.n_layers)
    assert sorted(opened.tops()[-1]) == sorted(as_shown(token) for token in rows["top1"])


def test_colour_by_rank_is_brightest_where_the_answer_is_on_top(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    opened.colour_by("Answer rank")
    rows = by_cell(rows_of(run, "logit"))
    first = [key for key, row in rows.items() if row["answer_rank"] == 1]
    worst = max(rows, key=lambda key: rows[key]["answer_rank"])
    assert first and all(opened.colour(*key) == (253, 231, 37) for key in first)  # the last colour of viridis
    assert sum(opened.colour(*worst)) < sum(opened.colour(*first[0]))
    assert "Answer rank" in opened.page.inner_text("#legend")


def test_a_cell_under_the_pointer_lists_its_tokens_with_their_probabilities(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    rows = by_cell(rows_of(run, "logit"))
    for layer, place in ((run.record.model.n_layers, 0), (4, 2)):
        opened.cell(layer, place).hover()
        row = rows[layer, place]
        opened.page.locator("#cell-card", has_text=f"layer {layer} · position {row['position']}").wait_for()
        assert_list(opened.card(), row["top_tokens"][:10], row["top_probs"][:10])
        measures = opened.page.inner_text("#cell-card dl")
        assert f"{row['entropy_bits']:.3f} bits" in measures
        assert f"{row['answer_rank']:,}" in measures
        own = layer == run.record.model.n_layers
        assert ("the model's own" if own else "the lens' own, at the last position") in measures
        assert "reported" not in opened.page.inner_text("#cell-card")
    opened.page.mouse.move(5, 5)
    opened.page.locator("#cell-card").wait_for(state="hidden")


def test_a_search_finds_every_cell_that_lists_the_token(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    rows = by_cell(rows_of(run, "logit"))
    query = run.record.suite.prompts[0].answers[0].string.strip().lower()
    due = {key for key, row in rows.items() if any(token.strip().lower() == query for token in row["top_tokens"])}
    opened.search(query)
    assert f"in {len(due)} of {len(rows)} cells" in opened.page.inner_text("#search-result")
    assert due == {key for key in rows if "found" in (opened.cell(*key).get_attribute("class") or "").split()}
    opened.search("no token is called so")
    assert "No list of this page" in opened.page.inner_text("#search-result")


def test_a_click_pins_the_whole_list_and_another_takes_it_away(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    rows = by_cell(rows_of(run, "logit"))
    cell, pins = opened.cell(5, 1), opened.page.locator("#pin-list > li")
    cell.click()
    assert pins.count() == 1 and cell.get_attribute("aria-selected") == "true"
    row = rows[5, 1]
    assert_list(opened.card("#pin-list"), row["top_tokens"], row["top_probs"])
    cell.click()
    assert pins.count() == 0 and cell.get_attribute("aria-selected") is None
    for place in (0, 1, 2):
        opened.cell(2, place).click()
    assert pins.count() == 3
    pins.first.get_by_role("button").click()
    assert pins.count() == 2
    opened.choose("choose-lens", "raw")
    assert pins.count() == 2  # so that lenses can be held against each other
    opened.page.click("#unpin")
    assert pins.count() == 0 and opened.page.locator("#pins").is_hidden()


def test_a_difference_of_lenses_has_the_sign_of_the_numbers(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    opened.select("choose-against", "lens:raw")
    assert "logit minus lens raw" in opened.page.inner_text("#pane-a .pane-title")
    logit, raw = by_cell(rows_of(run, "logit")), by_cell(rows_of(run, "raw"))
    gaps = {key: row["entropy_bits"] - raw[key]["entropy_bits"] for key, row in logit.items()}
    most, least = max(gaps, key=lambda key: gaps[key]), min(gaps, key=lambda key: gaps[key])
    assert gaps[least] < -0.1 or gaps[most] > 0.1
    for key in (most, least):
        red, _, blue = opened.colour(*key)
        assert abs(gaps[key]) < 0.1 or (red > blue) == (gaps[key] > 0)
    other = {key for key, row in logit.items() if row["top1"] != raw[key]["top1"]}
    assert other == {key for key in logit if opened.cell(*key).locator(".second").count()}
    opened.cell(*most).hover()
    assert opened.page.locator("#cell-card > div").count() == 2
    opened.choose("choose-mode", "side by side")
    assert opened.tops("b")[3] == [as_shown(raw[3, place]["top1"]) for place in range(len(opened.tops("b")[3]))]


def test_a_notebooks_closed_frame_shows_the_page_and_saves_files(one: Path, folder: Path, open_page: Open):
    frame = Shown(one.read_text(encoding="utf-8"), 800)._repr_html_()
    path = folder / "notebook.html"
    path.write_text(f"<!doctype html><html data-ready lang=en><meta charset=utf-8><body>{frame}", encoding="utf-8")
    opened = open_page(path)
    inside = opened.page.frame_locator("iframe")
    inside.locator("html[data-ready]").wait_for(state="attached")
    assert inside.locator("#pane-a td").count() > 100
    name, content = opened.downloaded(inside.locator("#grid-csv"))
    assert name.endswith(".csv") and content.startswith(b"model,lens,")


# The keyboard


def test_the_keyboard_walks_the_grid_pins_searches_and_goes_back(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    press, n_layers = opened.page.keyboard.press, run.record.model.n_layers
    opened.page.focus("#choose-against")
    for _ in range(12):
        if opened.focused()["tag"] == "TD":
            break
        press("Tab")
    start = opened.focused()
    assert (start["tag"], start["layer"]) == ("TD", n_layers)
    press("ArrowDown")
    press("ArrowLeft")
    at = opened.focused()
    assert (at["layer"], at["column"]) == (n_layers - 1, start["column"] - 1) and at["seen"]
    row = by_cell(rows_of(run, "logit"))[at["layer"], at["column"]]
    assert_list(opened.card(), row["top_tokens"][:10], row["top_probs"][:10])
    press("Enter")
    assert opened.page.locator("#pin-list > li").count() == 1
    press("Control+Home")
    assert (opened.focused()["layer"], opened.focused()["column"]) == (n_layers, 0)
    press("End")
    press("ArrowRight")
    assert opened.focused()["column"] == start["column"]
    press("PageDown")
    assert opened.focused()["layer"] == n_layers - 10
    press("/")
    assert opened.focused()["id"] == "search" and opened.page.input_value("#search") == ""
    answer = run.record.suite.prompts[0].answers[0].string.strip()
    opened.page.keyboard.type(answer)
    press("Enter")
    best = opened.focused()
    assert best["tag"] == "TD" and as_shown(answer) in dict(opened.card()).keys() | {
        n.strip("␣") for n, _ in opened.card()
    }
    press("Escape")
    assert opened.page.input_value("#search") == "" and opened.page.locator("#pin-list > li").count() == 1
    press("Escape")
    assert opened.page.locator("#pin-list > li").count() == 0


def test_every_stop_of_the_keyboard_can_be_seen(one: Path, open_page: Open):
    opened = open_page(one)
    stops = []
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        stops.append(opened.focused())
    assert {"theme", "choose-fact", "choose-variant", "choose-against", "search", "grid-csv"} <= {
        stop["id"] for stop in stops
    }
    assert {"lens", "colour"} <= {stop["name"] for stop in stops}
    assert [stop for stop in stops if not stop["seen"]] == []


# Other windows, colours and readers


@pytest.mark.parametrize("name", ["one", "published", "hostile", "deep"])
def test_a_phone_shows_the_page_without_scrolling_sideways(name: str, open_page: Open, request: pytest.FixtureRequest):
    opened = open_page(request.getfixturevalue(name), viewport=PHONE, is_mobile=True, has_touch=True)
    assert opened.too_wide() == 0
    opened.cell(2, 0).tap()
    assert opened.page.locator("#pin-list > li").count() == 1
    assert opened.too_wide() == 0
    brand, theme = opened.page.locator(".brand").bounding_box(), opened.page.locator("#theme").bounding_box()
    assert brand and theme and theme["y"] < brand["y"] + brand["height"] and theme["y"] + theme["height"] > brand["y"]


def test_a_window_that_becomes_narrow_keeps_its_page(one: Path, open_page: Open):
    opened = open_page(one)
    opened.draw_charts()
    opened.page.set_viewport_size(PHONE)
    opened.draw_charts()
    assert opened.too_wide() == 0
    opened.page.set_viewport_size(DESKTOP)
    assert opened.too_wide() == 0


def test_the_button_turns_light_into_dark_and_back(one: Path, open_page: Open):
    opened = open_page(one)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened.page.evaluate(ground)
    opened.page.click("#theme")
    dark = opened.page.evaluate(ground)
    assert sum(map(int, re.findall(r"\d+", dark))) < 120 < 600 < sum(map(int, re.findall(r"\d+", light)))
    opened.draw_charts()
    opened.page.click("#theme")
    assert opened.page.evaluate(ground) == light


@pytest.mark.parametrize(
    ("name", "options"),
    [
        slow("desktop-light", {}),
        slow("desktop-dark", {"color_scheme": "dark"}),
        slow("phone-light", {"viewport": PHONE, "is_mobile": True, "has_touch": True}),
    ],
)
def test_axe_finds_nothing_serious_in_any_state(one: Path, open_page: Open, name: str, options: dict[str, Any]):
    opened = open_page(one, **options)
    opened.draw_charts()
    opened.page.evaluate("scrollTo(0, 0)")
    opened.picture(name, whole=True)
    assert opened.findings() == []
    cell = opened.cell(8, 1)
    cell.scroll_into_view_if_needed()
    cell.click()
    opened.search("a")
    opened.picture(f"{name}-grid")
    assert opened.findings() == []
    opened.page.keyboard.press("Escape")
    opened.select("choose-against", "lens:raw")
    opened.page.locator("figure.chart summary").first.click()
    opened.cell(8, 2).hover()
    opened.picture(f"{name}-difference")
    assert opened.findings() == []


@pytest.mark.parametrize("scheme", [slow("light"), "dark"])
def test_axe_finds_nothing_serious_in_runs_side_by_side(published: Path, open_page: Open, scheme: str):
    opened = open_page(published, color_scheme=scheme)
    opened.draw_charts()
    opened.page.evaluate("scrollTo(0, 0)")
    opened.picture(f"published-{scheme}", whole=True)
    assert opened.findings() == []


def test_every_chart_has_words_for_those_who_do_not_see_it(one: Path, open_page: Open):
    opened = open_page(one)
    opened.draw_charts()
    for figure in opened.page.locator("figure.chart").all():
        plot = figure.locator(".plot")
        assert plot.get_attribute("role") == "img" and len(plot.get_attribute("aria-label") or "") > 60
        assert plot.locator(":scope > :not([aria-hidden=true])").count() == 0
        figure.locator("summary").click()
        assert (plot.get_attribute("aria-label") or "").endswith(figure.locator("details p").inner_text())


# Files


def test_the_grids_table_holds_the_rows(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    found = opened.table(opened.page.locator("#grid-csv"))
    rows = {(row["layer"], row["position"]): row for row in rows_of(run, "logit").iter_rows(named=True)}
    assert len(found) == len(rows)
    for line in found:
        row = rows.pop((int(line["layer"]), int(line["position"])))
        assert (line["lens"], line["token"], line["prompt_id"]) == ("logit", row["token"], "pos")
        for name in ("entropy_bits", "kl_to_final_bits", "p_answer", "p_top1"):
            assert float(line[name]) == pytest.approx(row[name], rel=1e-6)
        assert int(line["answer_rank"]) == row["answer_rank"]
        k = len(row["top_tokens"])
        assert [line[f"top{i}"] for i in range(1, k + 1)] == row["top_tokens"]
        assert [float(line[f"prob{i}"]) for i in range(1, k + 1)] == pytest.approx(
            row["top_probs"], rel=4e-4, abs=1e-19
        )
    assert not rows


def test_a_charts_table_holds_the_rows(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    figure = opened.page.locator("figure.chart[data-name^='trajectories-entropy_bits']")
    found = opened.table(figure.locator("[data-save=csv]"))
    rows = {
        (row["lens"], row["layer"]): row["entropy_bits"]
        for lens in LENSES
        for row in rows_of(run, lens).filter("is_next").iter_rows(named=True)
    }
    assert {(line["lens"], int(line["layer"])): float(line["value"]) for line in found} == pytest.approx(rows)


@pytest.mark.parametrize("place", ["grid", "chart"])
def test_pictures_are_saved_whole(one: Path, open_page: Open, place: str):
    opened = open_page(one)
    figure = opened.page.locator("figure.chart").first
    buttons = {
        kind: opened.page.locator(f"#grid-{kind}") if place == "grid" else figure.locator(f"[data-save={kind}]")
        for kind in ("svg", "png")
    }
    name, svg = opened.downloaded(buttons["svg"])
    root = ET.fromstring(svg)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert name.endswith(".svg") and root.tag == "{http://www.w3.org/2000/svg}svg" and len(texts) > 10
    if place == "grid":
        assert [token for row in opened.tops() for token in row if len(token) < 6 and token not in texts] == []
    name, png = opened.downloaded(buttons["png"])
    width, height = struct.unpack(">II", png[16:24])
    assert name.endswith(".png") and png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82")
    assert width > 400 and height > 300 and len(png) > 10_000


def test_the_button_copies_the_command_that_repeats_the_run(one: Path, open_page: Open):
    opened = open_page(one)
    button = opened.page.locator("[data-copy]")
    button.click()
    opened.page.locator("[data-copy]", has_text="Copied").wait_for()
    opened.page.focus("#search")
    opened.page.keyboard.press("Control+V")
    copied = opened.page.input_value("#search")
    assert copied.startswith("layerscope probe") and copied == opened.page.inner_text(".command pre")


# Vocabularies that mean harm, and scripts of the world


def test_a_hostile_vocabulary_shows_as_text_and_runs_nothing(hostile: Path, open_page: Open):
    opened = open_page(hostile)
    shown = {token for row in opened.tops() for token in row}
    for token in (
        "</script><script>alert(1)</script>",
        "</style>",
        "<!--",
        "javascript:alert(1)",
        "\"'`",
        "&amp;",
        "<b>",
    ):
        assert token in shown
    assert {"U+2028", "U+2029", "U+202EU+2066", "U+0000", "U+000D⏎", "U+007F", "U+FEFF", "empty"} <= shown
    assert opened.page.locator("main :is(script, style, b:not(.about b), iframe, img)").count() == 0
    for column in range(len(HOSTILE)):
        opened.cell(3, column).hover()
        opened.cell(3, column).click()
    opened.search("<script>")
    opened.choose("choose-lens", "raw")
    table = opened.table(opened.page.locator("#grid-csv"))
    assert {line["top1"] for line in table} <= set(HOSTILE) and len(table) == 7 * len(HOSTILE)
    opened.draw_charts()
    opened.picture("hostile")


def test_scripts_of_the_world_are_whole_and_keep_their_direction(hostile: Path, open_page: Open):
    opened = open_page(hostile)
    shown = {token for row in opened.tops() for token in row}
    # Chinese, Arabic, two persons' emoji joined to one, and a mark without its letter on a dotted circle
    assert {"\u5317\u4eac", "\u0628\u0631\u0644\u064a\u0646", "\U0001f469\u200d\U0001f680", "\u25cc\u0301"} <= shown
    directions = opened.page.locator("#pane-a td .tok").evaluate_all(
        "all => [...new Set(all.map(node => node.tagName + getComputedStyle(node).unicodeBidi))]"
    )
    assert directions == ["BDIisolate"]


# Deep models, published files, several runs


def test_an_80_layer_page_switches_every_lens(deep: Path, open_page: Open):
    opened = open_page(deep)
    assert len(opened.tops()) == 81 and len(opened.tops()[0]) == 16
    before = opened.tops()
    for lens in LENSES[1:]:
        opened.choose("choose-lens", lens)
        assert opened.tops() != before
        before = opened.tops()
    opened.picture("deep")


def test_a_published_model_with_records_has_a_grid_of_all_positions(shared: Path, published: Path, open_page: Open):
    run = Run.read(shared / "reference" / PUBLISHED, "Qwen3-8B")
    opened = open_page(published)
    rows = by_cell(run.rows.filter(prompt_id="pos", prompt_variant="orig", lens="next_norm"))
    shown = opened.tops()
    assert len(shown) == run.record.model.n_layers + 1
    assert {key: shown[key[0]][key[1]] for key in rows} == {key: as_shown(row["top1"]) for key, row in rows.items()}
    assert "missing" not in (opened.page.text_content("#grid-note") or "")


def test_a_published_model_without_records_says_which_file_is_missing(published: Path, open_page: Open):
    opened = open_page(published)
    opened.page.select_option("#choose-run", "1")
    opened.page.locator("#grid-note", has_text="output-Qwen3-14B-records.csv").wait_for()
    assert "Qwen/Qwen3-14B" in opened.page.inner_text(".verdict:visible")


def test_runs_of_unequal_depth_stand_side_by_side(published: Path, open_page: Open):
    opened = open_page(published)
    opened.select("choose-against", "run:2")
    assert opened.page.locator("#pane-b").is_visible()
    assert "36 and 42 layers" in opened.page.inner_text("#grid-note")
    opened.cell(3, 0).hover()
    assert opened.page.locator("#pane-b td.echo").count() == 1


def test_the_table_of_models_sorts_and_marks_what_does_not_compare(published: Path, open_page: Open):
    opened = open_page(published)
    table = opened.page.locator("table.sortable")
    layers = lambda: [int(text) for text in table.locator("tbody td:nth-child(2)").all_inner_texts()]  # noqa: E731
    for state in ("ascending", "descending"):
        table.get_by_role("button", name="layers").click()
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == state
        assert layers() == sorted(layers(), reverse=state == "descending")
    assert sorted(layers()) == [36, 40, 42]
    marked = table.locator("td.not-comparable").all()
    assert marked
    for cell in marked:
        assert len(cell.get_attribute("title") or "") > 10
        assert re.search(r"[*–]", cell.inner_text())
