"""What a notebook shows of runs and looks, lenses of one's own, the recipes, and the notebook in docs.

Tolerances. Printed numbers of two float32 passes: one unit of the last printed digit. The norm of twice a row is that
of the row, for epsilon is 1e-6 and its mean square above 100 from layer 1 on: rounding of logits of some 20 is left,
1e-4 of a probability. Opacity mixes text with its ground linearly in sRGB, as browsers do.
"""

import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import altair
import numpy as np
import polars as pl
import pytest
import torch

import layerscope
from layerscope import CausalLM, Look, LookOptions, look, looks, probe
from layerscope.errors import LensError, RunError
from layerscope.looking import in_notebook
from layerscope.probing import outputs
from layerscope.record import COLUMNS, RunRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.report.numbers import Number, short_text
from layerscope.report.sentences.verdict import VerdictText
from layerscope.report.text import spread, visible
from layerscope.run import Run
from layerscope.view.notebook import run_card
from layerscope.view.notebook.small_grid import MOST_LAYERS, MOST_POSITIONS, NO_GROUND, QUIET, ground
from layerscope.view.palette import contrast, ink
from made_run import HOSTILE, made

ROOT = Path(__file__).resolve().parents[1]
TEXT = "The capital of Germany is called"
ELEMENTS = {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "bdi", "br", "span", "a"}
ATTRIBUTES = {"style", "title", "scope", "href", "target", "rel"}
GROUNDS = {"light": ("#ffffff", "#212121"), "dark": ("#111111", "#e0e0e0")}
"""Grounds of notebooks and the ink that they write with, JupyterLab's."""


