"""The page in a real browser, opened from disk without a network: what it shows is what the rows say, at every turn.

Tolerances. Numbers are read as shown: six digits in a download, two or three beside a chart, and 16 bits of a
logarithm (3.4e-4) in what the page packs.
"""

import re
import struct
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from playwright.sync_api import Browser, Error, expect
from pypdf import PdfReader

import layerscope
from browser_page import DESKTOP, HANGS_MS, PHONE, Opened, as_shown, launched
from layerscope.errors import RunError
from layerscope.run import Run, Shown
from layerscope.view.page.bundle import write_bundle
from layerscope.view.page.view import write_view
from layerscope.view.page.words import verdict_words
from made_run import HOSTILE, made
from properties import slow

PUBLISHED = "run-20251004-1804"
LENSES = ("logit", "next_norm", "raw", "tuned", "prism")
Open = Callable[..., Opened]
DEEP_ONSET = 20


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
    """80 layers, 16 positions, five lenses; under the first the answer is on top from `DEEP_ONSET` on."""
    texts = [f"token{i:06d}" for i in range(100_000)]
    found = made(run, 80, 16, LENSES, 20, texts)
    answer = pl.col("is_next") & (pl.col("lens") == "logit")
    rank = pl.when(answer).then(pl.when(pl.col("layer") >= DEEP_ONSET).then(1).otherwise(50)).otherwise("answer_rank")
    rows = found.rows.with_columns(rank.cast(found.rows.schema["answer_rank"]).alias("answer_rank"))
    return write_view([Run(rows, found.record)], folder / "deep.html")


@pytest.fixture(scope="session")
def everywhere(folder: Path) -> tuple[Run, Path]:
    """A run whose three prompts were all read at every position, and its page."""
    found = layerscope.probe(suite="berlin", positions="all", lenses=("logit", "raw"), top_k=20)
    return found, write_view([found], folder / "everywhere.html")


@pytest.fixture(scope="session")
def single(run: Run, folder: Path) -> Path:
    """The same run, of which the last positions alone were read."""
    return write_view([Run(run.rows.filter("is_next"), run.record)], folder / "single.html")


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


@pytest.mark.parametrize("lens", [slow("raw"), "tuned", slow("prism")])
def test_another_lens_shows_its_own_tokens(run: Run, one: Path, open_page: Open, lens: str):
    opened = open_page(one)
    opened.choose("choose-lens", lens)
    rows = by_cell(rows_of(run, lens))
    for layer, tokens in enumerate(opened.tops()):
        for place, token in enumerate(tokens):
            row = rows.get((layer, place))  # the tuned lens has no row at layer 0
            assert token == ("" if row is None else as_shown(row["top1"]))


@pytest.mark.slow
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


@pytest.mark.slow
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
    told = opened.page.inner_text("#search-result")
    k = len(next(iter(rows.values()))["top_tokens"])
    assert told.startswith(f"among the {k} listed tokens of each cell: in {len(due)} of {len(rows)} cells · ")
    hits = opened.within(".hit")
    assert due == {(layer, place) for layer, place in rows if hits[layer][place]}
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
    pins.first.locator(".close").click()
    assert pins.count() == 2
    opened.choose("choose-lens", "raw")
    assert pins.count() == 2  # so that lenses can be held against each other
    opened.page.click("#unpin")
    assert pins.count() == 0 and opened.page.locator("#pins").is_hidden()


@pytest.mark.slow
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
    seconds = opened.within(".second")
    assert other == {(layer, place) for layer, place in logit if seconds[layer][place]}
    opened.cell(*most).hover()
    assert opened.page.locator("#cell-card > div").count() == 2
    opened.choose("choose-mode", "side by side")
    assert opened.tops("b")[3] == [as_shown(raw[3, place]["top1"]) for place in range(len(opened.tops("b")[3]))]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["one", slow("published"), slow("hostile"), slow("deep")])
def test_a_phone_shows_the_page_without_scrolling_sideways(name: str, open_page: Open, request: pytest.FixtureRequest):
    opened = open_page(request.getfixturevalue(name), viewport=PHONE, is_mobile=True, has_touch=True)
    assert opened.too_wide() == 0
    opened.cell(2, 0).tap()
    assert opened.page.locator("#pin-list > li").count() == 1
    assert opened.too_wide() == 0
    brand, theme = opened.page.locator(".brand").bounding_box(), opened.page.locator("#theme").bounding_box()
    assert brand and theme and theme["y"] < brand["y"] + brand["height"] and theme["y"] + theme["height"] > brand["y"]


