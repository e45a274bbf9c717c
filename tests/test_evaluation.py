"""The evaluation report: the published figures are in it, its sentences hold, and its citations show what they say."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

import layerscope
from layerscope.published.layout import Dialect
from layerscope.record.parts import IdentityRecord, LayerFlag
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import (
    Bullets,
    Checklist,
    Paragraph,
    Part,
    Report,
    Row,
    Section,
    Strong,
    Table,
    Text,
)
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.markdown import markdown
from layerscope.report.cited.sources import Sources
from layerscope.report.evaluation import evaluation
from layerscope.report.evaluation.lenses import fitted
from layerscope.report.evaluation.overview import fingerprint
from layerscope.report.evaluation.quotes import Quotes
from layerscope.run import Run
from layerscope.run_folder import save_run
from made_sweep import FITTED, MADE
from probed import probed
from properties import slow
from published import SHARED
from published_archives import folder_of, slowly, with_made

STEMS = {
    "Mistral-7B-v0.1": "Mistral-7B-v0.1", "Mistral-7B": "Mistral-7B-v0.1",
    "Meta-Llama-3-8B": "Meta-Llama-3-8B", "Llama-3-8B": "Meta-Llama-3-8B",
    "Qwen3-8B": "Qwen3-8B", "gemma-2-9b": "gemma-2-9b", "Gemma-2-9B": "gemma-2-9b",
    "Qwen3-14B": "Qwen3-14B", "gemma-2-27b": "gemma-2-27b", "Gemma-2-27B": "gemma-2-27b",
    "Yi-34B": "Yi-34B", "Meta-Llama-3-70B": "Meta-Llama-3-70B", "Llama-3-70B": "Meta-Llama-3-70B",
    "Mistral-Small-24B": "Mistral-Small-24B-Base-2501", "Mistral-Small": "Mistral-Small-24B-Base-2501",
    "Qwen2.5-72B": "Qwen2.5-72B",
}  # fmt: skip
MODELS = sorted(set(STEMS.values()))
RUNS = ("run-20251004-1804", "run-20250928-1722")
LENS_ROWS = {"entropy_bits", "p_top1", "p_answer", "answer_mass", "echo_mass_prompt", "rest_mass", "max_control_margin",
             "topk_prompt_mass@50", "entropy_gap_bits_p25", "entropy_gap_bits_p50", "entropy_gap_bits_p75"}  # fmt: skip
"""Names of probabilities and entropies of lens rows."""


@cache
def evidence_of(path: Path, model: str | None = None) -> Evidence:
    return Evidence.of(path, model)


@cache
def report_of(path: Path, model: str | None = None) -> Report:
    return evaluation(evidence_of(path, model))


def every_run(made_sweep: Path) -> Iterator[tuple[Path, str | None]]:
    """The self-made models, and the published ones where they are present."""
    yield from ((made_sweep, stem) for stem in MADE)
    if not SHARED.is_dir():
        return
    reference = SHARED / "reference"
    yield from ((reference / run, stem) for run in RUNS for stem in MODELS)
    yield reference / "run-20250921-1713", "Qwen2.5-72B"
    yield reference / "tiny-qwen3" / "published", None


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours over five facts, with its published files beside it."""
    folder = tmp_path_factory.mktemp("own") / "run"
    save_run(probed("capitals"), folder, published=Dialect.EXTENDED)
    return folder


def sections_of(report: Report) -> Iterator[Section]:
    def walk(section: Section) -> Iterator[Section]:
        yield section
        for inner in section.sections:
            yield from walk(inner)

    for section in report.sections:
        yield from walk(section)


def section(report: Report, title: str) -> Section:
    return next(one for one in sections_of(report) if one.title == title)


def shown(parts: tuple[Part, ...]) -> Iterator[Claim]:
    """Claims whose values print."""
    for part in parts:
        if isinstance(part, Claim):
            yield part
        elif isinstance(part, Strong):
            yield from shown(part.parts)


