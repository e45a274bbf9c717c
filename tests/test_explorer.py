"""The explorer in a real browser: what it shows of a text is what a look of the same text says."""

import csv
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

import layerscope as package
from browser_page import DESKTOP, HANGS_MS, PHONE, PICTURES, Opened, as_shown
from layerscope.bundled import BUNDLED
from layerscope.model.causal_lm import CausalLM
from layerscope.run import Run
from layerscope.serving.app import make_app
from layerscope.serving.options import ServeOptions
from properties import slow
from served import TEXT, serving
from tiny_models import TINY


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second model, of another depth."""
    return TINY["gemma2"].build(tmp_path_factory.mktemp("served") / "other")


@pytest.fixture(scope="module")
def address(other: Path) -> Iterator[str]:
    """Of the page of a server with the bundled model and another one."""
    with serving(make_app([BUNDLED, other], ServeOptions(device="cpu"))) as running:
        yield f"http://127.0.0.1:{running.port}/?token={running.explorer.token}"


class Explored(Opened):
    """The explorer, opened in a context of its own; nothing else may be asked than its server."""

    @classmethod
    def of(cls, browser: Browser, address: str, **options: object) -> "Explored":
        """Open it, and wait for its first look."""
        context = browser.new_context(
            **{"viewport": DESKTOP, "color_scheme": "light", "reduced_motion": "reduce"} | options
        )  # type: ignore[arg-type]
        context.set_default_timeout(HANGS_MS)
        here = address.split("/?")[0]
        found = cls(context.new_page(), context, Path(), [])
        found.page.on(
            "request", lambda one: None if one.url.startswith((here, "data:", "blob:")) else found.asked.append(one.url)
        )
        found.page.on("console", lambda one: found.said.append(one.text) if one.type in ("warning", "error") else None)
        found.page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
        found.page.goto(address)
        found.page.wait_for_selector("html[data-ready]")
        return found

    def after(self, action: object) -> None:
        """Do something that asks for another look, and wait until it is shown."""
        looks = int(self.page.evaluate("document.documentElement.dataset.looks"))
        action()  # type: ignore[operator]
        self.page.wait_for_selector(f"html[data-looks='{looks + 1}']")

    def type(self, field: str, text: str) -> None:
        """Write into a field, and wait for what comes of it."""
        self.after(lambda: self.page.fill(f"#{field}", text))


@pytest.fixture
def opened(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Explored]:
    found = Explored.of(browser, address, **getattr(request, "param", {}))
    yield found
    found.close()


def shown(look: package.Look, lens: str = "logit") -> list[list[str]]:
    """The grid's tokens, by layer and position."""
    grid = look.grid.filter(lens=lens).sort("layer", "position")
    return [
        [as_shown(token) for token in row]
        for row in grid.group_by("layer", maintain_order=True).agg("top_token")["top_token"]
    ]


def looked(text: str, **options: object) -> package.Look:
    return package.look(text=text, positions="all", top=20, device="cpu", **options)  # type: ignore[arg-type]


def next_words(page: Page) -> list[tuple[str, str]]:
    return [tuple(word.split(" ")) for word in page.locator("#said .word").all_inner_texts()]  # type: ignore[misc]


def test_the_address_has_lost_its_token_and_the_first_look_is_there(opened: Explored):
    assert "token" not in opened.page.url
    look = looked(TEXT)
    assert opened.tops() == shown(look)
    assert look.output is not None
    due = [(as_shown(token), p) for token, p in zip(look.output.top_tokens, look.output.top_probs, strict=True)][:5]
    told = next_words(opened.page)
    assert [word for word, _ in told] == [word for word, _ in due]
    assert all(abs(float(p) - due_p) < 6e-4 for (_, p), (_, due_p) in zip(told, due, strict=True))
    assert "Identity check passed" in opened.page.inner_text("#marks")


