"""The page: its numbers are the run's, its text cannot become markup, it loads nothing, and writing it is safe.

Tolerances. The page packs the logarithm to base 2 in 16 bits, 1024 to the bit: half a step is 2^(1/2048) - 1 =
3.4e-4.
"""

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.errors import RunError
from layerscope.probing.probe import probe
from layerscope.record import COLUMNS, RunRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.report.sentences.verdict import VerdictText
from layerscope.run import Run, plots
from layerscope.view.page import payload as payload_module
from layerscope.view.page.bundle import write_bundle
from layerscope.view.page.kept import kept_text
from layerscope.view.page.others import other_prompts
from layerscope.view.page.packing import packed, safe_json
from layerscope.view.page.payload import labels, payload
from layerscope.view.page.view import MARKER, page_html, write_view
from layerscope.view.page.words import command, origin, verdict_words
from layerscope.view.palette import LIGHT_GROUND
from made_run import HOSTILE, made


class Parsed(HTMLParser):
    """What a browser would take for elements, and the text inside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[dict[str, str | None], str]] = []
        """Attributes and text of every script and style."""
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append((dict(attrs) | {"tag": tag}, ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            attributes, text = self.raw[-1]
            self.raw[-1] = (attributes, text + data)
        else:
            self.text += data

    def data(self, id: str) -> object:
        """What a block of data holds."""
        return next(json.loads(text) for attributes, text in self.raw if attributes.get("id") == id)

    def unpacked(self, id: str) -> bytes:
        return zlib.decompress(base64.b64decode(str(self.data(id))))


@pytest.fixture(scope="module")
def run() -> Run:
    """The bundled model, every position of the first prompt, lists of five."""
    return probe(suite="berlin", top_k=5)


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return page_html([run])


def changed(run: Run, **record: object) -> Run:
    """The run with parts of its record changed."""
    return Run(run.rows, RunRecord.model_validate(run.record.model_dump() | record))


def unblocked(content: bytes, layers: int, positions: int, k: int) -> dict[str, np.ndarray]:
    """A block as the page's own script takes it apart."""
    n, offset, found = layers * positions, 0, {}
    for name, kind, length in (
        ("entropy_bits", "<f4", n), ("kl_to_final_bits", "<f4", n), ("p_top1", "<f4", n), ("p_answer", "<f4", n),
        ("answer_rank", "<u4", n), ("tokens", "<u4", n * k), ("codes", "<u2", n * k), ("state", "u1", n),
    ):  # fmt: skip
        found[name] = np.frombuffer(content, kind, length, offset)
        offset += found[name].nbytes
    assert offset == len(content)
    return found


# What is packed


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_json_for_a_page_says_the_same_and_holds_nothing_that_ends_a_script(value: object):
    text = safe_json(value)
    assert json.loads(text) == value
    assert not re.search("[<>&\u2028\u2029\u202a-\u202e\u2066-\u2069]", text)


def test_a_number_that_json_has_not_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        safe_json([float("nan")])


def test_what_is_packed_is_the_content_deflated():
    assert zlib.decompress(base64.b64decode(packed(b"abc" * 100))) == b"abc" * 100


def test_every_number_of_a_block_is_that_of_its_row(run: Run, page: str):
    parsed = Parsed(page)
    data = parsed.data("page-data")
    own, vocabulary = data["runs"][0], data["vocabulary"]
    n_rows = 0
    for prompt in own["prompts"]:
        for lens, block in prompt["blocks"].items():
            positions, k = block["positions"], block["top_k"]
            layers = own["n_layers"] + 1
            found = unblocked(parsed.unpacked(block["id"]), layers, len(positions), k)
            rows = run.rows.filter(
                pl.col("fact_index").eq_missing(prompt["fact_index"]),
                prompt_id=prompt["prompt_id"],
                prompt_variant=prompt["variant"],
                lens=lens,
            )
            for row in rows.iter_rows(named=True):
                cell = row["layer"] * len(positions) + positions.index(row["position"])
                for name in ("entropy_bits", "kl_to_final_bits", "p_top1", "p_answer"):
                    assert found[name][cell] == np.float32(row[name])
                assert found["answer_rank"][cell] == row["answer_rank"]
                tokens = found["tokens"][cell * k : (cell + 1) * k]
                assert [vocabulary["ids"][token - 1] for token in tokens] == row["top_ids"]
                assert [vocabulary["texts"][token - 1] for token in tokens] == row["top_tokens"]
                p = 2.0 ** -(found["codes"][cell * k : (cell + 1) * k] / 1024)
                np.testing.assert_allclose(p, np.maximum(row["top_probs"], 2.0 ** -(65534 / 1024)), rtol=4e-4)
                n_rows += 1
            assert (found["state"] == 1).sum() == rows.height
    assert n_rows == run.rows.height