class Shown(HTMLParser):
    """A card as a browser takes it: refused where an element is not closed, or is one that a card has no use for."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS and {name for name, _ in attrs} <= ATTRIBUTES, (tag, attrs)
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    @property
    def cells(self) -> list[dict[str, str]]:
        """Attributes of the cells that stand for a token."""
        return [attributes for tag, attributes in self.elements if tag == "td" and "title" in attributes]


def style(attributes: dict[str, str]) -> dict[str, str]:
    return dict(rule.split(":", 1) for rule in attributes["style"].strip(";").split(";"))


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM.open(device="cpu")


@pytest.fixture(scope="module")
def looked(model: CausalLM) -> Look:
    return look(model, TEXT, answer="Berlin", track=["Paris", "internationalisation"])


@pytest.fixture(scope="module")
def run(model: CausalLM) -> Run:
    return probe(model, suite="berlin", lenses="logit,next_norm,raw", top_k=5)


def changed(run: Run, **record: object) -> Run:
    """The run with parts of its record changed."""
    return Run(run.rows, RunRecord.model_validate(run.record.model_dump() | record))


def failed(run: Run, **identity: object) -> Run:
    """The run, had its identity check failed."""
    check = run.record.identity.model_dump() | {"ok": False, "kl_bits": 3.0, "note": "It is not."} | identity
    return changed(run, identity=check)


def controls_of(run: Run) -> Run:
    """The control alone."""
    suite = run.record.suite
    suite = suite.model_copy(update={"prompts": tuple(p for p in suite.prompts if p.prompt_id == "ctl")})
    return Run(run.rows.filter(prompt_id="ctl"), run.record.model_copy(update={"suite": suite}))


# --- A run


def test_the_line_of_a_run_has_its_facts_and_the_layer_of_its_headline(run: Run, five_lens_run: Path):
    layer = VerdictText(run.verdict, run.record).layer()
    assert (
        repr(run) == f"<Run reference · berlin · 1 of 1 fact answered · on top for good from layer {layer} of 12 under "
        "logit>"
    )
    many = Run.read(five_lens_run)
    median = many.diagnostics.layers_over_facts.on_top_for_good.summary.median_rounded
    assert f"5 of 5 facts answered · on top for good from layer {median} of 12 (median) under logit" in repr(many)
    assert "\n" not in repr(many)


def test_a_line_says_only_what_is_so(run: Run, model: CausalLM, tmp_path: Path, monkeypatch):
    wrong = probe(model, suite=[{"prompt": TEXT, "answer": "Quito"}], positions="last")
    assert repr(wrong) == "<Run reference · prompts · 0 of 1 fact answered · no headline layer>"
    open_end = probe(model, suite=[{"prompt": TEXT}], positions="last")
    assert " · 1 prompt without an answer · " in repr(open_end)
    assert repr(controls_of(run)) == "<Run reference · berlin · no fact · no headline layer>"
    assert repr(failed(run)) == "<Run reference · berlin · 1 fact · identity check failed, no layer stands>"
    assert "on top for good from layer 4" in repr(failed(run, fitted_scale=0.5))  # which changes no order
    assert "\u202e" not in repr(changed(run, suite=run.record.suite.model_dump() | {"name": "\u202e\n<b>"}))

    def gone(*_: object) -> None:
        raise RunError("its file is gone")

    monkeypatch.setattr(run_card, "run_line", gone)
    assert repr(run) == "<Run layerscope/reference · berlin · its rows cannot be read>"


def test_a_run_is_shown_by_its_headline_and_the_last_positions_of_its_first_prompt(run: Run):
    shown = Shown(run._repr_html_())
    verdict = VerdictText(run.verdict, run.record)
    assert verdict.headline() in shown.text and "run.show()" in shown.text
    for caution in verdict.cautions():
        assert caution in shown.text
    n = run.record.model.n_layers + 1
    assert n <= MOST_LAYERS
    rows = PromptKey(0, "pos", "orig").rows_of(run.rows).filter(lens="logit")
    last = rows["position"].max()
    rows = rows.filter(pl.col("position") > last - MOST_POSITIONS).sort("layer", "position", descending=[True, False])
    expected = [
        f"layer {layer}, position {position}: {visible(top)}, p {short_text(p)}"
        for layer, position, top, p in rows.select("layer", "position", "top1", "p_top1").iter_rows()
    ]
    assert [cell["title"] for cell in shown.cells] == expected
    for cell, p in zip(shown.cells, rows["p_top1"], strict=True):
        assert style(cell)["background-color"] == ground(p)


def test_of_a_deep_run_evenly_spaced_layers_are_shown_and_the_last_is_one(run: Run):
    grid = run_card.small_grid(made(run, 70, 9, ("logit",), 5, ["a"]), PromptKey(0, "pos", "orig"), "logit")
    assert grid.layers[-1] == 70 and len(grid.layers) <= MOST_LAYERS and len(set(np.diff(grid.layers))) == 1
    assert grid.positions == tuple(range(3, 9)) and f"; {len(grid.layers)} of 71 layers" in grid.caption
    for n in range(1, 200):
        places = spread(n, MOST_LAYERS)
        assert places[-1] == n - 1 and places[0] >= 0 and len(places) <= MOST_LAYERS


def test_where_the_identity_check_failed_no_probability_is_in_a_run_s_card(run: Run):
    for bad in (failed(run), failed(run, fitted_scale=0.5)):
        shown = Shown(bad._repr_html_())
        assert len(shown.cells) == 13 * MOST_POSITIONS
        assert all(style(cell)["background-color"] == NO_GROUND for cell in shown.cells)
        assert not any(", p " in cell["title"] for cell in shown.cells)
        assert "Identity check: FAILED" in shown.text and "probabilities are withheld" in shown.text
        assert not re.search(r"\bp 0\.\d", shown.text) or "(p " in VerdictText(bad.verdict, bad.record).headline()
    assert "No layer can be named" in Shown(failed(run)._repr_html_()).text


def test_runs_without_facts_rows_or_a_reading_are_told_as_they_are(run: Run):
    alone = Shown(controls_of(run)._repr_html_())
    assert "No layer can be named: there is no prompt about a fact under lens logit." in alone.text
    assert "control: “" in alone.text and alone.cells
    none = Shown(Run(run.rows.filter(pl.col("lens") != "logit"), run.record)._repr_html_())
    assert "was not read under lens logit" in none.text and not none.cells
    empty = Run(run.rows.clear(), run.record)
    assert "The run has no rows." in Shown(empty._repr_html_()).text


def test_rows_that_are_not_finite_and_layers_that_are_absent_are_told_apart(run: Run):
    bad = pl.col("layer") == 3
    metrics = [column.name for column in COLUMNS][11:]
    rows = run.rows.with_columns(finite=~bad, **{name: pl.when(~bad).then(pl.col(name)) for name in metrics})
    rows = rows.select(run.rows.columns).filter((pl.col("layer") != 5) | (pl.col("position") != 15))
    titles = [cell["title"] for cell in Shown(Run(rows, run.record)._repr_html_()).cells]
    assert sum("layer 3" in title and title.endswith(": not finite") for title in titles) == MOST_POSITIONS
    assert [title for title in titles if "not read" in title] == ["layer 5, position 15: not read"]


def test_hostile_tokens_and_names_are_inert(run: Run):
    hostile = made(run, 12, 6, ("logit",), 5, HOSTILE)
    record = hostile.record.model_dump()
    text = "".join(HOSTILE)
    prompts = tuple(prompt | {"text": text, "fact_key": text} for prompt in record["suite"]["prompts"])
    named = {"suite": record["suite"] | {"prompts": prompts, "name": text}, "model": record["model"] | {"id": "<b>"}}
    for each in (hostile, changed(hostile, **named)):
        plain = Shown(made(run, 12, 6, ("logit",), 5, ["a"])._repr_html_())
        shown = Shown(each._repr_html_())
        assert len(shown.cells) == len(plain.cells)
        everything = shown.text + "".join("".join(attributes.values()) for _, attributes in shown.elements)
        assert everything.isprintable()  # no control, direction or line-ending character is left


def test_cells_read_well_in_light_and_dark():
    for p in (None, math.nan, *np.linspace(0, 1, 1001)):
        assert contrast(ground(p), ink(ground(p))) >= 4.5
    for paper, pen in GROUNDS.values():
        parts = ((int(pen[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5))
        mixed = "#" + "".join(f"{round(QUIET * a + (1 - QUIET) * b):02x}" for a, b in parts)
        assert contrast(mixed, paper) >= 4.5


def test_text_outside_cells_takes_the_notebooks_own_colours(run: Run, looked: Look):
    for html in (run._repr_html_(), looked._repr_html_()):
        for tag, attributes in Shown(html).elements:
            rules = style(attributes) if "style" in attributes else {}
            if tag == "td" and "title" in attributes:
                assert contrast(rules["background-color"], rules["color"]) >= 4.5
            else:
                assert "color" not in rules or rules["color"] == "inherit"
                assert rules.get("background", "transparent").startswith(("transparent", "linear-gradient"))


def test_a_saved_or_read_run_links_to_the_page_in_its_folder(run: Run, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Run(run.rows, run.record)
    assert own.folder is None and "href" not in own._repr_html_()
    own.save("javascript:alert(1)")
    assert own.folder == tmp_path / "javascript:alert(1)" and "href" not in own._repr_html_()  # no page is there
    (own.folder / "view.html").write_text("page")
    read = Run.read("javascript:alert(1)")
    assert read.folder == own.folder and read == own
    for each in (own, read):
        (link,) = (attributes["href"] for tag, attributes in Shown(each._repr_html_()).elements if tag == "a")
        assert link == "javascript%3Aalert%281%29/view.html"


@pytest.mark.slow
def test_published_files_have_a_card_and_no_folder(made_sweep: Path):
    for file in sorted(made_sweep.glob("output-*.json"))[:2]:
        read = Run.read(made_sweep, model=file.stem.removeprefix("output-"))
        assert read.folder is None
        shown = Shown(read._repr_html_())
        assert VerdictText(read.verdict, read.record).headline() in shown.text and shown.cells


# --- A look


def test_the_line_of_a_look_says_what_comes_next(looked: Look, model: CausalLM):
    (token, p), *_ = looked.top(-1)
    assert repr(looked) == (
        f"<Look reference · '{TEXT}' · next {visible(token)} {short_text(p)} · 13 layers × 6 positions · logit>"
    )
    long = repr(look(model, "a\n\u202e" + "b" * 300, positions="last"))
    assert "\n" not in long and "\u202e" not in long and len(long) < 200


def test_a_look_is_shown_by_its_next_tokens_its_last_positions_and_ranks(looked: Look):
    shown = Shown(looked._repr_html_())
    for token, p in zip(looked.output.top_tokens, looked.output.top_probs, strict=True):
        assert f"{visible(token)} {short_text(p)}" in shown.text
    expected = [
        f"layer {layer}, position {position}: {visible(token)}, p {short_text(p)}"
        for layer in reversed(looked.layers)
        for position in looked.positions[-MOST_POSITIONS:]
        for token, p in looked.top(layer, position)[:1]
    ]
    assert [cell["title"] for cell in shown.cells] == expected
    grid = in_notebook.small_grid(looked, 0)
    assert grid.columns[1].head == "rank of ␣Berlin"
    assert grid.columns[1].texts == tuple(f"{rank:,}" for rank in looked.rank("Berlin")["rank"])
    assert "is followed through the first of its" in shown.text and "identity check passed" in shown.text


def test_hostile_tokens_and_words_are_inert_in_a_look(looked: Look, model: CausalLM):
    tokens = np.resize(np.array(HOSTILE, dtype=object), looked.top_tokens.shape)
    tracked = tuple(replace(each, token=HOSTILE[0], word="\u202e<b>") for each in looked.tracked)
    text = "".join(one for one in HOSTILE if one)
    found = look(model, text, track=["<script>", "</td>"])
    hostile = replace(looked, top_tokens=tokens, tokens=HOSTILE[: len(looked.tokens)], tracked=tracked)
    for each in (found, hostile, replace(looked, lenses=(layerscope.LogitLens(None, name="<i>\u202e"),))):
        shown = Shown(each._repr_html_())
        everything = shown.text + "".join("".join(attributes.values()) for _, attributes in shown.elements)
        assert everything.isprintable() and repr(each).isprintable() and shown.cells


def test_where_the_identity_check_fails_a_look_shows_tokens_and_ranks_alone(model: CausalLM, monkeypatch):
    monkeypatch.setattr(outputs, "TOLERANCE_BITS", -1.0)
    found = look(model, TEXT, answer="Berlin")
    shown = Shown(found._repr_html_())
    assert all(style(cell)["background-color"] == NO_GROUND for cell in shown.cells)
    assert not any(", p " in cell["title"] for cell in shown.cells)
    assert set(in_notebook.small_grid(found, 0).columns[0].texts) == {"-"}
    assert "identity check FAILED" in shown.text and repr(found).endswith("identity check failed>")
    assert "probabilities are withheld" in shown.text


def test_a_look_that_is_not_finite_says_so(model: CausalLM, monkeypatch):
    forward = CausalLM.forward

    def broken(self: CausalLM, *args: object, **kwargs: object):
        residuals = forward(self, *args, **kwargs)
        residuals.values[:, 1:] = math.nan
        residuals.logits[:] = math.nan
        return residuals

    monkeypatch.setattr(CausalLM, "forward", broken)
    found = look(model, TEXT, answer="Berlin")
    assert " · nothing finite · " in repr(found)
    shown = Shown(found._repr_html_())
    assert "nothing finite" in shown.text and "not finite" in shown.cells[0]["title"]


# --- Lenses of one's own


class Doubled:
    """The logit lens of twice the residual, taken in place."""

    name = "doubled"

    def __init__(self, model: CausalLM) -> None:
        self.norm = model.final_norm

    def __call__(self, residual: torch.Tensor, layer: int) -> torch.Tensor:
        return self.norm(residual.mul_(2)).double()

    def source(self, layer: int) -> str:
        return "final_norm of twice the residual"


class Wrong(Doubled):
    """Gives what is no row for each row."""

    name = "wrong"
    gives: ClassVar[object] = None

    def __call__(self, residual: torch.Tensor, layer: int) -> object:
        return self.gives


def test_a_lens_of_ones_own_is_read_beside_named_ones_and_harms_no_residual(model: CausalLM, looked: Look):
    found = look(model, TEXT, answer="Berlin", lenses=[Doubled(model), "logit"])
    assert found.lens_names == ("doubled", "logit")
    assert torch.equal(found.residuals, looked.residuals)
    assert found.rank("Berlin", lens="logit")["rank"].to_list() == looked.rank("Berlin")["rank"].to_list()
    np.testing.assert_allclose(found.top_probs[0, 1:], found.top_probs[1, 1:], rtol=1e-4)
    assert found.logits(4).dtype == torch.float32
    assert "p is the model's at layer 12 under logit, the lens' own elsewhere" in " ".join(str(found).split())
    alone = look(model, TEXT, lenses=Doubled(model))
    assert alone.lens_names == ("doubled",) and "p is the lens' own at every layer" in " ".join(str(alone).split())
    assert layerscope.difference(alone, found).layers


@pytest.mark.parametrize(
    ("lenses", "sentence"),
    [
        (lambda model: [Doubled], "but the class Doubled came"),
        (lambda model: ["logit", abs], "but an object of builtin_function_or_method came"),
        (lambda model: [], "No lens was asked for"),
        (lambda model: [Doubled(model), Doubled(model)], "Each lens needs a name of its own"),
        (lambda model: [layerscope.LogitLens(model.final_norm)], "'logit' is the name of a lens"),
        (lambda model: [layerscope.LogitLens(model.final_norm, name="")], "should be text that is not empty"),
        (lambda model: [Doubled(model), "lens"], "There is no lens called 'lens'"),
        (lambda model: [Wrong(model)], "at layer 0 NoneType came"),
    ],
)
def test_what_is_no_lens_is_refused(lenses, sentence: str, model: CausalLM):
    with pytest.raises(LensError, match=re.escape(sentence)):
        look(model, TEXT, lenses=lenses(model))


@pytest.mark.parametrize("rows", [torch.zeros(3), torch.zeros(6, 96, dtype=torch.int64)])
def test_rows_of_another_shape_or_kind_are_refused(rows: torch.Tensor, model: CausalLM, monkeypatch):
    monkeypatch.setattr(Wrong, "gives", rows)
    with pytest.raises(LensError, match=r"floating-point rows of the residual's shape \(6, 96\), but at layer 0"):
        look(model, TEXT, lenses=[Wrong(model)])


def test_several_texts_need_no_options(model: CausalLM):
    first, second = looks(model, [TEXT, "Paris"])
    assert first.lens_names == ("logit",) and "".join(second.tokens) == "Paris"
    assert looks(model, ["Paris"], LookOptions(top=2))[0].top_ids.shape[-1] == 2


def test_the_residuals_of_a_prompt_are_without_its_padding(model: CausalLM, looked: Look):
    ids = [model.tokens.input_ids(text) for text in (TEXT, "Paris")]
    residuals = model.forward(ids)
    assert residuals.of_prompt(1).shape == (13, len(ids[1]), model.d_model)
    assert torch.equal(residuals.of_prompt(0)[:, -1], residuals.values[0, :, len(ids[0]) - 1])
    assert residuals.of_prompt(0).shape == looked.residuals.shape


# --- Pages that run


@pytest.mark.slow
def test_the_recipes_run(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 10
    for block in blocks:
        exec(compile(block, "recipes.md", "exec"), namespace)
    assert "Berlin" in capsys.readouterr().out
    saved = np.load(tmp_path / "residuals.npy")
    assert torch.equal(torch.from_numpy(saved), namespace["look"].residuals)
    assert {"residuals.safetensors", "rank.svg", "grid.png", "facts.svg"} <= {file.name for file in tmp_path.iterdir()}


# --- The notebook in docs

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
EXACT = 20
"""Whole numbers up to here are layers, positions, counts and high ranks, and have to be the same."""


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def in_words(output: dict) -> str:
    """What an output says, without its markup, and without what rounding alone makes of an identity check."""
    data = output.get("data", {})
    text = output.get("text", data.get("text/plain", ""))
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>|<[^>]*>", " ", "".join(data["text/html"]), flags=re.DOTALL)
        text = [*text, unescape(html)]
    return re.sub(r"KL [\d.e+-]+ bits", "KL", "".join(text))


def agree(first: str, second: str) -> bool:
    """Whether two texts are the same up to the last digit of a number, and to the width of a table."""
    words = [" ".join(re.sub(r"[─═]+", "─", NUMBER.sub("#", text)).split()) for text in (first, second)]
    numbers = [[Number.parse(found) for found in NUMBER.findall(text)] for text in (first, second)]
    return words[0] == words[1] and all(
        a == b or (a and b and not (a.is_whole and a.value <= EXACT) and abs(a.value - b.value) <= a.step * (1 + 1e-6))
        for a, b in zip(*numbers, strict=True)
    )


def test_texts_agree_up_to_a_last_digit():
    assert agree("p 0.589 · rank 1,330", "p 0.590  · rank 1,331")
    for first, second in (("p 0.589", "p 0.591"), ("layer 4", "layer 5"), ("rank 1,330", "rank 1,332"), ("a", "b")):
        assert not agree(first, second)


def test_the_notebook_is_small_whole_and_says_nothing_of_a_machine():
    raw = NOTEBOOK.read_bytes()
    assert len(raw) < 300_000
    for place in (b"/home", b"/root", b"/tmp", b"/work", b"/usr", b"\\\\Users", b"site-packages"):
        assert place not in raw
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    every = [output for cell in cells for output in cell["outputs"]]
    assert all(cell["outputs"] for cell in cells)
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in every)
    cards = [html for output in every if "<bdi>" in (html := "".join(output.get("data", {}).get("text/html", "")))]
    assert len(cards) == 2 and all(Shown(html).cells for html in cards)  # a look and a run
    assert sum("image/svg+xml" in output.get("data", {}) for output in every) == 1


def test_the_cells_of_the_notebook_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    renderer = altair.renderers.active
    try:
        for cell in code_cells():
            exec(compile("".join(cell["source"]), "notebook.ipynb", "exec"), namespace)
    finally:
        altair.renderers.enable(renderer)
    committed = [in_words(output) for cell in code_cells() for output in cell["outputs"]]
    for value in (namespace["look"], namespace["run"]):
        now = in_words({"data": {"text/plain": repr(value), "text/html": value._repr_html_()}})
        assert any(agree(now, text) for text in committed)


@pytest.mark.slow
def test_the_notebook_runs_from_a_clean_kernel_and_says_what_it_said():
    """Slow, for a kernel starts a Python of its own; the test above runs the same cells."""
    import make_notebook
    import nbformat

    made = make_notebook.executed(nbformat.read(NOTEBOOK, as_version=4))
    again = [cell for cell in made.cells if cell.cell_type == "code"]
    for committed, fresh in zip(code_cells(), again, strict=True):
        assert committed["source"] and "".join(committed["source"]) == fresh.source
        for old, new in zip(committed["outputs"], fresh.outputs, strict=True):
            assert old["output_type"] == new.output_type
            assert set(old.get("data", {})) == set(new.get("data", {}))
            assert agree(in_words(old), in_words(new)), (in_words(old), in_words(new))