def test_the_grid_follows_what_is_typed(opened: Explored):
    page = opened.page
    opened.type("text", "The capital of France is called")
    assert opened.tops() == shown(looked("The capital of France is called"))
    opened.after(lambda: page.locator("#ask-lenses label", has_text="raw").locator("input").check())
    opened.choose("choose-lens", "raw")
    assert opened.tops() == shown(looked("The capital of France is called", lenses="raw"), "raw")
    opened.after(lambda: page.select_option("#positions", "last"))
    assert len(opened.tops()[0]) == 5  # one position is shown as its list
    opened.type("layers", "0,4,8-")
    assert {layer for layer, row in enumerate(opened.tops()) if row[0]} == {0, 4, *range(8, 13)}


@pytest.mark.slow
def test_followed_words_are_measured_at_every_layer(opened: Explored):
    page = opened.page
    opened.type("answer", "Berlin")
    page.fill("#track", "Rome, Moscow")
    opened.after(lambda: page.press("#track", "Enter"))
    look = looked(TEXT, answer="Berlin", track="Rome,Moscow")
    for place, word in enumerate(("Rome", "Moscow")):
        titles = page.locator(f"#ranks-plot g.f{place} title").all_text_contents()
        ranks = look.rank(word)
        assert titles == [
            f"{word}: rank {rank:,} at layer {layer}" for layer, rank in ranks.select("layer", "rank").iter_rows()
        ]
    assert "interrupted" not in page.inner_text("#ranks-note")
    opened.colour_by("Answer rank")
    opened.type("text", "The capital of France is called")
    assert page.locator("#choose-colour input:checked").get_attribute("value") == "rank"
    assert page.locator("#tracked > li").count() == 2


@pytest.mark.slow
def test_a_kept_text_is_compared_with_what_follows(opened: Explored):
    page = opened.page
    page.click("#compare")
    opened.type("text", "The capital of France is called")
    assert "minus" in page.inner_text("#pane-a .pane-title")
    here, there = looked("The capital of France is called"), looked(TEXT)
    differ = shown(here), shown(there)
    due = [[[] if a == b else [b] for a, b in zip(*rows, strict=True)] for rows in zip(*differ, strict=True)]
    assert opened.within(".second") == due
    js = package.difference(here, there).layers[-1].js_bits
    badge = page.locator("#marks >> text=Outputs differ")
    badge.wait_for()
    assert abs(float(badge.inner_text().split()[3]) - js) < 6e-4
    assert page.locator("#kept-list li").count() == 1
    page.click("#kept-list >> text=Compared")
    opened.type("text", "The capital of Italy is called")
    assert page.locator("#kept-list li").count() == 1 and page.locator("#choose-fact option").count() >= 2
    opened.after(lambda: page.click("#kept-list >> text=Edit"))
    assert page.input_value("#text") == TEXT
    opened.after(lambda: page.click("#kept-list >> text=Forget"))
    assert page.locator("#kept").is_hidden()


@pytest.mark.slow
def test_a_text_is_compared_with_itself_in_another_model(opened: Explored):
    page = opened.page
    page.click("#compare")
    opened.after(lambda: page.select_option("#choose-model", "other"))
    assert page.locator("#choose-against").input_value() == "run:0" and page.locator("#pane-b").is_visible()
    assert opened.tops("b") == shown(looked(TEXT))


@pytest.mark.slow
def test_pins_and_kept_texts_are_those_of_looks_that_are_there(opened: Explored):
    page = opened.page
    opened.cell(5, 1).click()
    assert page.locator("#pin-list > li").count() == 1
    opened.type("text", "The capital of France is called")
    assert page.locator("#pin-list > li").count() == 0 and page.locator("#pins").is_hidden()
    page.click("#keep")
    opened.type("answer", "Paris")  # the same text again, with another question
    assert page.locator("#kept-list li").count() == 1 and page.locator("#choose-fact option").count() == 1
    page.fill("#text", "")
    expect(page.locator("#said")).to_have_text("Type a text.")


@pytest.mark.slow
def test_another_model_has_its_own_lenses_and_layers(opened: Explored, other: Path):
    opened.after(lambda: opened.page.select_option("#choose-model", "other"))
    look = package.look(CausalLM.open(other, device="cpu"), TEXT, positions="all", top=20)
    assert opened.tops() == shown(look)
    assert "tuned" not in opened.page.inner_text("#ask-lenses")