def test_a_layer_that_a_lens_lacks_is_an_absent_cell(run: Run, page: str):
    parsed = Parsed(page)
    own = parsed.data("page-data")["runs"][0]
    block = own["prompts"][0]["blocks"]["tuned"]
    found = unblocked(parsed.unpacked(block["id"]), own["n_layers"] + 1, len(block["positions"]), block["top_k"])
    at_0 = found["state"][: len(block["positions"])]
    assert not at_0.any()
    assert np.isnan(found["entropy_bits"][: len(block["positions"])]).all()
    assert run.rows.filter(pl.col("lens") == "tuned", pl.col("layer") == 0).is_empty()


def test_a_row_that_is_not_finite_is_told_from_an_absent_one(run: Run):
    bad = pl.col("layer") == 3
    metrics = [column.name for column in COLUMNS][11:]
    rows = run.rows.with_columns(
        finite=~bad, **{name: pl.when(~bad).then(pl.col(name)) for name in metrics}
    ).select(run.rows.columns)  # fmt: skip
    found = payload([Run(rows, run.record)])
    block = found.runs[0].prompts[0].blocks["logit"]
    n = len(block.positions)
    content = zlib.decompress(base64.b64decode(found.scripts[block.id]))
    state = unblocked(content, run.record.model.n_layers + 1, n, block.top_k)["state"].reshape(-1, n)
    assert (state[3] == 3).all() and (np.delete(state, 3, axis=0) == 1).all()


def test_the_answers_token_is_known_by_its_id_and_not_by_its_text(run: Run):
    found = payload([run])
    (at,) = found.runs[0].prompts[0].answer_tokens
    assert found.vocabulary.ids[at - 1] == run.record.suite.prompts[0].answers[0].first_id


def test_where_the_identity_check_failed_no_probability_is_in_the_page(run: Run):
    identity = run.record.identity.model_dump() | {"ok": False, "kl_bits": 3.0, "note": "It is not."}
    failed = changed(run, identity=identity)
    found = payload([failed])
    block = found.runs[0].prompts[0].blocks["logit"]
    content = zlib.decompress(base64.b64decode(found.scripts[block.id]))
    numbers = unblocked(content, run.record.model.n_layers + 1, len(block.positions), block.top_k)
    assert all(np.isnan(numbers[name]).all() for name in ("entropy_bits", "kl_to_final_bits", "p_top1", "p_answer"))
    assert (numbers["codes"] == 65535).all()
    assert not numbers["answer_rank"].any()  # nothing explains the failure, so ranks do not stand either
    assert numbers["tokens"].all()
    assert not found.runs[0].probabilities and not found.runs[0].ranks


def test_runs_of_one_model_have_names_of_their_own(run: Run):
    assert len(set(labels([run, run, changed(run, created_utc="2020-01-01T00:00:00Z")]))) == 3


# What a browser makes of it


def test_nothing_may_run_or_load_but_what_the_policy_names_by_hash(page: str):
    parsed = Parsed(page)
    policy = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        run_by_browser = [t for a, t in parsed.raw if a["tag"] == tag and a.get("type") != "application/json"]
        hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run_by_browser}
        assert {f"'sha256-{digest}'" for digest in hashes} == set(rules[rule])


def test_no_element_points_out_of_the_file(page: str):
    for tag, attributes in Parsed(page).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
        for name in ("src", "href", "srcset", "action", "data", "style", "onclick", "onload"):
            value = attributes.get(name)
            assert value is None or (name == "href" and value.startswith("#")), (tag, name, value)


