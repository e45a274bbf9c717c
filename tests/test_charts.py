"""Charts of runs: what is drawn is what the rows hold, labels never overlap, and every chart has its words.

Tolerances. A chart's numbers are written with six significant digits: 1e-5; what is computed from them again is
float64's.
"""

import csv
import html
import io
import json
import re
import statistics
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from layerscope.errors import RunError
from layerscope.record.prompt_key import PromptKey
from layerscope.report.text import visible
from layerscope.run import Run
from layerscope.view.charts import METRICS, across_models, config, facts, grid, lens_trust, trajectories
from layerscope.view.charts.comparable import obstacles, reason_against
from layerscope.view.charts.metrics import metric_of
from layerscope.view.charts.rules import Rule, place
from layerscope.view.charts.trust import LENS_TRUST
from layerscope.view.charts.words import course, listed, measured
from layerscope.view.palette import DARK_GROUND, LENSES, LIGHT_GROUND, SERIES, VIRIDIS, contrast, ink, shade
from made_sweep import MADE, PLAIN
from properties import slow
from published import SHARED
from published_archives import folder_of, slowly, with_made

PUBLISHED = ("Qwen3-8B", "gemma-2-9b", "Mistral-7B-v0.1", "Meta-Llama-3-70B", "Yi-34B", "Qwen2.5-72B")
LETTER = 0.62
"""A generous mean width of a letter of a sans serif, as a share of its size."""
PHONE, DESK = 250, 1120
"""Widths of the plot itself on a phone of 320 pixels and in a page of 1,200."""


@pytest.fixture(scope="module")
def run(five_lens_run: Path) -> Run:
    return Run.read(five_lens_run)


@pytest.fixture(scope="module")
def charts(run: Run) -> list:
    """Whatever can be drawn of the bundled model's run."""
    return every_chart(run)


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "reference" / "run-20251004-1804"


@pytest.fixture(scope="module")
def published(reference: Path) -> dict[str, Run]:
    return {model: Run.read(reference, model) for model in PUBLISHED}


@cache
def run_at(folder: Path, model: str) -> Run:
    return Run.read(folder, model)


@pytest.fixture
def folder(model: str, request: pytest.FixtureRequest) -> Path:
    """Of a self-made model or of a published one."""
    return folder_of(model, request)


@pytest.fixture
def one(model: str, folder: Path) -> Run:
    return run_at(folder, model)


@pytest.fixture(params=["made", *(["published"] if SHARED.is_dir() else [])])
def several(request: pytest.FixtureRequest) -> dict[str, Run]:
    """Models that were asked the same: self-made ones, and published ones where they are present."""
    models = PLAIN if request.param == "made" else PUBLISHED
    return {model: run_at(folder_of(model, request), model) for model in models}


def primary_cells(folder: Path, model: str) -> list[dict[str, str]]:
    """The first prompt's rows of the table, read without our reader."""
    with (folder / f"output-{model}-pure-next-token.csv").open(newline="", encoding="utf-8") as file:
        key = ("pos", "orig", "0")
        rows = csv.DictReader(file, escapechar="\\")
        return [row for row in rows if (row["prompt_id"], row["prompt_variant"], row.get("fact_index", "0")) == key]


def with_values(run: Run, where: pl.Expr, **values: object) -> Run:
    """The run with some values in some rows replaced."""
    types = run.rows.schema
    columns = [
        pl.when(where).then(pl.lit(value, dtype=types[name])).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    ]
    return Run(run.rows.with_columns(columns), run.record)


def changed(run: Run, **record: object) -> Run:
    return Run(run.rows, run.record.model_copy(update=record))


def own_rows(run: Run, lens: str, fact: int | None = 0, variant: str = "orig") -> pl.DataFrame:
    kept = run.rows.filter(is_next=True, lens=lens, prompt_variant=variant, prompt_id="pos", fact_index=fact)
    return kept.sort("layer")


def layers_of(spec: dict, mark: str) -> list[dict]:
    """Layers of that mark, each with its rows."""
    return [
        {**layer, "rows": list(spec["datasets"][layer["data"]["name"]])}
        for layer in spec["layer"]
        if layer["mark"]["type"] == mark
    ]