def words(parts: tuple[Part, ...]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


# Figures


def tables_of(text: str, chapter: str) -> list[dict[str, list[str]]]:
    """The tables of a chapter of the page of models: cells by model."""
    part = text[text.index(f"### {chapter} ") :]
    part = part[: part.index("\n### ", 5) if "\n### " in part[5:] else None]
    found, rows = [], {}
    for line in [*part.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0] in STEMS:
                rows[STEMS[cells[0]]] = cells[1:]
        elif rows:
            found.append(rows)
            rows = {}
    return found


def same(printed: str, value: object) -> bool:
    """Whether a value is the printed one, at its precision."""
    printed = printed.strip().strip("*")
    if printed in ("null", "none", "none run", "n.a."):
        return value is None or value == "none"
    if isinstance(value, bool | str):
        return printed == value or printed == {True: "yes", False: "no"}.get(value)
    if value is None:
        return False
    mantissa, _, exponent = printed.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    half = 0.505 * 10 ** (int(exponent or 0) - decimals)
    return abs(float(printed) - value) <= half


def split(*cells: str) -> list[str]:
    """The single figures of cells that hold several."""
    return [figure for cell in cells for figure in re.findall(r"[-+]?\d[\d.]*(?:e[-+]?\d+)?|null|none run|none|yes|no\b|low|medium|high|raw|tuned", cell)]  # fmt: skip  # noqa: E501


class Figures:
    """The claims of a report by name."""

    def __init__(self, report: Report, headline: str) -> None:
        self.report, self.headline = report, headline

    def all(self, name: str, where: str | None = None) -> list[Claim]:
        claims = self.report.claims if where is None else claims_in(section(self.report, where))
        return [one for one in claims if one.name == name and one.lens in (None, self.headline)]

    def values(self, name: str, where: str | None = None) -> list[object]:
        return [one.value for one in self.all(name, where)]

    def has(self, name: str, printed: str, where: str | None = None) -> None:
        found = self.values(name, where)
        assert any(same(printed, value) for value in found), (name, printed, found)


def claims_in(one: Section) -> list[Claim]:
    return Report("", Paragraph(()), (one,)).claims


def check(figures: Figures, printed: list[str], names: list[tuple[str, str | None]]) -> None:
    assert len(printed) == len(names), (printed, names)
    for text, (name, where) in zip(printed, names, strict=True):
        figures.has(name, text, where)


def milestones_2_1(figures: Figures, cells: list[str]) -> None:
    gates, distance = "Rank and gates", "Distance to the output"
    check(figures, split(cells[0], *cells[1:3], cells[6], cells[7]), [
        ("L_semantic", gates), ("L_semantic_frac", gates), ("first_rank_le_10", gates), ("first_rank_le_5", gates),
        ("first_rank_le_1", gates), ("first_kl_below_1.0", distance), ("first_kl_below_0.5", distance),
        ("cos_ge_0.2", distance), ("cos_ge_0.4", distance), ("cos_ge_0.6", distance),
        ("first_p_top1_gt_0.30", distance), ("first_p_top1_gt_0.60", distance),
    ])  # fmt: skip
    check(figures, split(*cells[3:6]), [(name, "Copying") for name in ("L_copy", "L_copy_H", "L_copy_soft_k1")])


def head_2_2(figures: Figures, cells: list[str]) -> None:
    calibration, rows = "Head calibration", "Distance to the output"
    check(figures, split(*cells[:3]), [(name, calibration) for name in ("kl_to_final_bits", "temp_est",
          "kl_after_temp_bits")])  # fmt: skip
    check(figures, split(*cells[3:]), [
        ("p_top1", rows), ("p_top1_model", rows), ("entropy_bits", rows), ("entropy", rows), ("entropy_bits", rows),
        ("p_answer", rows), ("kl_to_final_bits", rows), ("cos_to_final", rows),
    ])  # fmt: skip


def raw_2_3(figures: Figures, cells: list[str]) -> None:
    gates, raw = "Rank and gates", "Raw lens against norm lens"
    names = [("L_semantic_confirmed", gates), ("confirmed_source", gates), ("L_semantic_raw", gates),
             ("L_semantic_tuned", gates), ("lens_artifact_risk", raw), ("max_kl_norm_vs_raw_bits", raw),
             ("first_norm_only_semantic_layer", raw), ("pct_layers_kl_ge_1.0", raw), ("pct_layers_kl_ge_0.5", raw),
             ("n_norm_only_semantics_layers", raw), ("earliest_norm_only_semantic", raw),
             ("max_kl_norm_vs_raw_bits", raw), ("lens_artifact_score", raw), ("tier", raw)]  # fmt: skip
    check(figures, split(*cells), names)


def surface_2_4(figures: Figures, cells: list[str]) -> None:
    place, wording, control = "Surface, geometry, coverage", "Ablation", "Negative control"
    surface, geometry, decay, ablation, margin = (split(cell) for cell in cells[:5])
    check(figures, surface, [(n, place) for n in ("L_surface_to_meaning", "answer_mass", "echo_mass_prompt")])
    check(figures, geometry, [(n, place) for n in ("L_geom", "cos_to_answer", "cos_to_prompt_max")][: len(geometry)])
    check(figures, decay, [(n, place) for n in ("L_topk_decay", "topk_prompt_mass@50")])
    check(figures, ablation, [(n, wording) for n in ("L_sem_nf", "delta_L_sem")])
    check(figures, margin, [(n, control) for n in ("first_control_margin_pos", "max_control_margin")])


def strong_2_4(figures: Figures, cells: list[str]) -> None:
    names = ("first_control_strong_pos", "max_control_top2_logit_gap")
    printed = split(cells[5])
    check(figures, printed, [(name, "Negative control") for name in names[: len(printed)]])


def gates_2_5(figures: Figures, cells: list[str]) -> None:
    gates, drift = "Rank and gates", "Entropy drift against the model"
    named = ["L_semantic_run2", "L_semantic_margin_ok", "margin_ok_at_L_semantic", "gap_at_L_semantic",
             "L_semantic_top2_ok", "gap_ge_1.0", "L_semantic_strong", "L_semantic_strong_run2"]  # fmt: skip
    check(figures, split(*cells[:7]), [(name, gates) for name in named])
    figures.has("gap_ge_0.5", split(cells[3])[0], gates)
    drifts = re.findall(r"-?\d+\.\d+", cells[7])
    check(figures, drifts, [(f"entropy_gap_bits_{p}", drift) for p in ("p25", "p50", "p75")])
    figures.has("n_spikes", split(cells[8])[-1], "Method sanity-check")


CHECKS: list[tuple[str, Callable[[Figures, list[str]], None], tuple[str, ...]]] = [
    ("2.1", milestones_2_1, RUNS),
    ("2.2", head_2_2, RUNS),
    ("2.3", raw_2_3, RUNS[:1]),
    ("2.4", surface_2_4, RUNS),
    ("2.4", strong_2_4, RUNS[:1]),
    ("2.5", gates_2_5, RUNS[:1]),
]


@pytest.mark.parametrize("stem", MODELS)
@pytest.mark.parametrize("run", [RUNS[0], *map(slow, RUNS[1:])])
def test_every_published_figure_is_in_the_report(shared, run, stem):
    text = (shared / "spec" / "models.md").read_text(encoding="utf-8")
    path = shared / "reference" / run
    figures = Figures(report_of(path, stem), evidence_of(path, stem).headline)
    for chapter, compare, runs in CHECKS:
        if run in runs:
            compare(figures, tables_of(text, chapter)[0][stem])


@pytest.mark.parametrize("stem", MODELS)
def test_the_published_guidance_is_in_the_report(shared, stem):
    report = report_of(shared / "reference" / RUNS[0], stem)
    text = " ".join(
        (shared / "spec" / "models.md").read_text(encoding="utf-8").split("### 2.6")[1].split("###")[0].split()
    )
    assert "Every model has `normalization_spike`" in text
    names = {one.text for one in reason_names(report)}
    assert "normalization_spike" in names
    high = {"norm_only_semantics_window", "high_lens_artifact_risk", "high_lens_artifact_score"}
    due = {
        "Meta-Llama-3-8B": high - {"high_lens_artifact_score"}, "Qwen3-8B": high - {"norm_only_semantics_window"},
        "Qwen3-14B": high - {"norm_only_semantics_window"}, "Meta-Llama-3-70B": {"norm_only_semantics_window"},
        "Mistral-Small-24B-Base-2501": set(),
    }.get(stem, high)  # fmt: skip
    warned = {"warn_high_last_layer_kl"} if stem.startswith("gemma") else set()
    assert names >= due | warned
    assert not (high | {"warn_high_last_layer_kl"}) - due - warned & names
    claims = {one.name: one.value for one in claims_in(section(report, "Guidance"))}
    tuned = {"Mistral-7B-v0.1", "Meta-Llama-3-8B", "Qwen3-8B", "Qwen3-14B", "Yi-34B", "Mistral-Small-24B-Base-2501"}
    assert claims["preferred_lens_for_reporting"] == ("tuned" if stem in tuned else "norm")
    assert claims["use_confirmed_semantics"] is (stem != "Qwen2.5-72B")


def reason_names(report: Report) -> list[Part]:
    table = next(one for one in section(report, "Guidance").blocks if isinstance(one, Table))
    return [line.cells[0][0] for line in table.rows]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("stem", MODELS)
def test_the_published_temperatures_are_in_the_report(shared, run, stem):
    text = (shared / "spec" / "models.md").read_text(encoding="utf-8").split("### 2.7")[1].split("====")[0]
    name = max((n for n, s in STEMS.items() if s == stem and re.search(rf"{re.escape(n)} \S+ \(", text)), key=len)
    cold, p_cold, hot, p_hot = re.search(
        rf"{re.escape(name)} (\S+) \((\S+)\), (\S+) \((\S+)\)", text
    ).groups()  # fmt: skip
    figures = Figures(report_of(shared / "reference" / run, stem), "next_norm")
    where = "Temperature exploration"
    for name, printed in (("entropy", cold), ("entropy", hot), ("p_answer", p_cold), ("p_answer", p_hot)):
        figures.has(name, printed, where)
    assert figures.values("answer_rank", where) == [1, 1]


# What guidance forbids


def test_probabilities_that_must_not_be_quoted_stand_in_marked_columns_alone(made_sweep):
    for path, stem in every_run(made_sweep):
        report = report_of(path, stem)
        if not evidence_of(path, stem).verdict.guidance.suppress_abs_probs:
            continue
        for one in sections_of(report):
            for block in one.blocks:
                check_block(block)


def check_block(block: object) -> None:
    match block:
        case Paragraph(sentences) | Bullets(sentences):
            for said in sentences:
                named = {claim.name for claim in shown(said.parts)}
                assert not named & LENS_ROWS, named
                assert "delta_H_bits" not in named or "not to be quoted" in words(said.parts)
        case Checklist(checks):
            for check in checks:
                assert not {claim.name for claim in shown(check.note.parts)} & LENS_ROWS
        case Table(header, rows):
            if header[0] == "temperature":
                return  # of the model's own head
            for line in rows:
                for name, cell in zip(header, line.cells, strict=True):
                    bare = {c.name for c in shown(cell)} & LENS_ROWS
                    assert not bare or name.endswith("†"), (name, bare)


def test_a_run_without_a_blocking_reason_shows_probabilities_unmarked(own):
    found = evidence_of(own)
    table = next(one for one in section(report_of(own), "Layer by layer").blocks if isinstance(one, Table))
    suppressed = found.verdict.guidance.suppress_abs_probs
    assert ("p of answer" in table.header) is not suppressed
    assert any(name.endswith("†") for name in table.header) is suppressed


def test_the_status_of_every_layer_is_told_beside_its_probabilities(own):
    """Recomputed from the rows: medians over the prompts that are answered at the last layer."""
    found = evidence_of(own)
    last, key = found.record.model.n_layers, ["fact_index", "prompt_id", "prompt_variant"]
    end = pl.col("position") == pl.col("position").max().over(key)
    logit = found.run.rows.filter((pl.col("lens") == "logit") & end)
    answered = logit.filter((pl.col("layer") == last) & (pl.col("answer_rank") == 1)).select(key)
    medians = (
        logit.join(answered, on=key, nulls_equal=True)
        .group_by("layer")
        .agg(
            pl.col("kl_to_final_bits").median().alias("kl"),
            (pl.col("entropy_bits") - pl.col("teacher_entropy_bits")).abs().median().alias("gap"),
        )
        .sort("layer")
    )
    near = [max(kl, gap) <= 0.5 for kl, gap in medians.select("kl", "gap").iter_rows()]
    due = ["near" if is_near else "decoded" for is_near in near[:-1]] + ["model"]
    table = next(one for one in section(report_of(own), "Layer by layer").blocks if isinstance(one, Table))
    assert table.header[-1] == "p is"
    assert [status_in(line) for line in table.rows] == due


def status_in(line: Row) -> str:
    """The last cell's words, bold or not."""
    (part,) = line.cells[-1]
    return (part.parts[0] if isinstance(part, Strong) else part).text


def test_a_withheld_layer_shows_nothing_that_was_measured_there(own):
    found = evidence_of(own)
    flag = LayerFlag(layer=5, lens="logit", any_nan=True, any_inf=False)
    health = found.record.numeric_health.model_copy(update={"layers_flagged": (flag,)})
    report = evaluation(altered(found, numeric_health=health))
    table = next(one for one in section(report, "Layer by layer").blocks if isinstance(one, Table))
    statuses = [status_in(line) for line in table.rows]
    assert [layer for layer, status in enumerate(statuses) if status == "withheld"] == [5]
    assert [part.value for cell in table.rows[5].cells[1:-1] for part in cell] == [None] * 5
    assert not [c for c in report.claims if c.layer == 5 and c.name in LENS_ROWS and c.prompt == "pos/orig"
                and c.lens == "logit" and c.value is not None]  # fmt: skip


# What sentences say


@pytest.mark.parametrize("stem", with_made(*MODELS))
def test_what_the_model_says_is_read_from_its_own_head(stem, request):
    path = folder_of(stem, request)
    head = json.loads((path / f"output-{stem}.json").read_text(encoding="utf-8"))["final_prediction"]["topk"]
    rank = int(plain_rows(path, stem)[-1]["answer_rank"])
    claims = {c.name: c.value for c in claims_in(section(report_of(path, stem), "Overview"))}
    text = markdown(report_of(path, stem)).split("Lenses: ")[0]
    assert claims["answer_rank_model"] == rank
    if rank == 1:
        assert re.search(rf'The model answers `" ?{head[0][0].strip()}"` \(p ', text)
        assert claims["p_answer_model"] == pytest.approx(head[0][1], rel=1e-9)
    else:
        assert claims["model_top1"] == head[0][0] and f"has rank {rank}" in text
        assert claims["p_top1_model"] == pytest.approx(head[0][1], rel=1e-9)


@pytest.mark.parametrize("judge", [None, "whole"])
def test_what_is_judged_otherwise_is_not_held_against_the_record_of_first_pieces(judge, tmp_path):
    """No answer, and an answer whose first piece the model says and whose rest it does not."""
    asked = [
        {"prompt": "The capital of Germany is called simply", "answer": "Berlino"}
        if judge
        else "The capital of Spain is"
    ]
    run = layerscope.probe(suite=asked, lenses="logit,raw", positions="last", judge=judge)
    run.save(tmp_path / "run", published=Dialect.EXTENDED)
    report = report_of(tmp_path / "run")
    (output,) = run.diagnostics.outputs.values()
    recorded = run.record.suite.prompts[0].output.answer_rank
    assert output.answer_rank != recorded
    assert {c.value for c in report.claims if c.name == "answer_rank_model"} <= {output.answer_rank}
    assert "output.answer_rank" not in markdown(report)


def test_facts_and_wordings_are_counted_over_the_suite(own):
    """The answers' ranks are read from the table, without our reader."""
    with (own / "published" / "output-reference-pure-next-token.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, escapechar="\\") if row["prompt_id"] == "pos"]
    last = max(int(row["layer"]) for row in rows)
    answered = {
        wording: sum(row["answer_rank"] == "1" for row in rows
                     if int(row["layer"]) == last and row["prompt_variant"] == wording)
        for wording in ("orig", "no_filler")
    }  # fmt: skip
    claims = {c.name: c.value for c in report_of(own).claims}
    assert claims["facts_answered"] == claims["wording_n_first"] == answered["orig"]
    assert claims["wording_n_second"] == answered["no_filler"]
    assert claims["facts_asked"] == claims["wording_n"] == 5
    text = markdown(report_of(own))
    assert f"{answered['orig']} of 5 facts answered; on top for good" in text.split("## Method")[0]
    assert "L_semantic_strong" not in text.split("## Method")[0]


def test_the_decoding_point_stands_before_any_statement_on_the_answer(made_sweep, own):
    for path, stem in [*every_run(made_sweep), (own, None)]:
        text = markdown(report_of(path, stem))
        said = min(text.find(start) for start in ("Only the norm of the next block", "Through the final norm")
                   if start in text)  # fmt: skip
        first = min(text.find(start) for start in ("on top for good", "on top at no layer", "passes through rank 1")
                    if start in text)  # fmt: skip
        assert 0 < said < first
        assert 0 < text.find("The model ") < said


def test_the_bold_row_is_the_layer_that_is_headlined(made_sweep, own):
    for path, stem in [*every_run(made_sweep), (own, None)]:
        table = next(b for b in section(report_of(path, stem), "Layer by layer").blocks if isinstance(b, Table))
        bold = [line.cells[0][0].parts[0].value for line in table.rows if isinstance(line.cells[0][0], Strong)]
        ranks = shown_ranks(table)
        lost = [layer for layer, rank in ranks if rank != 1]
        assert bold == ([] if ranks[-1][1] != 1 else [max(lost, default=-1) + 1])


def shown_ranks(table: Table) -> list[tuple[int, int | None]]:
    """Layer and rank of the answer, row by row."""
    at = (table.header.index("layer"), table.header.index("rank of answer"))
    parts = ([line.cells[i][0] for i in at] for line in table.rows)
    return [tuple((p.parts[0] if isinstance(p, Strong) else p).value for p in both) for both in parts]


def plain_rows(path: Path, stem: str) -> list[dict[str, str]]:
    """The primary rows of a published table by the standard library's own reader."""
    with (path / f"output-{stem}-pure-next-token.csv").open(encoding="utf-8", newline="") as file:  # tokens hold "\r"
        rows = list(csv.DictReader(file, escapechar="\\"))
    key = ("pos", "orig", "0")
    return [row for row in rows if (row["prompt_id"], row["prompt_variant"], row.get("fact_index", "0")) == key]


@pytest.mark.parametrize("stem", with_made(*MODELS))
def test_the_layers_of_the_report_are_the_rows_of_the_table(stem, request):
    path = folder_of(stem, request)
    table = next(b for b in section(report_of(path, stem), "Layer by layer").blocks if isinstance(b, Table))
    at = [table.header.index(name) for name in ("layer", "top-1 token", "rank of answer", "KL to final (bits)")]
    cells = [[part for part, *_ in line.cells] for line in table.rows]
    found = [[(row[i].parts[0] if isinstance(row[i], Strong) else row[i]).value for i in at] for row in cells]
    assert found == [
        [int(row["layer"]), row["top1"], int(row["answer_rank"]), float(row["kl_to_final_bits"])]
        for row in plain_rows(path, stem)
    ]


@pytest.mark.parametrize("stem", with_made(*MODELS))
def test_what_is_said_of_the_divergence_holds_in_the_rows(stem, request):
    path = folder_of(stem, request)
    kl = [float(row["kl_to_final_bits"]) for row in plain_rows(path, stem)]
    rises = sum(after > before for before, after in pairwise(kl))
    said = markdown(report_of(path, stem)).split("### Rank and gates")[0]
    assert ("falls at every layer" in said) is all(after < before for before, after in pairwise(kl))
    count = next((c for c in report_of(path, stem).claims if c.name == "kl_rises"), None)
    assert (0 if count is None else count.value) == rises
    if count is not None:
        assert f"largest at layer {kl.index(max(kl))} " in said


@pytest.mark.parametrize("stem", with_made(*MODELS))
def test_a_first_rank_1_that_is_lost_is_called_weak(stem, request):
    path = folder_of(stem, request)
    ranks = [int(row["answer_rank"]) for row in plain_rows(path, stem)]
    lost = any(before == 1 and after > 1 for before, after in pairwise(ranks))
    text = markdown(report_of(path, stem)).split("## Method")[0]
    kept = ranks[-1] == 1
    assert ("rank 1 is lost again" in text) is lost
    assert ("is lost at layer" in text) is (lost and kept)
    assert ("passes through rank 1" in text) is (1 in ranks and not kept)
    assert not lost or "weak evidence" in text


def test_an_early_cosine_that_turns_back_is_no_early_direction(shared):
    text = markdown(report_of(shared / "reference" / RUNS[0], "Qwen2.5-72B"))
    assert "That crossing is no early direction" in text
    assert "rotation before amplification" not in text


def centred(values: list[float], folder: Path) -> str:
    """What a report says of a run whose cosine is high throughout, and whose centred one is as given."""
    run = probed("capitals")
    layers = run.record.model.n_layers
    at = {layer: values[min(layer, len(values) - 1)] for layer in range(layers + 1)}
    kl = pl.when(pl.col("layer") < layers).then(9.0).otherwise("kl_to_final_bits").alias("kl_to_final_bits")
    rows = run.rows.with_columns(
        cos_to_final=pl.lit(0.9),
        cos_to_final_centered=pl.col("layer").replace_strict(at, return_dtype=pl.Float64),
    ).with_columns(kl)
    save_run(Run(rows, run.record, patches=run.patches), folder / "run", published=Dialect.EXTENDED)
    return markdown(report_of(folder / "run"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.9], "So it does once every state has lost its mean"),
        ([0.1, 0.1, 0.1, 0.1, 0.9], "Once every state has lost its mean, the cosine stays from layer 4 on"),
        ([0.1], "the cosine does not stay at any layer before the last"),
    ],
)
def test_an_early_direction_that_all_states_share_is_told_as_such(values: list[float], said: str, tmp_path: Path):
    text = centred(values, tmp_path)
    assert "The cosine comes first and stays" in text
    assert said in text