def test_what_is_saved_is_the_look(opened: Explored, tmp_path: Path):
    page = opened.page
    name, content = opened.downloaded(page.locator("#get-csv"))
    look = looked(TEXT)
    assert name.endswith(".csv")
    assert len(list(csv.DictReader(io.StringIO(content.decode())))) == look.grid.height
    name, content = opened.downloaded(page.locator("#get-run"))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    run = Run.read(folder)
    assert name.endswith(".zip") and run.record.suite.prompts[0].text == TEXT and (folder / "view.html").exists()
    page.click("#get-code")
    expect(page.locator("#code")).to_be_visible(timeout=HANGS_MS)
    namespace: dict[str, object] = {}
    exec(page.inner_text("#python"), namespace)
    repeated = namespace["look"]
    assert isinstance(repeated, package.Look) and repeated.grid.equals(look.grid, null_equal=True)
    page.keyboard.press("Escape")
    expect(page.locator("#code")).to_be_hidden()


def test_a_mistake_is_told_and_mended_by_typing_on(opened: Explored):
    page = opened.page
    page.fill("#layers", "99")
    expect(page.locator("#wrong")).to_contain_text("counted from 0 to 12", timeout=HANGS_MS)
    assert len(opened.said) == 1  # the browser's own line on the status
    opened.said.clear()
    opened.type("layers", "")
    assert page.locator("#wrong").is_hidden()


@pytest.mark.slow
def test_quick_typing_ends_with_the_last_text(opened: Explored):
    page = opened.page
    page.locator("#text").press("End")
    page.locator("#text").press_sequentially(" the city of", delay=40)
    last = TEXT + " the city of"
    expect(page.locator("#prompt-text")).to_have_text(last, timeout=HANGS_MS)
    assert opened.tops() == shown(looked(last))


@pytest.mark.slow
def test_a_slow_look_shows_how_far_it_is_and_can_be_cancelled(opened: Explored, monkeypatch: pytest.MonkeyPatch):
    page, forward = opened.page, CausalLM.forward
    ended = threading.Event()

    def slowly(self: CausalLM, *args: object, progress: object, **options: object) -> object:
        try:
            for _ in range(3000):
                progress(3, self.n_layers)  # type: ignore[operator]
                ended.wait(0.01)
        except BaseException:
            ended.set()
            raise
        return forward(self, *args, progress=progress, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(CausalLM, "forward", slowly)
    page.fill("#text", "A text that takes long")
    expect(page.locator("#progress")).to_have_text("block 3 of 12", timeout=HANGS_MS)
    page.click("#cancel")
    expect(page.locator("#cancel")).to_be_hidden(timeout=HANGS_MS)
    assert ended.wait(30)
    monkeypatch.undo()
    opened.type("text", "And one that does not")
    assert opened.tops() == shown(looked("And one that does not"))


HOSTILE = "</script><img src=x onerror=alert(1)> \u202e\x00{{ 7*7 }} <b>"


@pytest.mark.slow
def test_a_hostile_text_is_a_text(opened: Explored):
    page = opened.page
    opened.type("text", HOSTILE)
    page.fill("#track", "<img src=x onerror=alert(1)>")
    opened.after(lambda: page.press("#track", "Enter"))
    page.click("#compare")
    opened.type("answer", "<script>alert(1)</script>")
    assert page.locator("img").count() == 0 and page.locator("body script").count() == 2
    assert opened.page.title() == "layerscope explorer"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opened", "name"),
    [({}, "explorer"), slow({"viewport": PHONE, "color_scheme": "dark"}, "explorer-phone-dark")],
    indirect=["opened"],
)
def test_axe_finds_nothing_serious_and_nothing_is_too_wide(opened: Explored, name: str):
    page = opened.page
    page.fill("#track", "Rome")
    opened.after(lambda: page.press("#track", "Enter"))
    page.click("#compare")
    opened.type("text", "The capital of France is called")
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
    assert opened.too_wide() <= 0
    assert opened.findings() == []