def drawn(spec: dict) -> dict[str, dict[float, float | None]]:
    """Values by place on the horizontal axis, of each line."""
    return {layer["rows"][0]["series"]: {r["x"]: r["y"] for r in layer["rows"]} for layer in layers_of(spec, "line")}


def rule_labels(spec: dict) -> dict[str, float]:
    """Places of the milestones' labels."""
    texts = [layer for layer in layers_of(spec, "text") if layer["mark"].get("style") == "milestone"]
    return {row["label"]: row["x"] for layer in texts for row in layer["rows"]}


def boxes(svg: str, labels: set[str]) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each milestone's label, in the plot's own pixels."""
    found = {}
    for attributes, said in re.findall(r"<text ([^>]*)>([^<]*)</text>", svg):
        text = html.unescape(said)
        if text not in labels:
            continue
        x, y = map(float, re.search(r"translate\(([-\d.]+),([-\d.]+)\)", attributes).groups())
        size = float(re.search(r'font-size="([\d.]+)px"', attributes).group(1))
        wide = LETTER * size * len(text)
        left = x - wide if 'text-anchor="end"' in attributes else x
        found[text] = (left, y - size, left + wide, y)
    return found


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def every_chart(run: Run) -> list:
    """Whatever can be drawn of a run."""
    ends = [0, 1, run.record.model.n_layers]
    makers = [
        *(lambda name=name: trajectories(run, name) for name in METRICS),
        *(lambda name=name: lens_trust(run, name) for name in LENS_TRUST),
        *(lambda name=name: facts(run, name) for name in METRICS if len(METRICS[name].quantities) == 1),
        *(
            lambda colour=colour: grid(run, colour=colour, layers=ends)
            for colour in ("entropy", "probability", "rank", "kl")
        ),
        lambda: across_models([run]),
    ]
    found = []
    for make in makers:
        try:
            found.append(make())
        except RunError:
            continue
    return found


# Values


@pytest.mark.parametrize("metric", ["entropy_bits", "kl_to_final_bits", "answer_rank", "p_answer", "cos_to_final"])
def test_a_line_for_each_lens_holds_the_values_of_its_rows_to_six_digits(run, metric):
    lines = drawn(trajectories(run, metric).vega_lite())
    assert sorted(lines) == sorted(["logit", "next_norm", "raw", "tuned", "prism"])
    for lens, values in lines.items():
        due = dict(own_rows(run, lens).select("layer", metric).iter_rows())
        assert values.keys() == due.keys()
        assert list(values.values()) == pytest.approx(list(due.values()), rel=1e-5, abs=0)


def test_the_tuned_lens_begins_at_layer_1_where_its_rows_begin(run):
    assert min(drawn(trajectories(run, "entropy_bits").vega_lite())["tuned"]) == 1


def test_the_table_keeps_every_digit(run):
    table = trajectories(run, "entropy_bits").table.filter(lens="raw")
    assert table["value"].to_list() == own_rows(run, "raw")["entropy_bits"].to_list()
    assert table["depth"].to_list() == [layer / 12 for layer in range(13)]
    read = pl.read_csv(io.StringIO(table.write_csv()))
    assert read["value"].to_list() == table["value"].to_list()


@pytest.mark.parametrize("model", with_made("Qwen3-8B"))
def test_values_are_drawn_as_they_stand_in_the_table(folder, one, model):
    lines = drawn(trajectories(one, "entropy_bits").vega_lite())
    due = [float(cells["entropy"]) for cells in primary_cells(folder, model)]
    assert list(lines["next_norm"].values()) == pytest.approx(due, rel=1e-5, abs=1e-9)


def test_over_depth_every_place_is_the_share_of_the_layers(run):
    spec = trajectories(run, "entropy_bits", over="depth").vega_lite()
    assert list(drawn(spec)["logit"]) == pytest.approx([layer / 12 for layer in range(13)], rel=1e-5)
    assert rule_labels(spec) == pytest.approx({"rank 1, ahead ×2 · L4": 4 / 12, "KL ≤ 1 · L5": 5 / 12}, rel=1e-5)


def test_a_missing_value_breaks_the_line_and_is_neither_nan_nor_zero(run):
    holed = with_values(run, (pl.col("layer") == 7) & (pl.col("lens") == "raw"), entropy_bits=None)
    spec = trajectories(holed, "entropy_bits").vega_lite()
    assert drawn(spec)["raw"][7] is None
    assert drawn(spec)["raw"][8] is not None
    assert "NaN" not in json.dumps(spec)


def test_a_missing_row_breaks_the_line_too(run):
    holed = Run(run.rows.filter(~((pl.col("layer") == 7) & (pl.col("lens") == "raw"))), run.record)
    assert drawn(trajectories(holed, "entropy_bits").vega_lite())["raw"][7] is None


def test_a_lens_without_a_value_is_left_out_with_the_reason(run):
    spec = trajectories(with_values(run, pl.col("lens") == "prism", entropy_bits=None), "entropy_bits")
    assert "prism" not in drawn(spec.vega_lite())
    assert "Left out: prism, no value at any layer." in spec.description
    assert spec.table.filter(lens="prism")["value"].null_count() == 13


def test_a_metric_that_no_lens_has_is_refused_in_one_sentence(run):
    with pytest.raises(RunError, match=r"^This run has no entropy \(bits\) of Germany→Berlin .*\.$"):
        trajectories(with_values(run, pl.lit(True), entropy_bits=None), "entropy_bits")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda run: trajectories(run, "beauty"), "There is no chart of 'beauty'.*choose from entropy_bits"),
        (lambda run: trajectories(run, "entropy_bits", lenses=["zoom"]), "has no lens zoom; choose from logit"),
        (lambda run: trajectories(run, "entropy_bits", prompt=PromptKey(99, "pos", "orig")), "no rows of pos 99"),
        (lambda run: facts(run, "masses"), "several quantities; choose one of p_answer, echo_mass_prompt"),
        (lambda run: facts(run, "entropy_bits", "zoom"), "no lens 'zoom'"),
        (lambda run: lens_trust(run, "faith"), "no chart 'faith' of lens trust"),
        (lambda run: grid(run, colour="mauve"), "no colour 'mauve'"),
        (lambda run: grid(run, lens="zoom"), "under lens 'zoom'"),
        (lambda run: across_models([]), "no runs"),
    ],
)
def test_what_is_not_there_is_refused_with_the_choices(run, make, said):
    with pytest.raises(RunError, match=said):
        make(run)


def test_a_chart_of_several_quantities_shows_the_headline_lens_alone_unless_asked(run):
    alone = trajectories(run, "masses").vega_lite()
    due = own_rows(run, "logit")
    assert list(drawn(alone)) == ["answer", "echo of the prompt"]
    assert list(drawn(alone)["echo of the prompt"].values()) == pytest.approx(
        due["echo_mass_prompt"].to_list(), rel=1e-5
    )
    both = trajectories(run, "masses", lenses=["raw", "logit"]).vega_lite()
    pairs = {(layer["rows"][0]["series"], layer["rows"][0]["group"]) for layer in layers_of(both, "line")}
    assert pairs == {(lens, what) for lens in ("logit", "raw") for what in ("answer", "echo of the prompt")}


@pytest.mark.parametrize("model", ["bundled", *with_made("gemma-2-9b", made=("echo", "mute"))])
def test_the_dashed_line_is_the_models_own_entropy(run, request, model):
    bundled = model == "bundled"
    one, lens = (run, "logit") if bundled else (run_at(folder_of(model, request), model), "next_norm")
    spec = trajectories(one, "entropy_bits").vega_lite()
    (line,) = [layer for layer in layers_of(spec, "rule") if layer["mark"].get("style") == "reference"]
    assert line["rows"] == [{"y": pytest.approx(own_rows(one, lens)["teacher_entropy_bits"][0], rel=1e-5)}]


def test_another_prompt_has_its_own_values_and_no_reference_of_the_first(run):
    italy = next(
        asked for asked in run.verdict.curves.passes if asked.fact_index == 2 and asked.prompt_variant == "orig"
    )
    found = trajectories(run, "p_answer", prompt=italy)
    assert list(drawn(found.vega_lite())["logit"].values()) == pytest.approx(
        own_rows(run, "logit", fact=2)["p_answer"].to_list(), rel=1e-5
    )
    assert found.table["reference"].null_count() == found.table.height
    assert "Italy" in found.description


# Milestones


@pytest.mark.parametrize("model", with_made(*PUBLISHED, made=("fickle", "mute", "reference")))
def test_rules_stand_at_the_published_layers(folder, one, model):
    stated = json.loads((folder / f"output-{model}.json").read_text(encoding="utf-8"))["diagnostics"]
    due: dict[str, float] = {}
    for name, label in (("L_copy", "copy"), ("L_semantic", "rank 1"), ("first_kl_below_1.0", "KL ≤ 1")):
        if stated[name] is not None:
            due[label] = stated[name]
    labels = rule_labels(trajectories(one, "entropy_bits").vega_lite())
    found = {
        part: x for text, x in labels.items() for part in text.rsplit(" · L", 1)[0].split(", ") if "ahead" not in part
    }
    assert found == due
    assert all(text.endswith(f" · L{x}") for text, x in labels.items())


def test_one_layer_has_one_label_and_the_weaker_word_goes_unsaid(run):
    assert rule_labels(trajectories(run, "answer_rank").vega_lite()) == {"rank 1 kept,": 4, "ahead ×2 · L4": 4}
    assert list(rule_labels(trajectories(run, "masses").vega_lite())) == ["answer > echo · L4", "rank 1, ahead ×2,"]


def test_where_the_identity_check_failed_only_ranks_have_rules(run):
    identity = run.record.identity.model_copy(update={"ok": False, "kl_bits": 3.0, "fitted_softcap": 30.0})
    mended = changed(run, identity=identity)
    assert list(rule_labels(trajectories(mended, "entropy_bits").vega_lite())) == ["rank 1 · L4"]
    assert "do not quote" in trajectories(mended, "entropy_bits").description
    assert "do not quote" not in trajectories(mended, "answer_rank").description
    broken = changed(run, identity=identity.model_copy(update={"fitted_softcap": None}))
    assert rule_labels(trajectories(broken, "answer_rank").vega_lite()) == {}


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize(
    ("model", "metric"),
    [
        *((model, "answer_rank") for model in with_made(PUBLISHED[0])),
        *(slow(model, "answer_rank") for model in with_made(*PUBLISHED[1:], made=())),
        ("echo", "masses"),
        *(slow(model, "masses") for model in with_made("gemma-2-9b", "Mistral-7B-v0.1", made=())),
        ("reference", "cosines"),
        *(slow(model, "cosines") for model in with_made("Qwen3-8B", made=())),
        *(("bundled", metric) for metric in ("entropy_bits", "answer_rank", "masses", "cosines")),
    ],
)
def test_labels_of_rules_never_lie_on_each_other(request, metric, width, model):
    one = request.getfixturevalue("run") if model == "bundled" else run_at(folder_of(model, request), model)
    spec = trajectories(one, metric)
    labels = rule_labels(spec.vega_lite())
    found = boxes(spec.svg(width=width), set(labels))
    assert found.keys() == labels.keys()
    assert found, "a chart without labels proves nothing"
    assert not [pair for pair in combinations(found, 2) if overlap(found[pair[0]], found[pair[1]])]
    assert all(bottom < 0 for _, _, _, bottom in found.values()), "above the plot, so that no label covers data"
    assert all(left >= -60 and right <= width + 8 for left, _, right, _ in found.values())


def test_many_rules_side_by_side_have_a_line_each():
    placed = place([Rule(layer, ("one", "two")) for layer in range(0, 37, 3)], 36)
    assert sorted(one.row for one in placed) == list(range(13))
    assert {one.align for one in placed if one.rule.layer < 10} == {"left"}
    assert {one.align for one in placed if one.rule.layer > 26} == {"right"}


def test_a_rule_ends_at_its_label_so_that_early_ones_cross_no_other_early_label():
    early, late = place([Rule(2, ("a",)), Rule(5, ("b",)), Rule(30, ("c",)), Rule(35, ("d",))], 36), None
    rows = {one.rule.layer: one.row for one in early}
    assert late is None and rows[2] > rows[5] > rows[35] > rows[30]


# Facts


def test_median_and_band_over_facts_are_the_quartiles_of_their_rows(run):
    found = facts(run, "kl_to_final_bits")
    values = np.array([own_rows(run, "logit", fact=k)["kl_to_final_bits"].to_list() for k in range(5)])
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    (band,) = layers_of(found.vega_lite(), "area")
    for key, due in (("low", low), ("y", middle), ("high", high)):
        assert [row[key] for row in band["rows"]] == pytest.approx(due.tolist(), rel=1e-5, abs=1e-300)
    (thin, _) = layers_of(found.vega_lite(), "line")
    assert len({row["fact"] for row in thin["rows"]}) == 5
    assert found.table.height == 5 * 13
    assert found.table["median"][:13].to_list() == pytest.approx(middle.tolist(), rel=1e-12)


def test_milestones_over_facts_are_medians_of_those_that_have_one(run):
    late = with_values(
        run, (pl.col("fact_index") == 3) & (pl.col("layer") < 9), answer_rank=7, is_answer=False, answer_logit_gap=None
    )
    onsets = []
    for k in range(5):
        layers = own_rows(late, "logit", fact=k).filter(pl.col("answer_rank") == 1)["layer"]
        onsets.append(layers.min())
    labels = rule_labels(facts(late, "entropy_bits").vega_lite())
    (at,) = [x for label, x in labels.items() if "rank 1" in label]
    assert max(onsets) == 9 and at == statistics.median(onsets)


@pytest.mark.parametrize("model", with_made("Qwen3-8B", made=("echo",)))
def test_a_run_of_one_fact_has_no_band(one):
    with pytest.raises(RunError, match="for 1 of 1 facts, and a band needs two; use trajectories"):
        facts(one, "entropy_bits")


# Lens trust


def test_divergences_from_the_raw_lens_are_those_of_the_headline_rows(run):
    spec = lens_trust(run, "kl_norm_vs_raw_bits")
    lines = drawn(spec.vega_lite())
    due = own_rows(run, "logit")
    assert list(lines["KL(headline || raw)"].values()) == pytest.approx(due["kl_norm_vs_raw_bits"].to_list(), rel=1e-5)
    assert list(lines["KL(raw || headline)"].values()) == pytest.approx(due["kl_raw_to_norm_bits"].to_list(), rel=1e-5)
    above = sum(value >= 1 for value in due["kl_norm_vs_raw_bits"])
    assert f"at or above 1 bit at {above} of 13 layers" in spec.description


def test_shared_top_tokens_have_a_line_for_every_lens_but_raw(run):
    lines = drawn(lens_trust(run, "topk_jaccard_raw_norm@50").vega_lite())
    assert list(lines) == ["logit", "next_norm", "tuned", "prism"]
    for lens, values in lines.items():
        due = own_rows(run, lens)["topk_jaccard_raw_norm@50"].to_list()
        assert list(values.values()) == pytest.approx(due, rel=1e-5)


@pytest.mark.parametrize("model", with_made(*PUBLISHED[:3]))
def test_the_artefact_score_of_a_published_run_stands_in_its_chart(folder, one, model):
    stated = json.loads((folder / f"output-{model}.json").read_text(encoding="utf-8"))["diagnostics"]
    summary = stated["raw_lens_full"]
    found = lens_trust(one, "kl_norm_vs_raw_bits")
    text = " ".join(found.vega_lite()["title"]["subtitle"])
    assert f"Artefact score {summary['score']['lens_artifact_score']:.2f} of 1, {summary['score']['tier']}" in text
    assert ("Left out: KL(raw || headline)" in found.description) is (model not in MADE)


def test_held_out_divergences_are_those_of_the_lens_records(run):
    by_kind = {one.kind: (one.tuned or one.prism).held_out for one in run.record.measured.fitted_lenses}
    lines = drawn(lens_trust(run, "held_out_bits").vega_lite())
    assert list(lines["tuned"].values()) == pytest.approx(by_kind["tuned"].lens_bits, rel=1e-5)
    assert list(lines["prism"].values()) == pytest.approx(by_kind["prism"].lens_bits, rel=1e-5)
    assert list(lines["logit"].values()) == pytest.approx(by_kind["tuned"].logit_bits, rel=1e-5)


def test_the_decoding_points_gap_is_the_distance_of_both_onsets_fact_by_fact(run):
    moved = with_values(
        run,
        (pl.col("lens") == "next_norm") & (pl.col("fact_index") == 1) & (pl.col("layer") < 7),
        answer_rank=3, is_answer=False,
    )  # fmt: skip
    found = lens_trust(moved, "decoding_point")
    onset = {
        (lens, k): own_rows(moved, lens, fact=k).filter(pl.col("answer_rank") == 1)["layer"].min()
        for lens in ("logit", "next_norm")
        for k in range(5)
    }
    assert onset["next_norm", 1] == 7
    gaps = [onset["next_norm", k] - onset["logit", k] for k in range(5)]
    assert f"from {min(gaps)} to +{max(gaps)}; 5 facts" in found.description
    assert found.table.filter(lens="next_norm")["layer"].to_list() == [onset["next_norm", k] for k in range(5)]


@pytest.mark.parametrize("name", ["js_divergence_bits", "l1_prob_diff", "decoding_point", "held_out_bits"])
def test_what_a_published_run_was_not_audited_for_is_said_in_one_sentence(published, name):
    with pytest.raises(RunError) as caught:
        lens_trust(published["Qwen3-8B"], name)
    assert re.fullmatch(r"[^.]+[^.\d]\.", str(caught.value))


# Across models


def test_depths_across_models_are_the_published_layers_over_the_number_of_blocks(several, request):
    found = across_models(list(several.values())).table
    for model, one in several.items():
        stated = json.loads((folder_of(model, request) / f"output-{model}.json").read_text(encoding="utf-8"))[
            "diagnostics"
        ]
        own = found.filter(model=one.record.model.id)
        for name in ("L_copy", "L_semantic", "first_kl_below_1.0"):
            (row,) = own.filter(milestone=name).to_dicts()
            layer = stated[name]
            assert row["layer"] == layer
            assert row["depth"] == (None if layer is None else layer / one.record.model.n_layers)
            assert (row["absent"] is None) == (layer is not None)


def test_models_stand_in_the_order_in_which_the_answer_is_on_top_for_good(several):
    (names,) = layers_of(across_models(list(several.values())).vega_lite(), "text")
    settled = {}
    for name, one in several.items():
        layer = one.milestones.of()["L_semantic_stable"].layer
        settled[name] = 2.0 if layer is None else layer / one.record.model.n_layers
    assert [row["name"] for row in names["rows"]] == sorted(settled, key=lambda name: (settled[name], name))
    assert len(set(settled.values())) > 1


def test_a_run_under_another_protocol_is_drawn_open_and_says_why(run, several):
    found = across_models([*several.values(), run])
    solid, hollow = layers_of(found.vega_lite(), "point")
    assert solid["mark"]["filled"] and not hollow["mark"]["filled"]
    assert {row["model"] for row in hollow["rows"]} == {"reference"}
    assert all(
        re.match(r"no: protocol standard \d under logit, but published", r["comparable"]) for r in hollow["rows"]
    )
    assert {row["comparable"] for row in solid["rows"]} == {"yes"}
    table = found.table.filter(model="layerscope/reference")
    assert not table["comparable"].any() and "protocol standard" in table["reason"][0]
    assert "Open marks" in " ".join(found.vega_lite()["title"]["subtitle"])


def test_runs_of_one_kind_are_all_comparable(several):
    kept = [one for model, one in several.items() if not model.startswith(("gemma", "mute"))]
    assert obstacles(kept) == [{}] * len(kept)
    assert across_models(kept).table["comparable"].all()


def test_a_divergence_does_not_compare_where_lens_and_head_differ(published):
    gemma = published["gemma-2-9b"]
    assert reason_against(gemma, "first_kl_below_1.0", {}) == "lens and head differ at the last layer"
    assert reason_against(gemma, "L_copy", {}) is None


def test_a_failed_identity_check_keeps_ranks_where_a_softcap_explains_it(run):
    identity = run.record.identity.model_copy(update={"ok": False, "kl_bits": 3.0, "fitted_softcap": 30.0})
    failed = changed(run, identity=identity)
    assert reason_against(failed, "L_semantic", {}) is None
    assert reason_against(failed, "L_semantic_strong", {}) == "the last layer, decoded, is not the model's own output"


def test_bars_over_facts_run_from_quartile_to_quartile(run):
    late = with_values(
        run, (pl.col("fact_index") >= 3) & (pl.col("layer") < 9), answer_rank=7, is_answer=False, answer_logit_gap=None
    )
    onsets = [own_rows(late, "logit", fact=k).filter(pl.col("answer_rank") == 1)["layer"].min() for k in range(5)]
    low, middle, high = np.quantile(onsets, (0.25, 0.5, 0.75))
    (row,) = across_models([late]).table.filter(milestone="L_semantic").to_dicts()
    assert (row["p25_layer"], row["layer"], row["p75_layer"]) == (low, middle, high)
    spans = [layer for layer in layers_of(across_models([late]).vega_lite(), "rule") if "x2" in layer["encoding"]]
    (span,) = [r for r in spans[0]["rows"] if r["milestone"] == "first on top"]
    assert (span["x"], span["x2"]) == pytest.approx((low / 12, high / 12), rel=1e-5)


def test_one_model_twice_has_two_names(run):
    table = across_models([run, run])
    (names,) = layers_of(table.vega_lite(), "text")
    assert len({row["name"] for row in names["rows"]}) == 2


# The grid


def test_cells_hold_token_and_value_of_their_row(run):
    spec = grid(run, "tuned", "kl").vega_lite()
    (cells,) = layers_of(spec, "rect")
    due = {
        (row["layer"], row["position"]): row
        for row in run.rows.filter(lens="tuned", fact_index=0, prompt_variant="orig").iter_rows(named=True)
    }
    assert {(c["layer"], c["position"]) for c in cells["rows"]} == due.keys()
    for cell in cells["rows"]:
        row = due[cell["layer"], cell["position"]]
        assert cell["value"] == pytest.approx(row["kl_to_final_bits"], rel=1e-5)
        assert cell["top"] == row["top1"].replace(" ", "␣").replace("\n", "↵")
        assert cell["led"] == (row["answer_rank"] == 1)


def test_layers_and_positions_can_be_chosen(run):
    found = grid(run, layers=[0, 6, 12], positions=[14, 15]).table
    assert found.select("layer", "position").rows() == [(k, p) for p in (14, 15) for k in (0, 6, 12)]


def test_hostile_tokens_are_written_out(run):
    where = (pl.col("layer") == 3) & (pl.col("position") == 2)
    nasty = "</script><b>\u2028\u202e\t"
    (cells,) = layers_of(grid(with_values(run, where, top1=nasty)).vega_lite(), "rect")
    (cell,) = [c for c in cells["rows"] if (c["layer"], c["position"]) == (3, 2)]
    assert cell["top"] == "</script><b>\\u2028\\u202e⇥"
    assert visible(" a\nb\x00é日") == "␣a↵b\\x00é日"


def test_text_in_cells_reads_on_every_colour_of_the_scale():
    assert all(contrast(ink(shade(k / 200)), shade(k / 200)) >= 4.5 for k in range(201))
    assert (shade(0.0), shade(1.0), shade(0.5)) == (VIRIDIS[0], VIRIDIS[-1], VIRIDIS[5])


# Words


def test_a_course_names_ends_and_the_extremes_between_them():
    said = course("raw", [(0, 3.0), (1, 9.5), (2, 0.25), (3, 4.0)], " bits")
    assert (
        said == "raw: 3 bits at layer 0, 4 bits at layer 3; lowest 0.25 bits at layer 2, highest 9.5 bits at layer 1."
    )
    assert course("raw", [(0, 3.0), (3, 1.0)], " bits") == "raw: 3 bits at layer 0, 1 bit at layer 3."
    assert course("raw", [(2, 7)]) == "raw: 7 at layer 2."
    assert (listed(["a"]), listed(["a", "b", "c"])) == ("a", "a, b and c")
    assert (measured(1, " bits"), measured(12345, ""), measured(0.0001234, "")) == ("1 bit", "12,345", "0.000123")


@pytest.mark.parametrize("model", with_made("Qwen3-8B", made=("reference",)))
def test_the_description_tells_what_a_reader_of_the_tables_would_say(folder, one, model):
    own = primary_cells(folder, model)
    entropies = [float(cells["entropy"]) for cells in own]
    said = trajectories(one, "entropy_bits").description
    least, last = min(entropies), len(own) - 1
    near = next(cells["layer"] for cells in own if float(cells["kl_to_final_bits"]) <= 1)
    assert least == entropies[-1] or f"lowest {least:.3g} bits at layer {entropies.index(least)}" in said
    assert f"next_norm: {entropies[0]:.3g} bits at layer 0, {entropies[-1]:.3g} bits at layer {last}" in said
    assert f"KL ≤ 1 at layer {near}" in said
    first = next((cells["layer"] for cells in own if cells["answer_rank"] == "1"), None)
    assert (f"ahead at layer {first}" in said or f"ahead ×2 at layer {first}" in said) is (first is not None)
    absent = [cells["copy_collapse"] + cells["copy_soft_k1@0.5"] for cells in own]
    assert set(absent) == {"FalseFalse"} and "none of copy and soft copy" in said


# Specifications


@pytest.mark.slow
def test_every_chart_of_the_bundled_run_draws_without_a_warning(charts, capfd):
    found = charts
    assert len(found) == len(METRICS) + len(LENS_TRUST) + 9 + 4 + 1
    assert len({one.name for one in found}) == len(found)
    for one in found:
        wide = None if one.name.startswith("grid") else 640
        assert one.title in html.unescape(one.svg(width=wide))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("model", ["echo", *slowly(*PUBLISHED[:2])])
def test_every_chart_of_a_published_run_draws(one, capfd):
    found = every_chart(one)
    assert "trajectories-entropy_bits" in {one.name for one in found}
    for chart in found:
        assert chart.svg(width=640).startswith("<svg")
        assert chart.table.height > 0
    assert capfd.readouterr().err == ""


def test_specifications_hold_no_nan_no_formula_and_no_address(charts):
    for one in charts:
        spec = one.vega_lite()
        text = json.dumps(spec, allow_nan=False)
        assert '"expr"' not in text and '"transform"' not in text and '"calculate"' not in text
        assert re.findall(r"https?://[^\"]*", text) == [spec["$schema"]]


def test_data_is_kept_once_under_a_name_and_without_needless_digits(run):
    spec = trajectories(run, "entropy_bits").vega_lite()
    assert all(layer["data"].keys() == {"name"} for layer in spec["layer"])
    numbers = [v for rows in spec["datasets"].values() for row in rows for v in row.values() if isinstance(v, float)]
    assert numbers and all(value == float(f"{value:.6g}") for value in numbers)
    assert len(json.dumps(spec)) < 20_000


def test_marks_leave_the_colours_of_text_to_the_page(run):
    spec = trajectories(run, "entropy_bits").vega_lite()
    assert all("color" not in layer["mark"] for kind in ("text", "rule") for layer in layers_of(spec, kind))


def test_a_picture_has_the_ground_of_its_configuration_and_its_words_for_those_who_do_not_see_it(run):
    found = trajectories(run, "answer_rank")
    assert LIGHT_GROUND in found.svg() and DARK_GROUND in found.svg(dark=True)
    assert found.vega_lite()["description"] == found.description


def test_a_width_can_be_given_for_notebooks(run):
    found = trajectories(run, "entropy_bits")
    assert found.vega_lite()["width"] == "container"
    assert found.vega_lite(width=300)["width"] == 300
    assert found.png(width=200, scale=1.0).startswith(b"\x89PNG")


# Looks


def test_every_colour_of_a_series_stands_out_from_white_and_from_near_black():
    looks = [*LENSES.values(), *SERIES]
    assert all(contrast(look.colour, ground) >= 3 for look in looks for ground in (LIGHT_GROUND, DARK_GROUND))
    assert contrast("#ffffff", "#000000") == pytest.approx(21.0)


def test_lenses_and_series_differ_in_colour_dash_and_shape_alike():
    for looks in (list(LENSES.values()), list(SERIES)):
        for part in ("colour", "dash", "shape"):
            assert len({getattr(look, part) for look in looks}) == len(looks)


@pytest.mark.parametrize("dark", [False, True])
def test_text_of_either_configuration_reads_on_its_ground(dark):
    found = config(dark)
    ground = found["background"]
    text = [found["title"]["color"], found["title"]["subtitleColor"], found["axis"]["labelColor"]]
    text += [found["axis"]["titleColor"], found["legend"]["labelColor"], found["style"]["milestone"]["color"]]
    assert all(contrast(colour, ground) >= 4.5 for colour in text)


def test_metrics_name_columns_of_the_rows(run):
    assert {quantity.column for name in METRICS for quantity in metric_of(name).quantities} <= set(run.rows.columns)


def test_reports_are_read_without_loading_a_drawing_library():
    code = (
        "import sys, layerscope.report, layerscope.report.cited.evidence\n"
        "assert not {'altair', 'vl_convert'} & set(sys.modules)\n"
        "import layerscope.view.charts\n"
        "assert 'altair' in sys.modules and not {'torch', 'vl_convert'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