def test_hostile_tokens_add_no_element_and_come_out_as_they_are(run: Run):
    plain, hostile = (
        Parsed(page_html([made(run, 3, 4, ("logit",), 5, texts)])) for texts in (["a"] * len(HOSTILE), HOSTILE)
    )
    count = [[tag for tag, _ in parsed.elements] for parsed in (plain, hostile)]
    assert count[0] == count[1]
    found = hostile.data("page-data")
    assert set(found["vocabulary"]["texts"]) <= set(HOSTILE)
    assert set(found["runs"][0]["prompts"][0]["tokens"].values()) <= set(HOSTILE)


def test_hostile_names_and_prompts_stand_in_the_page_as_text(run: Run):
    record = run.record.model_dump()
    text = "".join(one for one in HOSTILE if one.isprintable())
    prompts = tuple(
        prompt | {"text": text, "fact_key": text and prompt["fact_key"]} for prompt in record["suite"]["prompts"]
    )
    suite = record["suite"] | {"prompts": prompts, "name": "<i>", "description": text}
    hostile = Parsed(page_html([changed(run, suite=suite)]))
    assert not any(tag in ("i", "b") and not attributes for tag, attributes in hostile.elements if tag == "i")
    assert text in hostile.text


def test_ids_of_elements_are_unique_and_labels_point_to_one(page: str):
    ids = [attributes["id"] for _, attributes in Parsed(page).elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in Parsed(page).elements:
        for name in ("for", "aria-labelledby", "data-copy", "data-spec", "data-table"):
            assert name not in attributes or attributes[name] in ids, (tag, attributes)


def test_every_chart_has_words_and_its_data(page: str):
    parsed = Parsed(page)
    figures = [attributes for tag, attributes in parsed.elements if tag == "figure"]
    assert len(figures) >= 8
    for figure in figures:
        spec = json.loads(parsed.unpacked(figure["data-spec"]))
        assert spec["$schema"].startswith("https://vega.github.io/schema/vega-lite")
        assert len(parsed.unpacked(figure["data-table"]).decode().splitlines()) > 2
    plots = [attributes for tag, attributes in parsed.elements if attributes.get("class") == "plot"]
    assert len(plots) == len(figures)
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 40 for attributes in plots)


def test_sizes_stay_within_bounds(run: Run, page: str):
    assert len(page.encode()) < 6e6
    texts = [f"token{i:06d}" for i in range(100_000)]
    big = page_html([made(run, 80, 16, ("logit", "next_norm", "raw", "tuned", "prism"), 20, texts)])
    assert len(big.encode()) < 15e6


# Words


def test_prompts_beyond_the_first_facts_have_a_line_each(five_lens_run: Path, monkeypatch: pytest.MonkeyPatch):
    """With room for one fact: its two wordings and the control are in full, and nothing is lost of the others."""
    run = Run.read(five_lens_run)
    assert other_prompts(run) is None
    monkeypatch.setattr(payload_module, "FACTS_IN_FULL", 1)
    passes = run.verdict.curves.passes
    full = {PromptKey(p.fact_index, p.prompt_id, p.variant) for p in payload([run]).runs[0].prompts}
    assert full == {key for key in passes if key.fact_index == 0 or not key.is_fact}
    others = other_prompts(run)
    assert others is not None and f"the first 1 fact and the 1 control; the other {len(others.rows)} " in others.note
    assert payload([run]).runs[0].every == "the first 1 fact"
    assert "layerscope show RUN --prompt NUMBER, where RUN is the run's folder" in others.note
    assert "rows.parquet" in others.note
    published = other_prompts(Run(run.rows, run.record.model_copy(update={"source": "published"})))
    assert published is not None and "rows.parquet" not in published.note and "where RUN is output-" in published.note
    numbers = [int(row[1]) for row in others.rows]
    beyond = [run.record.suite.prompts[number - 1].key for number in numbers]
    assert {*beyond, *full} == {*passes} and len(beyond) + len(full) == len(passes)
    for key, row in zip(beyond, others.rows, strict=True):
        first = key.rows_of(run.judged_rows).filter(pl.col("answer_rank") == 1, is_next=True, lens="logit")["layer"]
        assert row[4] == ("-" if first.is_empty() else str(first.min()))