def test_a_trivial_confirmation_counts_for_nothing(shared):
    for stem in ("gemma-2-9b", "gemma-2-27b"):
        text = markdown(report_of(shared / "reference" / RUNS[0], stem))
        assert "The confirmation is trivial" in text and "✗ confirmed semantics" in text
        assert "weak evidence" in text


def test_null_gates_of_a_file_are_told_beside_the_recomputed_layers(shared):
    """In files of the later generations every milestone that rests on the lead of logits is null by mistake (C2)."""
    report = report_of(shared / "reference" / "tiny-qwen3" / "published")
    table = next(b for b in section(report, "Limitations").blocks if isinstance(b, Table))
    rows = {line.cells[0][0].text: (line.cells[1][0].value, line.cells[2][0].value) for line in table.rows}
    assert rows["L_semantic_strong"] == (2, None)


def test_the_wrong_stability_of_gemma_is_corrected(shared):
    """C1: files say `mixed` where the rule gives `stable`."""
    text = markdown(report_of(shared / "reference" / RUNS[0], "gemma-2-9b"))
    assert "The file calls the copy thresholds mixed; by the rule they are stable" in text


@pytest.mark.parametrize("stem", with_made(*MODELS))
def test_mass_that_is_low_at_every_layer_makes_the_decay_say_nothing(stem, request):
    path = folder_of(stem, request)
    low = all(float(row["topk_prompt_mass@50"]) <= 0.33 for row in plain_rows(path, stem))
    text = markdown(report_of(path, stem))
    assert ("says nothing here: the mass is low at every layer" in text) is low