@pytest.mark.slow
def test_a_window_that_becomes_narrow_keeps_its_page(one: Path, open_page: Open):
    opened = open_page(one)
    opened.draw_charts()
    opened.page.set_viewport_size(PHONE)
    opened.draw_charts()
    assert opened.too_wide() == 0
    opened.page.set_viewport_size(DESKTOP)
    assert opened.too_wide() == 0


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_runs_side_by_side(published: Path, open_page: Open, scheme: str):
    opened = open_page(published, color_scheme=scheme)
    opened.draw_charts()
    opened.page.evaluate("scrollTo(0, 0)")
    opened.picture(f"published-{scheme}", whole=True)
    assert opened.findings() == []


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("place", ["grid", slow("chart")])
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_80_layer_page_switches_every_lens(deep: Path, open_page: Open):
    opened = open_page(deep)
    assert len(opened.tops()) == 81 and len(opened.tops()[0]) == 16
    before = opened.tops()
    for lens in LENSES[1:]:
        opened.choose("choose-lens", lens)
        assert opened.tops() != before
        before = opened.tops()
    opened.picture("deep")


@pytest.mark.slow
def test_a_published_model_with_records_has_a_grid_of_all_positions(shared: Path, published: Path, open_page: Open):
    run = Run.read(shared / "reference" / PUBLISHED, "Qwen3-8B")
    opened = open_page(published)
    rows = by_cell(run.rows.filter(prompt_id="pos", prompt_variant="orig", lens="next_norm"))
    shown = opened.tops()
    assert len(shown) == run.record.model.n_layers + 1
    assert {key: shown[key[0]][key[1]] for key in rows} == {key: as_shown(row["top1"]) for key, row in rows.items()}
    assert "missing" not in (opened.page.text_content("#grid-note") or "")


@pytest.mark.slow
def test_a_published_model_without_records_says_which_file_is_missing(published: Path, open_page: Open):
    opened = open_page(published)
    opened.page.select_option("#choose-run", "1")
    opened.page.locator("#grid-note", has_text="output-Qwen3-14B-records.csv").wait_for()
    assert "Qwen/Qwen3-14B" in opened.page.inner_text(".intro:visible")


@pytest.mark.slow
def test_runs_of_unequal_depth_stand_side_by_side(published: Path, open_page: Open):
    opened = open_page(published)
    opened.select("choose-against", "run:2")
    assert opened.page.locator("#pane-b").is_visible()
    assert "36 and 42 layers" in opened.page.inner_text("#grid-note")
    opened.cell(3, 0).hover()
    assert opened.page.locator("#pane-b td.echo").count() == 1


@pytest.mark.slow
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


# What is seen first, and what stays in view


def test_the_grid_is_on_the_first_screen_under_two_lines_in_plain_words(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    page = opened.page
    head, chips = page.locator(".intro h1"), page.locator(".intro .badge")
    line = head.evaluate("node => parseFloat(getComputedStyle(node).lineHeight)")
    assert round((head.bounding_box() or {})["height"] / line) <= 2
    assert not re.search(r"L_|_rank|_stable", head.inner_text())
    tops = {round((chip.bounding_box() or {})["y"]) for chip in chips.all()}
    assert len(tops) == 1 and "Identity check passed" in chips.all_inner_texts()
    for layer in range(5, run.record.model.n_layers + 1):
        box = opened.cell(layer, 0).bounding_box() or {}
        assert box["y"] > 0 and box["y"] + box["height"] < DESKTOP["height"]
    grid, verdict = (page.locator(f"#{name}").bounding_box() or {} for name in ("grid", "verdict"))
    assert grid["y"] < verdict["y"]


@pytest.mark.slow
def test_of_several_runs_the_overview_comes_first(published: Path, open_page: Open):
    page = open_page(published).page
    order = [page.locator(f"#{name}").bounding_box() or {} for name in ("models", "grid", "verdict", "provenance")]
    assert [box["y"] for box in order] == sorted(box["y"] for box in order)
    assert page.locator("nav a").first.inner_text() == "Across models"


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"viewport": PHONE}, slow({"viewport": {"width": 800, "height": 700}})])
def test_the_last_position_stays_in_view_and_a_gap_is_marked(one: Path, open_page: Open, options: dict[str, Any]):
    page = open_page(one, **options).page
    scroll, last = page.locator("#pane-a .scroll"), page.locator("#pane-a tbody tr:first-child td:last-child")
    for left, marked in ((0, True), (10_000, False)):
        scroll.evaluate("(node, left) => { node.scrollLeft = left }", left)
        grid = expect(page.locator("#pane-a .lens-grid"))
        (grid.to_have_class if marked else grid.not_to_have_class)(re.compile(r"\bgap\b"))
        frame, cell = scroll.bounding_box() or {}, last.bounding_box() or {}
        assert frame["x"] <= cell["x"] and cell["x"] + cell["width"] <= frame["x"] + frame["width"] + 1