def test_a_page_holds_fewer_facts_of_many_rows_and_one_at_least(five_lens_run: Path, monkeypatch: pytest.MonkeyPatch):
    """The rows of three facts and of the control are room for three facts, one row less for two."""
    run = Run.read(five_lens_run)
    three = run.rows.filter(pl.col("fact_index").lt(3) | (pl.col("prompt_id") != "pos")).height
    assert 0 < three < run.n_rows
    for room, n_facts in ((0, 1), (three - 1, 2), (three, 3), (run.n_rows, 5)):
        monkeypatch.setattr(payload_module, "ROWS_IN_FULL", room)
        assert {key.fact_index for key in payload_module.in_full(run) if key.is_fact} == {*range(n_facts)}


def test_controls_have_a_room_of_their_own(five_lens_run: Path, monkeypatch: pytest.MonkeyPatch):
    """Without facts all are in full while their rows are few; what is said of a part of them speaks of no fact."""
    run = Run.read(five_lens_run)
    source = PromptKey(0, "pos", "orig").rows_of(run.rows)
    prompt = next(one for one in run.record.suite.prompts if one.key == (0, "pos", "orig"))
    names = [f"ctl{i}" for i in range(3)]
    no_fact = pl.lit(None, source.schema["fact_index"]).alias("fact_index")
    rows = pl.concat([source.with_columns(no_fact, pl.lit(name).alias("prompt_id")) for name in names])
    controls = tuple(prompt.model_copy(update={"prompt_id": name, "fact_index": None}) for name in names)
    suite = run.record.suite.model_copy(update={"prompts": controls})
    alone = Run(rows.cast(dict(run.schema)), run.record.model_copy(update={"suite": suite}))
    assert len(payload_module.in_full(alone)) == 3 and other_prompts(alone) is None
    assert payload([alone]).runs[0].every == "every control"
    monkeypatch.setattr(payload_module, "ROWS_IN_FULL", 2 * source.height)
    others = other_prompts(alone)
    assert others is not None and others.note.startswith(
        "The grid has the first 2 controls; the other 1 prompt has a line "
    )
    assert payload([alone]).runs[0].every == "the first 2 controls"


def test_what_is_kept_is_made_once_and_made_again_where_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path))
    texts = iter(("first\r\n", "second"))
    assert kept_text("name", lambda: next(texts)) == kept_text("name", lambda: next(texts)) == "first\r\n"
    (file,) = (tmp_path / "layerscope").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert kept_text("name", lambda: next(texts)) == "second"
    file.unlink()
    (tmp_path / "layerscope").rmdir()
    (tmp_path / "layerscope").touch()
    assert kept_text("name", lambda: "third") == "third"


def test_the_verdict_is_the_one_of_the_terminal(run: Run):
    words, rows = verdict_words(run), run.rows.filter("is_next", prompt_id="pos", prompt_variant="orig")
    ranks = rows.filter(lens="logit").sort("layer")["answer_rank"].to_list()
    assert words.layer == max(layer for layer, rank in enumerate(ranks) if rank != 1) + 1
    assert f"on top for good and clearly ahead from layer {words.layer} of {words.n_layers}" in words.headline
    assert [one.text for one in words.reasons if one.weight] == [reason.text for reason in run.guidance.reasons]
    raw = next(depth for depth in words.depths if depth.lens == "raw")
    assert raw.first == rows.filter(lens="raw", answer_rank=1)["layer"].min()
    text = VerdictText(run.verdict, run.record)
    lines = [line.text for line in words.lines]
    assert " ".join([words.headline, lines[0]]) == text.headline()
    assert lines[1:] == [line.text for line in text.summary() if line.label != "p is"]
    assert words.quotable.startswith("Probabilities under logit: the model's at layer 12, ")


def test_what_a_probability_is_stands_with_its_layer_and_nothing_forbids_it(run: Run, page: str):
    own = payload([run]).runs[0]
    rows = run.rows.filter("is_next", prompt_id="pos", lens="logit").sort("layer")
    far = pl.max_horizontal("kl_to_final_bits", (pl.col("entropy_bits") - pl.col("teacher_entropy_bits")).abs()) > 0.5
    by_layer = rows.group_by("layer", maintain_order=True).agg(far.all().alias("far"), (~far).all().alias("near"))
    for layer, all_far, all_near in by_layer.iter_rows():
        if layer < 12 and (all_far or all_near):
            assert own.statuses["logit"][layer] == ("near" if all_near else "decoded")
    assert by_layer["far"].any() and by_layer["near"].any()
    assert own.statuses["logit"][12] == "model" and own.statuses["raw"][12] != "model"
    assert not own.suppressed and "not probabilities" not in Parsed(page).text
    failed = run.record.identity.model_dump() | {"ok": False, "kl_bits": 3.5, "explanation": "softcap", "note": "Made."}
    withheld = payload([changed(run, identity=failed)]).runs[0]
    assert set(withheld.statuses["logit"]) == {"withheld"} and not withheld.probabilities
    assert verdict_words(changed(run, identity=failed)).quotable == ""