# Form


def test_every_claim_with_a_value_has_a_place_and_every_absent_one_a_reason(made_sweep, own):
    for path, stem in [*every_run(made_sweep), (own, None)]:
        for claim in report_of(path, stem).claims:
            assert claim.citations or claim.value is None, claim
            assert claim.value is not None or claim.reason or claim.citations, claim


def test_copied_values_stand_in_the_lines_that_are_cited(made_sweep, own):
    chosen = (*MADE, "Qwen3-8B", "gemma-2-9b", None)
    places = [(path, stem) for path, stem in every_run(made_sweep) if stem in chosen]
    for path, stem in [*places, (own, None)]:
        found, files = evidence_of(path, stem), {}
        for claim in report_of(path, stem).claims:
            if claim.derived or claim.value is None or claim.unit is Unit.TOKEN:
                continue
            place = claim.citations[0]
            lines = files.setdefault(place.file, found.sources.lines(place.file))
            text = "\n".join(lines[place.line - 1 : place.last_line])
            if place.pointer is not None:
                assert stated(found, place.pointer) == pytest.approx(claim.value)
            assert spelt(claim.value, text), (claim, text[:200])


def stated(found: Evidence, pointer: str) -> object:
    node = json.loads((found.sources.folder / f"output-{found.stem}.json").read_text(encoding="utf-8"))
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        node = node[int(key)] if isinstance(node, list) else node[key]
    return node