@pytest.mark.slow
def test_one_position_shows_its_most_likely_tokens_by_layer(run: Run, single: Path, open_page: Open):
    opened = open_page(single)
    rows = rows_of(run, "logit").filter("is_next").sort("layer")
    assert opened.tops() == [[as_shown(token) for token in row] for row in rows["top_tokens"].list.head(5)]
    heads = opened.page.locator("#pane-a thead .input").all_inner_texts()
    assert heads == ["most likely", "2nd", "3rd", "4th", "5th"]
    assert "Token probability" in opened.page.inner_text("#legend")
    p = {(row["layer"], place): row["top_probs"][place] for row in rows.iter_rows(named=True) for place in range(5)}
    ends = [max(p, key=lambda key: p[key]), min(p, key=lambda key: p[key])]
    assert [sum(opened.colour(*key)) for key in ends] == sorted(
        (sum(opened.colour(*key)) for key in ends), reverse=True
    )
    assert len(opened.table(opened.page.locator("#grid-csv"))) == rows.height
    opened.select("choose-against", "lens:raw")
    assert "side by side" in opened.page.inner_text("#grid-note")
    assert len(opened.tops("b")[0]) == 5


@pytest.mark.slow
def test_a_tall_model_opens_at_the_layer_of_its_answer_and_is_scrubbed(deep: Path, open_page: Open):
    opened = open_page(deep)
    page, scroll = opened.page, opened.page.locator("#pane-a .scroll")
    assert page.locator("#pane-a tbody th", has_text=re.compile("[◆★]")).count() == 1
    mark, frame = opened.cell(DEEP_ONSET, 0).bounding_box() or {}, scroll.bounding_box() or {}
    assert frame["y"] <= mark["y"] and mark["y"] + mark["height"] <= frame["y"] + frame["height"]
    scrubber = page.get_by_role("slider", name="Layers in view")
    scrubber.click(position={"x": 5, "y": (scrubber.bounding_box() or {})["height"] - 2})
    expect(scrubber).to_have_attribute("aria-valuetext", re.compile("^layers 0 to "))
    assert scroll.evaluate("node => node.scrollTop + node.clientHeight >= node.scrollHeight - 2")
    scrubber.press("Home")
    expect(scrubber).to_have_attribute("aria-valuenow", "80")
    assert open_page(deep, viewport={"width": 1360, "height": 4000}).cell(0, 0).is_visible()


# Tokens that are followed, prompts against each other


@pytest.mark.slow
def test_followed_tokens_have_their_ranks_in_the_cells_and_a_line_by_layer(run: Run, one: Path, open_page: Open):
    opened = open_page(one)
    page, rows = opened.page, by_cell(rows_of(run, "logit"))
    answer = run.record.suite.prompts[0].answers[0].string
    page.fill("#track", f"Moscow, {answer}, no such token")
    page.press("#track", "Enter")
    chips = page.locator("#tracked > li")
    assert [chip.inner_text().strip("×\n ") for chip in chips.all()] == ["Moscow", answer, "no␣such␣token"]
    assert "nowhere" in (chips.nth(2).get_attribute("class") or "")
    k = len(next(iter(rows.values()))["top_tokens"])
    shown = opened.within(".followed")
    for (layer, place), row in rows.items():
        listed = [token.strip() for token in row["top_tokens"]]
        due = [str(listed.index("Moscow") + 1)] if "Moscow" in listed else []
        due += [str(row["answer_rank"])] if row["answer_rank"] <= max(k, 20) else []
        assert shown[layer][place] == due
    last = [rows[layer, max(place for _, place in rows)] for layer in range(run.record.model.n_layers + 1)]
    titles = page.locator("#ranks-plot g.f1 title").all_text_contents()
    assert titles == [f"{answer}: rank {row['answer_rank']:,} at layer {row['layer']}" for row in last]
    assert f"among the {k} listed tokens" in page.inner_text("#ranks-note")
    chips.first.locator(".close").click()
    assert chips.count() == 2