def test_the_command_of_a_run_asks_the_same_again(run: Run):
    from typer.main import get_command

    from layerscope.cli.main import app

    words = shlex.split(command(run.record))
    assert words[:2] == ["layerscope", "probe"]
    asked = get_command(app).commands["probe"].make_context("probe", words[2:]).params
    assert asked["model"] is None  # the bundled one
    assert (asked["suite"], asked["top_k"], asked["seed"]) == ("berlin", 5, run.record.provenance.seed)
    assert asked["lenses"].split(",") == list(run.record.protocol.lenses)


def test_a_command_cannot_be_broken_out_of(run: Run):
    suite = run.record.suite.model_dump() | {"name": "a b; rm -rf $HOME"}
    assert "a b; rm -rf $HOME" in shlex.split(command(changed(run, suite=suite).record))


def test_a_model_from_a_folder_needs_its_path(run: Run):
    model = run.record.model.model_dump() | {"id": "mine"}
    assert "path of that folder" in origin(changed(run, model=model)).note


# Published files


@pytest.mark.parametrize("model", ["Qwen3-8B", "gemma-2-9b"])
def test_a_published_model_with_records_has_all_positions(shared: Path, model: str):
    found = Run.read(shared / "reference" / "run-20251004-1804", model)
    own = payload([found]).runs[0]
    assert own.missing is None
    prompt = own.prompts[0]
    assert len(prompt.blocks["next_norm"].positions) == len(found.record.suite.prompts[0].tokens)


def test_a_published_model_without_records_names_the_missing_file(shared: Path):
    found = Run.read(shared / "reference" / "run-20251004-1804", "Qwen3-14B")
    assert "output-Qwen3-14B-records.csv" in payload([found]).runs[0].missing


def test_a_self_made_model_without_records_names_the_missing_file(made_sweep: Path, tmp_path: Path):
    for path in made_sweep.glob("output-mute*"):
        if not path.stem.endswith("records"):
            shutil.copyfile(path, tmp_path / path.name)
    assert "output-mute-records.csv" in payload([Run.read(tmp_path, "mute")]).runs[0].missing


def test_several_self_made_models_stand_in_one_page(made_sweep: Path):
    parsed = Parsed(page_html([Run.read(made_sweep, model) for model in ("echo", "mute")]))
    assert [one["label"] for one in parsed.data("page-data")["runs"]] == ["echo", "mute"]
    rows = parsed.text[parsed.text.index("Milestones by model") :]
    assert "Across models" in parsed.text and "echo" in rows and "mute" in rows


def test_several_published_models_stand_in_one_page(shared: Path):
    folder = shared / "reference" / "run-20251004-1804"
    runs = [Run.read(folder, model) for model in ("Qwen3-8B", "Mistral-7B-v0.1")]
    parsed = Parsed(page_html(runs))
    assert [one["label"] for one in parsed.data("page-data")["runs"]] == ["Qwen3-8B", "Mistral-7B-v0.1"]
    assert "Across models" in parsed.text
    rows = parsed.text[parsed.text.index("Milestones by model") :]
    assert "Qwen/Qwen3-8B" in rows and "mistralai/Mistral-7B-v0.1" in rows


# Writing


def test_a_page_is_written_whole_and_again_over_itself(run: Run, tmp_path: Path):
    path = tmp_path / "new" / "view.html"
    assert write_view([run], path) == path
    first = path.read_text(encoding="utf-8")
    assert write_view([run], str(path)).read_text(encoding="utf-8") == first
    assert MARKER in first
    assert [one.name for one in path.parent.iterdir()] == ["view.html"]