def spelt(value: object, text: str) -> bool:
    if isinstance(value, bool):
        return str(value).lower() in text.lower()
    if isinstance(value, str):
        return value in text or json.dumps(value)[1:-1] in text
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", text)]
    return any(n == pytest.approx(value, rel=1e-9) for n in numbers)


def test_the_sections_stand_in_their_order(made_sweep):
    for path, stem in every_run(made_sweep):
        assert [one.title for one in report_of(path, stem).sections] == [
            "Overview", "Method sanity-check", "Quantitative findings", "Patterns and anomalies", "Checklist",
            "Limitations", "Fingerprint",
        ]  # fmt: skip


def test_a_report_is_the_same_every_time(own):
    assert markdown(evaluation(Evidence.of(own))) == markdown(report_of(own))


def test_several_facts_are_told_one_by_one_with_their_middle(own):
    found = evidence_of(own)
    blocks = [block for block in section(report_of(own), "Facts").blocks if isinstance(block, Table)]
    at = blocks[0].header.index("on top for good")
    layers = [line.cells[at][0].value for line in blocks[0].rows]
    assert len(layers) == 5
    assert all(line.cells[blocks[0].header.index("answered")][0].text == "yes" for line in blocks[0].rows)
    known = sorted(layer for layer in layers if layer is not None)
    middle = next(line for line in blocks[1].rows if line.cells[0][0].text == "on top for good").cells[3][0].value
    assert middle == (known[len(known) // 2] + known[(len(known) - 1) // 2]) / 2
    assert found.verdict.diagnostics.micro_suite.n == 5


@pytest.mark.parametrize("cut", ["diagnostics", "final_prediction", "model_stats", "gold_answer", "control_summary",
                                 "raw_lens_check", "measurement_guidance", "temperature_exploration", "micro_suite",
                                 "provenance", "test_prompts", "ablation_summary"])  # fmt: skip
@pytest.mark.parametrize("stem", ["echo", *slowly("tiny-qwen3")])
def test_a_run_whose_json_lacks_a_block_is_still_reported_on(stem, request, tmp_path, cut):
    path = copied(stem, request, tmp_path)
    whole = json.loads(path.read_text(encoding="utf-8"))
    if cut == "diagnostics":
        kept = {key: whole[cut][key] for key in ("type", "model", "context_prompt")}
        whole[cut] = kept
    elif cut == "model_stats":
        whole[cut] = {key: whole[cut][key] for key in ("num_layers", "d_model", "d_vocab")}
    else:
        del whole[cut]
    path.write_text(json.dumps(whole, indent=2), encoding="utf-8")
    text = markdown(evaluation(Evidence.of(tmp_path)))
    assert "## Fingerprint" in text and f"| {plain_rows(tmp_path, stem)[-1]['layer']} |" in text


# What is missing, or does not stand


def altered(found: Evidence, keep: pl.Expr | None = None, **record: object) -> Evidence:
    """The same files, with rows left out or parts of the record put in the place of what was read from them."""
    rows = found.run.rows if keep is None else found.run.rows.filter(keep)
    return Evidence(Run(rows, found.record.model_copy(update=record)), found.sources, found.stem)


def test_a_rank_1_that_is_lost_is_no_headline_layer(shared):
    early, late = (
        markdown(report_of(shared / "reference" / RUNS[0], stem)) for stem in ("Meta-Llama-3-70B", "Qwen3-8B")
    )
    for join in ("; ", ", "):  # of the overview, and of the fingerprint
        weak = join.join(["the first rank 1 is lost again", "clearly ahead for good at the last layer alone"])
        assert weak in early and weak in late
    assert "on top for good from layer 74 of 80" in early and "first on top at layer 40" in early
    assert "on top for good from layer 33 of 36" in late and "first on top at layer 31" in late
    assert "L_semantic_strong" not in late.split("## Method")[0]


@pytest.mark.parametrize("stem", with_made("tiny-qwen3", made=("reference",)))
def test_an_answer_that_is_not_listed_has_no_probability(stem, request, tmp_path):
    path = copied(stem, request, tmp_path)
    whole = json.loads(path.read_text(encoding="utf-8"))
    for one in whole["temperature_exploration"]:
        one["topk"][0][0] = " Paris"
    path.write_text(json.dumps(whole, indent=2), encoding="utf-8")
    (table,) = section(evaluation(Evidence.of(tmp_path)), "Temperature exploration").blocks
    for line in table.rows:
        assert [cell[0].value for cell in line.cells[2:]] == [None, None, " Paris"]


def copied(stem: str, request: pytest.FixtureRequest, folder: Path) -> Path:
    """The JSON of a model whose files were copied."""
    for file in folder_of(stem, request, "tiny-qwen3/published").glob(f"output-{stem}*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / f"output-{stem}.json"


@pytest.mark.parametrize("stem", with_made("gemma-2-9b", made=("echo",)))
def test_without_rows_nothing_is_denied(stem, request, tmp_path):
    name = f"output-{stem}.json"
    (tmp_path / name).write_bytes((folder_of(stem, request) / name).read_bytes())
    layer = json.loads((tmp_path / name).read_text(encoding="utf-8"))["diagnostics"]["L_semantic"]
    text = markdown(evaluation(Evidence.of(tmp_path)))
    assert "Whether the answer is on top at any layer under the `next_norm` lens was not measured" in text
    assert f"The file states layer {layer}, which no row is there to show" in text
    assert "Whether any layer copies the prompt was not measured" in text
    assert "- n.a. copy reflex: not measured" in text and "- n.a. entropy rises" in text
    assert "; whether the answer is on top at any layer under the `next_norm` lens was not measured" in text
    for denied in ("at no layer", "loses it", "No layer copies", "no copy flag", "n.a., at layer"):
        assert denied not in text


def test_only_flags_that_exist_are_denied(shared):
    text = markdown(report_of(shared / "reference" / "run-20250921-1713", "Qwen2.5-72B"))
    assert "No layer copies the prompt, as far as that was measured (`L_copy`)" in text
    assert "Not measured: `L_copy_strict@0.7`," in text
    assert "no copy flag at layers 0 to 3; soft copies were not measured" in text


@pytest.mark.parametrize("stem", with_made("gemma-2-9b"))
def test_a_failed_identity_check_leaves_no_layer_named(stem, request):
    failed = IdentityRecord(ok=False, kl_bits=3.0, tolerance_bits=0.001, n_prompts=1, fitted_bias=False, note="far")
    found = altered(evidence_of(folder_of(stem, request), stem), identity=failed)
    report = evaluation(found)
    ranks = {"answer_rank", "p_answer", "n_spikes", "radius", "verdict"}
    named = {claim.name for claim in report.claims} - {claim.name for claim in claims_in(
        section(report, "Temperature exploration"))}  # fmt: skip
    assert not named & ranks and not any(
        name.startswith(("L_", "first_rank", "first_kl", "gap_", "cos_")) for name in named
    )
    assert "no layer can be named" in markdown(report) and not any(
        isinstance(part, Strong) for one in sections_of(report) for block in one.blocks if isinstance(block, Table)
        for line in block.rows for cell in line.cells for part in cell
    )  # fmt: skip


@pytest.mark.parametrize("stem", with_made("gemma-2-9b", made=("reference",)))
def test_nothing_is_concluded_from_entropies_that_must_not_be_quoted(stem, request):
    report = report_of(folder_of(stem, request), stem)
    assert "- n.a. entropy rises in the last step" in markdown(report)
    assert not [claim for claim in report.claims if claim.name == "delta_H_bits"]


def test_the_last_layer_is_called_far_only_beyond_its_gate(shared):
    found = evidence_of(shared / "reference" / RUNS[0], "gemma-2-9b")
    measured, last = found.record.measured, found.record.measured.last_layer
    near = last.model_copy(update={"kl_to_final_bits": 0.2, "kl_after_temp_bits": 0.1})
    for record, said in (
        (last, "the last layer is far from the output (KL 1.0129 bits)"),
        (near, "the last layer is the model's output within the gate of 0.25 bits (KL 0.2 bits)"),
        (None, "how far the last layer is from the output was not measured"),
    ):
        quotes = Quotes(altered(found, measured=measured.model_copy(update={"last_layer": record})))
        assert said in markdown(Report("t", Paragraph(()), (fingerprint(quotes),)))


def test_a_missing_last_layer_is_not_spoken_for(shared):
    found = evidence_of(shared / "reference" / RUNS[0], "Qwen3-8B")
    text = markdown(evaluation(altered(found, pl.col("layer") < 36)))
    assert "-0.16344 at layer 35, the last that has a value" in text
    assert "the last layer, which would tell, is missing" in text and "does not hold to the last layer" not in text


@pytest.mark.parametrize("stem", with_made("gemma-2-9b", made=("echo", "mute")))
def test_what_both_lenses_say_together_cites_all_their_rows(stem, request):
    found = evidence_of(folder_of(stem, request), stem)
    lines = found.sources.lines(f"output-{stem}-pure-next-token-rawlens.csv")
    cited = [c for claim in report_of(folder_of(stem, request), stem).claims for c in claim.citations
             if c.file.endswith("-rawlens.csv")]  # fmt: skip
    last = next(i for i, line in enumerate(lines) if f"pos,orig,{found.record.model.n_layers}," in line) + 1
    assert {(one.line, one.last_line) for one in cited} == {(2, last)}


def test_where_no_other_lens_was_read_none_disagrees(shared):
    for stem in ("Meta-Llama-3-70B", "Qwen2.5-72B"):
        text = markdown(report_of(shared / "reference" / RUNS[1], stem))
        assert "no other lens was read that could confirm it" in text and "not confirmed" not in text
        assert "- n.a. confirmed semantics: no other lens was read" in text
    assert "not confirmed by another lens" in markdown(report_of(shared / "reference" / RUNS[0], "Qwen2.5-72B"))


def test_every_figure_that_the_file_states_otherwise_is_named_with_both_values(shared):
    report = report_of(shared / "reference" / "tiny-qwen3" / "published")
    table = [b for b in section(report, "Limitations").blocks if isinstance(b, Table)][-1]
    rows = {line.cells[0][0].text: [cell[0].value for cell in line.cells[1:]] for line in table.rows}
    assert rows["raw_lens_window.radius"] == [8, 4]
    assert rows["semantic_gate.gap_at_L_semantic_norm"] == [pytest.approx(1.7255, abs=1e-4), None]


def test_lengths_that_are_not_recorded_have_no_slope(shared, own):
    without, having = report_of(shared / "reference" / RUNS[0], "Qwen3-8B"), report_of(own)
    assert "Lengths are not recorded; the norm is abrupt at 15 layers" in markdown(without)
    assert not [claim for claim in without.claims if claim.name == "slope"]
    assert [claim for claim in having.claims if claim.name == "slope"]


def test_a_direction_that_comes_at_the_last_layer_does_not_stay(shared):
    for stem in ("gemma-2-9b", "gemma-2-27b"):
        text = markdown(report_of(shared / "reference" / RUNS[0], stem))
        assert "The direction is there at the last layer alone" in text and "The direction stays" not in text


def test_rows_that_no_table_holds_are_left_out_with_the_reason(own, tmp_path):
    found = evidence_of(own)
    name = f"output-{found.stem}.json"
    (tmp_path / name).write_bytes((found.sources.folder / name).read_bytes())
    report = evaluation(Evidence(found.run, Sources(tmp_path), found.stem))
    (block,) = section(report, "Layer by layer").blocks
    assert "no row can be cited" in words(block.sentences[0].parts)


@pytest.mark.parametrize("stem", with_made("Qwen3-8B", made=FITTED))
def test_depths_that_are_one_layer_stand_once(stem, request):
    found = evidence_of(folder_of(stem, request), stem)
    model = found.record.model.model_copy(update={"n_layers": 2})
    quotes = Quotes(altered(found, pl.col("layer") <= 2, model=model))
    for block in fitted(quotes).blocks:
        if isinstance(block, Table):
            labels = [line.cells[0][0] for line in block.rows]
            assert len({getattr(one, "text", None) or one.value for one in labels}) == len(labels)
            assert all(block.header)