@pytest.mark.slow
def test_two_prompts_of_a_run_are_held_against_each_other_from_their_ends(
    everywhere: tuple[Run, Path], open_page: Open
):
    run, path = everywhere
    opened = open_page(path)
    others = [prompt.key for prompt in run.record.suite.prompts]
    value = opened.page.locator("#choose-against optgroup[label=Prompts] option").first.get_attribute("value") or ""
    other = others[int(value.split(":")[1])]
    opened.select("choose-against", value)
    mine, theirs = by_cell(rows_of(run, "logit")), by_cell(other.rows_of(run.rows).filter(lens="logit"))
    n = min(max(place for _, place in each) + 1 for each in (mine, theirs))

    def from_the_end(rows: dict[tuple[int, int], dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
        width = max(place for _, place in rows) + 1
        return {(layer, place - width + n): row for (layer, place), row in rows.items() if place >= width - n}

    own, against = from_the_end(mine), from_the_end(theirs)
    assert len(opened.tops()[0]) == n
    differ = {key for key, row in own.items() if row["top1"] != against[key]["top1"]}
    seconds = opened.within(".second")
    assert differ == {(layer, place) for layer, place in own if seconds[layer][place]}
    gaps = {key: row["entropy_bits"] - against[key]["entropy_bits"] for key, row in own.items()}
    most = max(gaps, key=lambda key: abs(gaps[key]))
    red, _, blue = opened.colour(*most)
    assert (red > blue) == (gaps[most] > 0)
    assert " minus " in opened.page.inner_text("#pane-a .pane-title")
    widths = [max(place for _, place in each) + 1 for each in (mine, theirs)]
    left = max(widths) - min(widths)
    assert left and f"the first {'position' if left == 1 else f'{left} positions'}" in opened.page.inner_text(
        "#grid-note"
    )


@pytest.mark.slow
def test_the_rank_of_rows_is_a_followed_tokens_only_where_they_are_judged_by_it(
    run: Run, folder: Path, open_page: Open
):
    """Of several accepted answers the best counts, so its rank is no single token's; case tells tokens apart."""
    prompts = run.record.suite.prompts
    other = prompts[0].answers[0].model_copy(update={"string": "Paris"})
    both = prompts[0].model_copy(update={"answers": (*prompts[0].answers, other)})
    suite = run.record.suite.model_copy(update={"prompts": (both, *prompts[1:])})
    path = write_view([Run(run.rows, run.record.model_copy(update={"suite": suite}))], folder / "several.html")
    opened = open_page(path)
    answer = prompts[0].answers[0].string
    opened.page.fill("#track", f"{answer}, {answer.upper()}")
    opened.page.press("#track", "Enter")
    rows, shown = by_cell(rows_of(run, "logit")), opened.within(".followed")
    for (layer, place), row in rows.items():
        listed = [token.strip() for token in row["top_tokens"]]
        assert shown[layer][place] == ([str(listed.index(answer) + 1)] if answer in listed else [])
    assert "nowhere" in (opened.page.locator("#tracked > li").nth(1).get_attribute("class") or "")


@pytest.mark.slow
def test_where_no_rank_stands_none_is_shown(run: Run, folder: Path, open_page: Open):
    identity = run.record.identity.model_dump() | {"ok": False, "kl_bits": 3.0, "note": "Made."}
    record = type(run.record).model_validate(run.record.model_dump() | {"identity": identity})
    assert not record.ranks_stand
    opened = open_page(write_view([Run(run.rows, record)], folder / "failed.html"), fragment="colour=foo&find=Berlin")
    opened.page.fill("#track", "Berlin")
    opened.page.press("#track", "Enter")
    assert opened.page.locator(".followed").count() == 0 and opened.page.locator("#ranks").is_hidden()
    assert "rank" not in opened.page.inner_text("#search-result")
    assert set(opened.page.locator(".hit").all_inner_texts()) == {"✓"}


@pytest.mark.slow
def test_a_run_that_does_not_ask_the_same_is_not_held_against(run: Run, folder: Path, open_page: Open):
    first = run.record.suite.prompts[0]
    alone = Run(first.key.rows_of(run.rows), run.record.model_copy(update={"created_utc": "2026-01-02T03:04:05Z"}))
    opened = open_page(write_view([run, alone], folder / "unlike.html"), fragment="fact=pos/3&against=run:1")
    assert "does not ask this" in opened.page.inner_text("#grid-note")
    assert opened.page.locator("#pane-b td").count() == 0


# An address that can be sent


def test_the_address_holds_what_is_shown_and_back_goes_back(everywhere: tuple[Run, Path], open_page: Open):
    opened = open_page(everywhere[1])
    page = opened.page
    assert "#" not in page.url
    opened.choose("choose-lens", "raw")
    opened.colour_by("Answer rank")
    opened.select("choose-variant", "no_filler")
    opened.cell(5, 1).click()
    opened.search("Paris")
    page.fill("#track", "Rome, a+b=&c")
    page.press("#track", "Enter")
    address, shown = page.url, opened.tops()
    assert "lens=raw" in address and "cell=5%401" in address and address.count("track=") == 2
    again = open_page(everywhere[1], fragment=address.partition("#")[2])
    assert again.tops() == shown and again.page.url == address
    assert again.page.locator("#choose-lens input:checked").get_attribute("value") == "raw"
    assert again.page.locator("#choose-colour input:checked").get_attribute("value") == "rank"
    assert again.page.input_value("#choose-variant") == "no_filler" and again.page.input_value("#search") == "Paris"
    assert again.page.locator("#pin-list > li").count() == 1 and again.page.locator("#tracked > li").count() == 2
    opened.switched(page.go_back)
    assert page.input_value("#choose-variant") == "orig"
    assert page.locator("#choose-colour input:checked").get_attribute("value") == "rank"
    opened.switched(page.go_back)
    assert page.locator("#choose-colour input:checked").get_attribute("value") == "entropy"
    opened.switched(page.go_back)
    assert page.locator("#choose-lens input:checked").get_attribute("value") == "logit"
    assert "#" not in page.url.removesuffix("#")


@pytest.mark.slow
def test_pins_of_several_lenses_and_prompts_come_back(everywhere: tuple[Run, Path], open_page: Open):
    opened = open_page(everywhere[1])
    opened.cell(5, 1).click()
    opened.choose("choose-lens", "raw")
    opened.cell(6, 2).click()
    opened.select("choose-variant", "no_filler")
    opened.cell(7, 0).click()
    cards = opened.page.locator("#pin-list > li .from").all_inner_texts()
    assert len(set(cards)) == 3
    again = open_page(everywhere[1], fragment=opened.page.url.partition("#")[2])
    assert again.page.locator("#pin-list > li .from").all_inner_texts() == cards
    opened.switched(opened.page.go_back)
    expect(opened.page.locator("#pin-list > li")).to_have_count(2, timeout=HANGS_MS)  # as that address had them


@pytest.mark.slow
@pytest.mark.parametrize(
    "fragment",
    ["fact=none&lens=nope&colour=x&cell=99@99&cell=a@b&against=run:7&run=no", slow("verdict"), slow("%")],
)
def test_an_address_that_names_what_is_not_there_shows_what_is(one: Path, open_page: Open, fragment: str):
    opened = open_page(one, fragment=fragment)
    assert opened.tops() == open_page(one).tops()


@pytest.mark.slow
def test_links_within_the_page_leave_the_address_to_what_is_shown(one: Path, open_page: Open):
    opened = open_page(one)
    opened.choose("choose-lens", "raw")
    opened.page.click("nav a >> text=Verdict")
    expect(opened.page.locator("#verdict")).to_be_focused()
    assert opened.page.url.endswith("#lens=raw")


# Words on heads, status, print


@pytest.mark.slow
def test_every_head_of_a_column_says_what_stands_under_it(one: Path, published: Path, open_page: Open):
    for path in (one, published):
        heads = open_page(path).page.locator("th[scope=col]:visible:not([aria-hidden])")
        told = heads.evaluate_all("all => all.map(head => [head.textContent, head.title])")
        assert len(told) > 15 and [name for name, title in told if len(title) < 10] == []


@pytest.mark.slow
def test_what_probabilities_are_is_told_once_by_layer(run: Run, one: Path, published: Path, open_page: Open):
    opened = open_page(one)
    signs = {"model": "●", "near": "◐", "decoded": "○", "withheld": "×"}
    due = [signs[layer.status] for layer in run.diagnostics.quotability.by_lens["logit"]]
    shown = opened.page.locator("#pane-a tbody .status").all_text_contents()
    assert shown == due[::-1]
    legend = opened.page.inner_text("#status-legend")
    assert all((sign in legend) == (sign in due) for sign in signs.values())
    other = open_page(published)  # whose guidance forbids to quote any
    assert "not to be reported" in other.page.inner_text("#status-legend")
    other.cell(5, 0).hover()
    other.page.locator("#cell-card").wait_for()
    assert "report" not in other.page.inner_text("#cell-card")


@pytest.mark.slow
def test_a_printed_page_has_every_chart_and_all_of_the_words(run: Run, one: Path, open_page: Open, tmp_path: Path):
    opened = open_page(one)
    page = opened.page
    page.evaluate("() => { window.print = () => { document.documentElement.dataset.printed = 'true' } }")
    page.keyboard.press("Control+p")
    page.wait_for_selector("html[data-printed]")
    charts = page.locator("figure.chart:visible")
    assert charts.count() > 8 and page.locator("figure.chart.drawn:visible").count() == charts.count()
    page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True, print_background=True)
    pages = PdfReader(tmp_path / "page.pdf").pages
    read = unicodedata.normalize("NFKC", " ".join(page.extract_text() for page in pages))  # fonts have ligatures
    text = re.sub(r"\s*→\s*", "→", " ".join(read.split()))
    assert 4 <= len(pages) <= 40
    assert " ".join(page.inner_text(".intro h1").split()) in text
    for title in charts.locator(".plot").evaluate_all(
        "all => all.map(plot => plot.getAttribute('aria-label').split('.')[0])"
    ):
        assert title in text, title
    words = [one.text for one in verdict_words(run).lines]
    assert words and all(" ".join(line.split()) in text for line in words)
    assert "Find" not in text and "CSV" not in text
    page.emulate_media(media="print")
    assert opened.too_wide() <= 0


@pytest.mark.slow
def test_a_dark_page_prints_light_charts_and_stays_dark(one: Path, open_page: Open):
    page = open_page(one, color_scheme="dark").page
    page.evaluate(
        """() => { window.print = () => {
          document.documentElement.dataset.ink = getComputedStyle(document.querySelector('figure.chart text')).fill;
        } }"""
    )
    page.click("#print")
    page.wait_for_selector("html[data-ink]")
    ink = page.locator("html").get_attribute("data-ink") or ""
    assert sum(map(int, re.findall(r"\d+", ink)[:3])) < 3 * 128
    expect(page.locator("figure.chart text").first).not_to_have_css("fill", ink, timeout=HANGS_MS)


@pytest.mark.slow
def test_charts_out_of_sight_are_drawn_when_nothing_else_is_to_be_done(one: Path, open_page: Open):
    page = open_page(one).page
    charts = page.locator("figure.chart:visible")
    expect(page.locator("figure.chart.drawn:visible")).to_have_count(charts.count(), timeout=HANGS_MS)


# A folder of pages


@pytest.mark.slow
def test_a_bundle_leads_to_a_page_for_each_run(run: Run, shared: Path, open_page: Open, tmp_path: Path):
    theirs = [Run.read(shared / "reference" / PUBLISHED, model) for model in ("Qwen3-14B", "gemma-2-9b")]
    runs = [run, Run(run.rows, run.record.model_copy(update={"created_utc": "2026-01-02T03:04:05Z"})), *theirs]
    index = write_bundle(runs, tmp_path / "pages")
    assert write_bundle(runs, tmp_path / "pages") == index  # again: pages of ours are replaced
    opened = open_page(index)
    links = opened.page.locator("tbody th a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert len(set(links)) == 4 and all((tmp_path / "pages" / link).is_file() for link in links)
    assert {path.name for path in index.parent.iterdir()} == {*links, "index.html", "side-by-side.html"}
    row = opened.page.locator("tbody tr").first.inner_text()
    answered = run.diagnostics.answered
    assert f"{answered.n_answered} of {answered.n}" in row and "passed" in row
    opened.page.click("thead button >> text=layers")
    depths = [int(cell) for cell in opened.page.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert depths == sorted(depths) and len(set(depths)) == 3
    assert opened.findings() == []
    for link in links:
        assert open_page(index.parent / link).page.locator(".intro:visible").count() == 1


def test_a_bundle_writes_over_nothing_that_is_not_its_own(run: Run, tmp_path: Path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(RunError, match="was not written as a view"):
        write_bundle([run], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "mine"