@pytest.mark.parametrize("other", [b"", b"<!doctype html><p>mine", b"\xff\xfe"])
def test_what_layerscope_did_not_write_is_left_alone(run: Run, tmp_path: Path, other: bytes):
    path = tmp_path / "view.html"
    path.write_bytes(other)
    with pytest.raises(RunError, match="another name"):
        write_view([run], path)
    assert path.read_bytes() == other


def test_a_folder_or_a_dangling_link_in_the_place_is_refused(run: Run, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "link"):
        with pytest.raises(RunError, match="another name"):
            write_view([run], tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_cannot_be_written_to_is_said(run: Run, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="could not be written"):
        write_view([run], tmp_path / "file" / "view.html")


def test_no_run_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="at least one"):
        write_view([], tmp_path / "view.html")
    assert not list(tmp_path.iterdir())


# Notebooks


@pytest.fixture(scope="module")
def viewed(run: Run) -> Run:
    return Run(run.rows, run.record)


def test_a_notebook_gets_the_page_in_a_closed_frame(viewed: Run, page: str):
    shown = viewed.show(height=500)
    (frame,) = Parsed(shown._repr_html_()).elements
    tag, attributes = frame
    assert tag == "iframe" and attributes["srcdoc"] == page and attributes["height"] == "500"
    assert attributes["sandbox"] == "allow-scripts allow-downloads"
    assert shown._mime_() == ("text/html", shown._repr_html_())
    assert len(repr(shown)) < 200


@pytest.mark.parametrize("kind", ["grid", "entropy_bits", "cosines", "js_divergence_bits", "models"])
def test_a_plot_is_an_altair_chart(viewed: Run, kind: str):
    assert isinstance(viewed.plot(kind), alt.LayerChart | alt.Chart)


def test_a_saved_plot_has_room_for_its_axes_beside_the_plot(viewed: Run, tmp_path: Path):
    viewed.plot("entropy_bits").save(tmp_path / "entropy.svg")
    (picture,) = re.findall(r'<svg[^>]* width="(\d+)"', (tmp_path / "entropy.svg").read_text())
    assert 640 < int(picture) < 900


def test_a_plot_looks_as_it_does_on_the_page(viewed: Run):
    for kind in ("grid", "entropy_bits"):
        assert viewed.plot(kind).to_dict()["config"]["background"] == LIGHT_GROUND


def test_a_plot_hands_on_its_options(viewed: Run):
    assert "raw" in json.dumps(viewed.plot("entropy_bits", lenses=["raw"]).to_dict())


def test_a_plot_takes_the_prompt_under_its_old_name_with_a_warning(viewed: Run):
    other = viewed.verdict.curves.passes[1]
    with pytest.warns(DeprecationWarning, match="`prompt`"):
        old = viewed.plot("entropy_bits", asked=other).to_dict()
    assert old == viewed.plot("entropy_bits", prompt=other).to_dict() != viewed.plot("entropy_bits").to_dict()


def test_an_unknown_plot_lists_those_there_are(viewed: Run):
    with pytest.raises(RunError, match="entropy_bits"):
        viewed.plot("violin")
    with pytest.raises(RunError, match="of one run"):
        viewed.plot("grid", viewed)
    assert {"grid", "models", "facts:answer_rank"} <= set(plots())


def test_a_viewed_run_is_read_and_compared_like_any_other(viewed: Run, run: Run, tmp_path: Path):
    run.save(tmp_path / "run")
    assert Run.read(tmp_path / "run") == viewed == run
    assert isinstance(Run.read(tmp_path / "run"), Run)


def test_pages_and_charts_are_loaded_when_they_are_asked_for():
    code = (
        "import sys, layerscope.run, layerscope.view.page.view\n"
        "print([name for name in ('torch', 'transformers', 'altair', 'vl_convert') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": "src"}, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# A folder of pages


def test_a_bundle_is_an_index_and_a_page_for_each_run(run: Run, tmp_path: Path):
    index = Parsed(write_bundle([run], tmp_path / "pages").read_text(encoding="utf-8"))
    links = [attributes["href"] for tag, attributes in index.elements if tag == "a"]
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == sorted([*links, "index.html"])
    assert Parsed((tmp_path / "pages" / links[0]).read_text(encoding="utf-8")).text
    assert verdict_words(run).headline in index.text
