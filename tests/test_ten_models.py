"""Ten published models, a small one and self-made ones: what their tables hold is what JSON and printed figures say.

Everything that a file's generation holds and that follows from its tables is compared, group by group; run with `-rP`
to see how many there are. What cannot be compared with the files at hand: the tuned lens' own audit, decodes through a
second norm, at other scales and a second time (their rows were not published), and, except for the small model, what
later generations added: trajectory, micro-suite, Jensen-Shannon and L1 distances, gates, the evaluation pack.
"""

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal

import pytest

from made_sweep import FITTED, MADE
from published import SHARED
from published_archives import folder_of, with_made
from published_comparison import (
    GROUPS,
    NO_TUNED,
    OCTOBER_4,
    SEPTEMBER_21,
    SEPTEMBER_28,
    SWEEPS,
    TEN,
    TINY,
    TUNED,
    Check,
    checks,
    control_with_leads,
    published_run,
    run_of,
)

# What the files say of themselves

RUNS, SINCE_E, SINCE_F = 22, 21, 11
"""Models in all folders; those of generation E or later; of generation F or later."""
TESTS = {
    "milestones": (8 * RUNS, 137),
    "copying by threshold": (3 * SINCE_E + 8 * SINCE_F, 20),
    "differences of milestones": (RUNS + 11 * SINCE_E, 24),
    "stability of copying": (5 * SINCE_F, 19),
    "surface, geometry, cosines": (8 * SINCE_E + 3 * SINCE_F, 183),
    "tuned rows": (len(TUNED) * (3 * 31 + 8) + len(TUNED) * (3 * 42 + 8), 924),
    "ablation and control": (8 * RUNS + 3, 125),
    "depth fractions": (6 * SINCE_F + 1, 27),
    "confirmation": (7 * SINCE_F, 68),
    "raw lens, every layer": (7 * SINCE_F, 73),
    "raw lens, percentiles": (13 + 2 * 9, 30),
    "raw lens, sample": ((3 + 4 * 11) * SINCE_F, 508),
    "raw lens, window of radius 4": (5 * SINCE_F, 55),
    "raw lens, our window": (4 * SINCE_F, 44),
    "prism and tuned lens": (21 * (len(TEN) + len(TUNED)), 290),
    "attribution": (10 * len(TUNED), 80),
    "norm temperature": (6 * SINCE_E, 126),
    "last layer": (5 * RUNS + 3, 113),
    "final prediction": (SINCE_E, 21),
    "guidance": (7 * SINCE_F, 77),
    "leads over the second logit": (2 * SINCE_F + 2 * 3 * len(TUNED) + 7, 69),
    "entropy gap, margin, run of two": (11, 11),
    "trajectory": (5, 5),
    "micro-suite": (5 * 9 + 9 + 5, 41),
    "evaluation pack": (3, 1),
}
"""How many quantities each group has, and how many are not absent on both sides: a file that lost a block fails."""

C1 = "C1: the label was looked up under thresholds that print otherwise"
C2 = "C2: the lead over the second logit never reached the published summaries"
C3 = "C3: the published radius is 4 also where the sampled risk asks for 8"
MARGIN = "the margin was not judged before generation J, so this reason could not be given"
FIRST_FACT = "published for the first fact alone"

Name = tuple[str, str, str]
"""Folder, model, place in the JSON."""


def _names(sweep: str, model: str, *places: str) -> set[Name]:
    return {(sweep, model, place) for place in places}


REACHED = {  # which leads: under the norm lens, then under the tuned lens for each prompt
    "Meta-Llama-3-8B": ("0.5 1.0", "0.5 1.0", "0.5 1.0", "0.5"),
    "Mistral-7B-v0.1": ("0.5", "0.5", "0.5 1.0", "0.5 1.0"),
    "Mistral-Small-24B-Base-2501": ("0.5 1.0", "0.5", "0.5 1.0", "0.5 1.0"),
    "Qwen3-14B": ("0.5 1.0", "0.5 1.0", "0.5 1.0", "0.5 1.0"),
    "Qwen3-8B": ("0.5 1.0", "0.5", "0.5 1.0", "0.5 1.0"),
    "Yi-34B": ("0.5 1.0", "0.5 1.0", "0.5 1.0", "0.5 1.0"),
    "gemma-2-27b": ("0.5 1.0", "0.5 1.0", "0.5 1.0", "0.5 1.0"),
    "gemma-2-9b": ("0.5 1.0", "0.5 1.0", "0.5 1.0", "0.5 1.0"),
    "Meta-Llama-3-70B": ("0.5",),
    "Qwen2.5-72B": ("",),
}
_BLOCKS = ("diagnostics", *(f"tuned_lens/summaries/{i}" for i in range(3)))
_LEADS = {
    (OCTOBER_4, model, f"{block}/answer_margin_thresholds/gap_ge_{lead}")
    for model, reached in REACHED.items()
    for block, leads in zip(_BLOCKS, reached, strict=False)
    for lead in leads.split()
} | _names(
    TINY, "tiny-qwen3", "diagnostics/answer_margin_thresholds/gap_ge_0.5",
    "diagnostics/answer_margin_thresholds/gap_ge_1.0", "diagnostics/semantic_gate/L_semantic_top2_ok_norm",
    "diagnostics/semantic_gate/L_semantic_top2_ok_norm_frac", "diagnostics/semantic_gate/gap_at_L_semantic_norm",
    "diagnostics/semantic_gate/L_semantic_strong", "diagnostics/semantic_gate/L_semantic_strong_run2",
    "diagnostics/depth_fractions/L_semantic_strong_frac", "diagnostics/depth_fractions/L_semantic_strong_run2_frac",
)  # fmt: skip
_WINDOW = "diagnostics/raw_lens_window"
_WIDER = {
    name
    for model in TEN
    if model not in ("Meta-Llama-3-70B", "Mistral-Small-24B-Base-2501")
    for name in _names(OCTOBER_4, model, f"{_WINDOW}/radius", f"{_WINDOW}/layers_checked")
}
DEPARTURES: dict[str, dict[str, set[Name]]] = {
    "stability of copying": {
        C1: {(OCTOBER_4, f"gemma-2-{size}", "diagnostics/copy_thresholds/stability") for size in ("9b", "27b")}
    },
    "leads over the second logit": {C2: _LEADS},
    "raw lens, our window": {
        C3: _WIDER
        | _names(OCTOBER_4, "Yi-34B", f"{_WINDOW}/norm_only_semantics_layers")
        | _names(TINY, "tiny-qwen3", f"{_WINDOW}/radius")
    },
    "guidance": {
        MARGIN: {
            (OCTOBER_4, model, "measurement_guidance/reasons")
            for model in ("Meta-Llama-3-8B", "Meta-Llama-3-70B", "Mistral-Small-24B-Base-2501")
        }
    },
    "micro-suite": {
        FIRST_FACT: _names(TINY, "tiny-qwen3", *(f"micro_suite/facts/{i}/L_semantic_confirmed" for i in range(1, 5)))
    },
}
"""Where the files are known to say something else than their own tables, by group and cause."""


@pytest.mark.parametrize("group", GROUPS)
def test_what_published_files_say_is_what_follows_from_their_tables(group, shared):
    found = [
        check
        for sweep, models in SWEEPS.items()
        for model in models
        for check in checks(group, published_run(shared, sweep, model))
    ]
    departing = [check for check in found if not check.agrees]
    sys.stdout.write(f"{group}: {len(found) - len(departing)}/{len(found)}\n")
    expected = set().union(*DEPARTURES.get(group, {}).values())
    assert [check for check in departing if check.name not in expected] == []
    assert expected == {check.name for check in departing}, "what was expected to depart does not"
    values = [check for check in found if (check.published, check.ours) != (None, None)]
    assert (len(found), len(values)) == TESTS[group]


NARROW_WINDOW = "raw lens, window of radius 4"
"""Published by others whatever the sample warns of, and not by us."""


@pytest.mark.parametrize("group", [group for group in GROUPS if group != NARROW_WINDOW])
def test_what_our_files_say_is_what_follows_from_their_tables(group, made_sweep):
    found = [check for model in MADE for check in checks(group, run_of(made_sweep, "made", model))]
    if group == "last layer":  # measured in float64 for the JSON, and in float32 for the table
        found = [replace(check, absolute=1e-6) for check in found]
    if group == "final prediction":  # logits of up to 40 from two products in float32: a step there is 3.8e-6
        found = [replace(check, absolute=1e-5) for check in found]
    assert [check for check in found if not check.agrees] == []
    assert sum((check.published, check.ours) != (None, None) for check in found) >= len(MADE)


Cells = Mapping[str, str]


def _at_least(name: str, least: float) -> Callable[[Cells], bool]:
    return lambda cells: bool(cells[name]) and float(cells[name]) >= least


def _at_most(name: str, most: float) -> Callable[[Cells], bool]:
    return lambda cells: bool(cells[name]) and float(cells[name]) <= most


def _leads_by(lead: float) -> Callable[[Cells], bool]:
    return lambda cells: (
        cells["answer_rank"] == "1" and math.log(float(cells["prob1"]) / (float(cells["prob2"]) or 5e-324)) >= lead
    )


ONSETS: dict[str, Callable[[Cells], bool]] = {
    "L_copy": lambda cells: cells["copy_collapse"] == "True",
    "L_copy_H": lambda cells: cells["entropy_collapse"] == "True",
    "L_semantic": lambda cells: cells["is_answer"] == "True",
    "first_rank_le_1": _at_most("answer_rank", 1),
    "first_rank_le_5": _at_most("answer_rank", 5),
    "first_rank_le_10": _at_most("answer_rank", 10),
    "first_kl_below_1.0": _at_most("kl_to_final_bits", 1.0),
    "first_kl_below_0.5": _at_most("kl_to_final_bits", 0.5),
    "cos_ge_0.2": _at_least("cos_to_final", 0.2),
    "cos_ge_0.4": _at_least("cos_to_final", 0.4),
    "cos_ge_0.6": _at_least("cos_to_final", 0.6),
    "first_p_top1_gt_0.30": lambda cells: float(cells["p_top1"]) > 0.30,
    "first_p_top1_gt_0.60": lambda cells: float(cells["p_top1"]) > 0.60,
    "gap_ge_0.5": _leads_by(0.5),
    "gap_ge_1.0": _leads_by(1.0),
    "L_surface_to_meaning": lambda cells: float(cells["answer_mass"]) >= float(cells["echo_mass_prompt"]) + 0.05,
    "L_geom": lambda cells: float(cells["cos_to_answer"]) >= float(cells["cos_to_prompt_max"]) + 0.02,
    "L_topk_decay": _at_most("topk_prompt_mass@50", 0.33),
}
IN_JSON = {
    **{f"cos_ge_{bound}": f"cos_milestones/norm/ge_{bound}" for bound in ("0.2", "0.4", "0.6")},
    **{f"gap_ge_{lead}": f"answer_margin_thresholds/gap_ge_{lead}" for lead in ("0.5", "1.0")},
    **{name: f"{name}_norm" for name in ("L_surface_to_meaning", "L_geom", "L_topk_decay")},
}
"""Where a milestone stands under another name."""


@pytest.mark.parametrize("model", with_made(*TEN))
def test_milestones_are_the_first_rows_of_the_tables_that_hold_them(model, request):
    """The tables are read without our reader, and what each milestone asks is written out above."""
    run = run_of(folder_of(model, request, OCTOBER_4), OCTOBER_4, model)
    primary = [
        cells
        for cells in run.table("pure-next-token")
        if (cells["prompt_id"], cells["prompt_variant"], cells.get("fact_index", "0")) == ("pos", "orig", "0")
    ]
    assert [int(cells["layer"]) for cells in primary] == [*range(run.n_layers + 1)]
    for name, holds in ONSETS.items():
        layer = next((int(cells["layer"]) for cells in primary if holds(cells)), None)
        assert run.own[name].layer == layer, name
        if not name.startswith("first_p_top1") and (model in MADE or not name.startswith("gap_")):  # caveat C2
            assert run.said(f"diagnostics/{IN_JSON.get(name, name)}") == layer, name


@pytest.mark.parametrize("model", with_made(*TEN))
def test_shares_of_layers_are_those_of_the_raw_table_read_without_our_reader(model, request):
    run = run_of(folder_of(model, request, OCTOBER_4), OCTOBER_4, model)
    bits = [
        float(cells["kl_norm_vs_raw_bits"])
        for cells in run.table("pure-next-token-rawlens")
        if (cells["prompt_id"], cells["prompt_variant"], cells.get("fact_index", "0")) == ("pos", "orig", "0")
    ]
    found = run.verdict.diagnostics.raw_full.whole
    for least, ours in ((1.0, found.pct_layers_kl_ge_1_0), (0.5, found.pct_layers_kl_ge_0_5)):
        share = sum(x >= least for x in bits) / (run.n_layers + 1)
        assert ours == pytest.approx(share, rel=1e-12)
        assert run.said(f"diagnostics/raw_lens_full/pct_layers_kl_ge_{least}") == pytest.approx(share, rel=1e-12)
    assert found.max_kl_norm_vs_raw_bits == max(bits)


@pytest.mark.parametrize("model", with_made(made=FITTED))
def test_facts_have_the_onsets_of_their_own_rows(model, request):
    run = run_of(folder_of(model, request), "made", model)
    onsets: dict[str, int] = {}
    for cells in run.table("pure-next-token"):
        if (cells["prompt_id"], cells["prompt_variant"], cells["is_answer"]) == ("pos", "orig", "True"):
            onsets.setdefault(cells["fact_key"], int(cells["layer"]))
    assert len(onsets) == 5
    assert {fact["fact_key"]: fact["L_semantic_norm"] for fact in run.said("micro_suite/facts")} == onsets
    assert run.said("micro_suite/aggregates/L_semantic_norm_median") == sorted(onsets.values())[2]


def test_a_guidance_departs_by_the_reason_that_came_later_and_by_nothing_else(shared):
    for sweep, model, place in DEPARTURES["guidance"][MARGIN]:
        run = published_run(shared, sweep, model)
        reasons = [reason.name for reason in run.verdict.guidance.reasons]
        assert [name for name in reasons if name != "rank_only_near_uniform"] == run.said(place)


def test_a_difference_of_one_digit_type_or_item_is_a_departure():
    same = [(1, 1), (0.1 + 0.2, 0.3), (None, None), ("raw", "raw"), ([1, 2], (1, 2)), (True, True)]
    other = [(1, 2), (1, True), (1, 1.0), (0.3, 0.3000001), (None, 0), (None, False), ([1, 2], [1]), ([1], [2])]
    for agreeing, pairs in ((True, same), (False, other)):
        for published, ours in pairs:
            assert Check("", "", "", published, ours).agrees is agreeing, (published, ours)


NOT_COMPARED = {
    "given, not found": r"prompts?/|test_prompts/|temperature_exploration/|model_stats/|gold_answer/|control_prompt/"
    r"|provenance/|copy_flag_columns|final_prediction/t|raw_lens_check/mode|tuned_lens/(status|path|mode|provenance)",
    "names, constants and configuration": r".*/(type|mode|notes|tau_list|scales|K|tau|delta|gamma|threshold|thresh|k"
    r"|window_ks|extra_thresholds|delta_abs|delta_top2_logit|cross_key|consecutive_key|copy_window_k|copy_thresh"
    r"|copy_match_level|copy_soft_threshold|copy_soft_window_ks|answer_margin_unit|strategy(/.*)?)"
    r"|diagnostics/(model|device|use_|unembed_|first_block|final_ln|layer\w*_fix|norm_alignment_fix|layer0_|"
    r"mixed_precision|context_prompt|target_prediction|config/)|.*/(topk_prompt_tau|surface_delta|geom_gamma)_\w+",
    "measured beside the tables": r"diagnostics/(tau_norm_per_layer|copy_mask/|numeric_health/|flags/|layer_map/"
    r"|normalization_provenance/|gold_alignment|repeatability|decoding_point/|lens_consistency/"
    r"|gate_stability_small_scale/|prism_summary/(?!metrics)|skip_layers_sanity/|tuned_lens_|last_layer_consistency/)",
    "a copy of what stands elsewhere": r"summary/|diagnostics/(micro_suite|tuned_lens)/|evaluation_pack/",
    "of the tuned lens without a raw one beside it": r"tuned_lens/summaries/\d+/copy_thresholds/(norm_only|stability)",
    "the entropy gap under the tuned lens, which no judgement rests on": r"tuned_lens/summaries/\d+/entropy_gap_",
    "the tuned lens' own audit, without rows in published files": r"tuned_lens/audit_summary/",
    "no raw-lens table before generation G": r"raw_lens_check/s",
    "no entropy of the model's own output before generation E": r"final_prediction/entropy",
    "samples of other facts (caveat C4)": r"raw_lens_check/samples/",
    "ranks along the prompt were not published (caveat C7)": r"diagnostics/position_window/",
    "whether two intervals meet": r"diagnostics/semantic_gate/run2_overlaps_confirmed_window",
}
"""Why, and which places of the JSON, by a pattern that they begin with."""


PUBLISHED = [(sweep, model) for sweep, models in SWEEPS.items() for model in models] if SHARED.is_dir() else []


@pytest.mark.parametrize(("sweep", "model"), [*(("made", model) for model in MADE), *PUBLISHED])
def test_what_is_not_compared_is_listed_with_its_reason(sweep, model, request):
    run = run_of(folder_of(model, request, sweep), sweep, model)
    compared = {check.place for group in GROUPS for check in checks(group, run)}
    listed = re.compile("|".join(f"(?:{pattern})" for pattern in NOT_COMPARED.values()))
    left = [place for place in _leaves(run.document) if place not in compared and not listed.match(place)]
    assert left == []


def _leaves(found: object, place: str = "") -> list[str]:
    """Places of values; a list of plain values is one of them."""
    items: list[tuple[object, object]] = []
    if isinstance(found, dict):
        items = list(found.items())
    elif isinstance(found, list) and found and isinstance(found[0], dict):
        items = list(enumerate(found))
    else:
        return [place]
    return [leaf for key, value in items for leaf in _leaves(value, f"{place}/{key}" if place else str(key))]


def test_the_norm_lens_of_a_model_is_the_same_in_all_sweeps(shared):
    """Bit for bit, in every column that the earlier files have; but for the cosine of two long float32 vectors."""
    pairs = [(SEPTEMBER_28, model) for model in TEN] + [(SEPTEMBER_21, "Qwen2.5-72B")]
    for sweep, model in pairs:
        earlier, later = (published_run(shared, s, model).table("pure-next-token") for s in (sweep, OCTOBER_4))
        assert len(earlier) == len(later) > 90
        for old, new in zip(earlier, later, strict=True):
            assert float(old["cos_to_final"]) == pytest.approx(float(new["cos_to_final"]), abs=1e-6, rel=0)
            assert {name for name in old if old[name] != new[name]} <= {"cos_to_final"}, (sweep, model)


# Figures as printed: `-` is none, a number with a point has half a unit of its last digit


def _is_printed(value: object, text: str) -> bool:
    if text == "-":
        return value is None
    if not re.fullmatch(r"-?[\d.]+(e-?\d+)?", text):
        return value == text
    if "." not in text:
        return value == float(text)
    digits = Decimal(text).as_tuple().exponent
    assert isinstance(digits, int) and isinstance(value, int | float), (value, text)
    return abs(value - float(text)) <= 0.5 * 10.0**digits * (1 + 1e-9)


def _differing(values: dict[str, object], figures: str) -> list[tuple[str, object, str]]:
    texts = figures.replace("|", " ").split()
    pairs = zip(values.items(), texts, strict=True)
    return [(name, value, text) for (name, value), text in pairs if not _is_printed(value, text)]


MILESTONES = (
    "L_semantic", "first_rank_le_10", "first_rank_le_5", "first_rank_le_1", "first_kl_below_1.0", "first_kl_below_0.5",
    "L_copy", "L_copy_H", "L_copy_soft_k1", "cos_ge_0.2", "cos_ge_0.4", "cos_ge_0.6", "first_p_top1_gt_0.30",
    "first_p_top1_gt_0.60",
)  # fmt: skip
MILESTONE_FIGURES = {  # first the depth of L_semantic
    "Mistral-7B-v0.1": "0.781 25 | 23 25 25 | 32 32 | - - - | 11 25 26 | 32 -",
    "Meta-Llama-3-8B": "0.781 25 | 24 25 25 | 32 32 | - - - | 20 30 32 | 32 -",
    "Qwen3-8B": "0.861 31 | 29 29 31 | 36 36 | - 31 - | 36 36 36 | 29 29",
    "gemma-2-9b": "1.0 42 | 42 42 42 | - - | 0 0 0 | 1 42 42 | 0 0",
    "Qwen3-14B": "0.9 36 | 32 33 36 | 40 40 | - 32 - | 5 29 36 | 31 32",
    "gemma-2-27b": "1.0 46 | 46 46 46 | - - | 0 0 0 | 1 46 46 | 0 0",
    "Yi-34B": "0.733 44 | 43 44 44 | 60 60 | - - - | 1 44 51 | 60 -",
    "Meta-Llama-3-70B": "0.5 40 | 38 38 40 | 80 80 | - - - | 80 80 80 | 80 -",
    "Mistral-Small-24B-Base-2501": "0.825 33 | 30 30 33 | 40 40 | - - - | 35 40 40 | 40 -",
    "Qwen2.5-72B": "1.0 80 | 74 78 80 | 80 80 | - - - | 0 0 53 | 77 -",
}
EVERY = [(OCTOBER_4, model) for model in TEN]
EARLIER = [(SEPTEMBER_28, model) for model in TEN] + [(SEPTEMBER_21, "Qwen2.5-72B")]


@pytest.mark.parametrize(("sweep", "model"), EVERY + EARLIER)
def test_milestones_are_the_printed_ones(sweep, model, shared):
    run = published_run(shared, sweep, model)
    layers = {name: run.own[name].layer for name in MILESTONES}
    figures = MILESTONE_FIGURES[model]
    if sweep == SEPTEMBER_21:  # before there were soft copies
        assert layers.pop("L_copy_soft_k1") is None
        figures = figures.replace("- - - |", "- - |")
    depth = round(run.own["L_semantic"].layer / run.n_layers, 3)
    assert _differing({"depth": depth, **layers}, figures) == []


def test_strict_and_soft_copies_hold_where_they_are_printed(shared):
    for model in TEN:
        run = published_run(shared, OCTOBER_4, model)
        first = {p: run.own[f"L_copy_strict@{p}"].layer for p in ("0.7", "0.8", "0.9", "0.95")}
        assert first == dict.fromkeys(first, 0 if model.startswith("gemma") else None)
        assert [run.own[f"L_copy_soft_k{k}"].layer for k in (2, 3)] == [None, None]
    small, large = (
        {
            name: published_run(shared, OCTOBER_4, model).curve("next_norm").layers(lambda row, name=name: row[name])
            for name in ("copy_strict@0.95", "copy_strict@0.7", "copy_soft_k1@0.5")
        }
        for model in ("gemma-2-9b", "gemma-2-27b")
    )
    assert small["copy_strict@0.95"] == [*range(15)]
    assert small["copy_soft_k1@0.5"] == [*range(16), *range(17, 23), 24, 25, 27]
    assert large == {"copy_strict@0.95": [0], "copy_strict@0.7": [0, 3, 4], "copy_soft_k1@0.5": [0, 3, 4]}


HEAD_FIGURES = {  # KL, temperature, KL after it | top lens, head | entropy lens, head | at L_semantic | cosine
    "Mistral-7B-v0.1": "0 1 0 | 0.38216 0.38216 | 3.6110 3.6110 | 13.5986 0.033499 8.0175 | 1.000000",
    "Meta-Llama-3-8B": "0 1 0 | 0.52018 0.52018 | 2.9610 2.9610 | 16.8142 0.00013231 11.2059 | 1.000001",
    "Qwen3-8B": "0 1 0 | 0.43340 0.43340 | 3.1226 3.1226 | 0.4539 0.93593 1.0607 | 1.000001",
    "gemma-2-9b": "1.01289 2.6102 0.349891 | 0.92977 0.39433 | 0.3701 2.9367 | 0.3701 0.92977 1.0129 | 0.999320",
    "Qwen3-14B": "0 1 0 | 0.34514 0.34514 | 3.5835 3.5835 | 0.3122 0.95302 1.6619 | 0.999994",
    "gemma-2-27b": "1.13520 2.6102 0.566517 | 0.98407 0.42258 | 0.1180 2.8856 | 0.1180 0.98407 1.1352 | 0.999391",
    "Yi-34B": "2.7837e-4 1 2.7837e-4 | 0.55551 0.56269 | 2.9812 2.9414 | 15.3273 0.0084588 11.4125 | 1.000001",
    "Meta-Llama-3-70B": "7.2935e-4 1 7.2935e-4 | 0.47834 0.46895 | 2.5890 2.5970 | 16.9374 2.3917e-5 10.4198 "
    "| 0.999989",
    "Mistral-Small-24B-Base-2501": "0 1 0 | 0.45546 0.45546 | 3.1807 3.1807 | 16.7740 0.00042478 10.5202 | 1.000001",
    "Qwen2.5-72B": "1.0909e-4 1 1.0909e-4 | 0.33946 0.33828 | 4.1158 4.1356 | 4.1158 0.33946 0.0001 | 1.000000",
}


@pytest.mark.parametrize(("sweep", "model"), EVERY + EARLIER)
def test_figures_of_head_and_onset_are_the_printed_ones(sweep, model, shared):
    run = published_run(shared, sweep, model)
    last = run.verdict.diagnostics.last_layer
    curve, onset = run.curve("next_norm"), run.own["L_semantic"]
    head = run.record.measured.final_prediction
    values = {
        "kl": curve.value("kl_to_final_bits", run.n_layers),
        "temperature": last.measured.temp_est,
        "kl after it": last.measured.kl_after_temp_bits,
        "top": curve.value("p_top1", run.n_layers),
        "top of the head": last.measured.p_top1_model,
        "entropy": curve.value("entropy_bits", run.n_layers),
        "entropy of the head": head.entropy_bits,
        "entropy at onset": onset.entropy_bits,
        "p at onset": onset.p_answer,
        "kl at onset": onset.kl_to_final_bits,
        "cosine": curve.value("cos_to_final", run.n_layers),
    }
    assert _differing(values, HEAD_FIGURES[model]) == []
    assert last.warn_high_last_layer_kl is model.startswith("gemma")
    assert head.top_probs[0] == pytest.approx(last.measured.p_top1_model, rel=1e-6)


RAW_FIGURES = {  # confirmed, source, raw, tuned | sample | shares | norm-only | largest, score, tier
    "Mistral-7B-v0.1": "25 raw 25 32 | high 1.1739 - | 0.2424 0.3333 | 1 32 | 8.5569 0.5455 high",
    "Meta-Llama-3-8B": "25 raw 26 32 | high 0.0713 25 | 0.0303 0.0303 | 5 25 | 5.2565 0.4182 medium",
    "Qwen3-8B": "31 raw 31 34 | high 13.6049 - | 0.7568 0.8108 | 0 - | 38.0961 0.5541 high",
    "gemma-2-9b": "42 tuned - 42 | high 12.9056 - | 0.3023 0.3721 | 1 42 | 92.3159 0.5814 high",
    "Qwen3-14B": "36 raw 32 39 | high 17.6735 - | 0.7561 0.8293 | 0 - | 98.5781 0.5537 high",
    "gemma-2-27b": "46 tuned - 46 | high 80.1001 - | 0.9787 0.9787 | 1 46 | 99.5398 0.9872 high",
    "Yi-34B": "44 tuned - 46 | high 80.5716 46 | 0.6557 0.8197 | 14 44 | 90.4657 0.7934 high",
    "Meta-Llama-3-70B": "40 raw 40 - | low 0.0429 - | 0.0123 0.0247 | 2 79 | 1.2437 0.3323 medium",
    "Mistral-Small-24B-Base-2501": "33 raw 32 39 | low 0.1793 - | 0.0244 0.0244 | 0 - | 5.9801 0.1146 low",
    "Qwen2.5-72B": "- none - - | high 19.9099 - | 0.3210 0.4198 | 1 80 | 83.3150 0.5926 high",
}


@pytest.mark.parametrize("model", TEN)
def test_confirmation_and_raw_lens_are_the_printed_ones(model, shared):
    found = published_run(shared, OCTOBER_4, model).verdict.diagnostics
    confirmed, sample, full = found.confirmation, found.raw_sample, found.raw_full.whole
    values = {
        "confirmed": confirmed.layer,
        "source": confirmed.source,
        "raw onset": confirmed.onset_raw,
        "tuned onset": confirmed.onset_tuned,
        "risk": sample.lens_artifact_risk,
        "largest of the sample": sample.max_kl_norm_vs_raw_bits,
        "first of the sample": sample.first_norm_only_semantic_layer,
        "a bit": full.pct_layers_kl_ge_1_0,
        "half a bit": full.pct_layers_kl_ge_0_5,
        "norm only": full.n_norm_only_semantics_layers,
        "first norm only": full.earliest_norm_only_semantic,
        "largest": full.max_kl_norm_vs_raw_bits,
        "score": full.score.v1,
        "tier": full.score.tier,
    }
    assert _differing(values, RAW_FIGURES[model]) == []


def test_the_gemma_models_alone_are_confirmed_by_nothing_but_the_last_tuned_row(shared):
    """That row has the identity for a map, so it is the norm lens once again."""
    nontrivial = {m: published_run(shared, OCTOBER_4, m).verdict.diagnostics.confirmation.nontrivial for m in TEN}
    trivial = {"gemma-2-9b": False, "gemma-2-27b": False, "Qwen2.5-72B": None}
    assert nontrivial == dict.fromkeys(TEN, True) | trivial


def test_the_last_layer_alone_makes_four_models_norm_only(shared):
    """There the norm lens is the model itself. Llama-3-70B has one such layer before it."""
    full = {model: published_run(shared, OCTOBER_4, model).verdict.diagnostics.raw_full for model in TEN}
    counts = {
        model: (found.whole.n_norm_only_semantics_layers, found.prefinal.n_norm_only_semantics_layers)
        for model, found in full.items()
    }
    alone = {model for model, count in counts.items() if count == (1, 0)}
    assert alone == {"Mistral-7B-v0.1", "gemma-2-9b", "gemma-2-27b", "Qwen2.5-72B"}
    assert counts["Meta-Llama-3-70B"] == (2, 1)


PROMPT_FIGURES = {  # surface | geometry | decay | without the filler word | control | clear lead of the control
    "Mistral-7B-v0.1": "32 0.3822 0.0610 | - - - | 0 0.0 | 24 -1 | 2 0.6539 | 24 2.512",
    "Meta-Llama-3-8B": "32 0.5202 0.0240 | 26 0.1274 0.0968 | 0 0.0 | 25 0 | 0 0.5186 | 25 0.912",
    "Qwen3-8B": "31 0.9359 0.0114 | 34 0.1112 0.0886 | 0 0.0 | 31 0 | 1 0.999998 | 30 13.459",
    "gemma-2-9b": "42 0.9298 1.15e-8 | 42 0.1642 0.1056 | 28 0.0471 | 42 0 | 18 0.8677 | 42 1.882",
    "Qwen3-14B": "36 0.9530 4.39e-6 | 35 0.0811 0.0595 | 0 0.0 | 36 0 | 0 0.9742 | 36 3.819",
    "gemma-2-27b": "46 0.9841 7.8e-11 | - - - | 1 0.0 | 46 0 | 0 0.9911 | 46 4.712",
    "Yi-34B": "51 0.0597 0.0063 | 46 0.1248 0.0963 | 0 0.0 | 44 0 | 1 0.5836 | 42 1.874",
    "Meta-Llama-3-70B": "80 0.4783 0.0048 | 54 0.0702 0.0478 | 0 0.0 | 42 2 | 0 0.5168 | 80 0.664",
    "Mistral-Small-24B-Base-2501": "40 0.4555 0.0042 | 31 0.0946 0.0740 | 0 0.0 | 31 -2 | 1 0.4680 | 31 1.873",
    "Qwen2.5-72B": "80 0.3395 0.0446 | - - - | 0 0.0 | 80 0 | 0 0.2070 | - -",
}
STRICT_WITHOUT_FILLER = {"gemma-2-9b": (0, 0), "gemma-2-27b": (3, 3)}


@pytest.mark.parametrize(("sweep", "model"), EVERY + EARLIER[:-1])
def test_surface_geometry_ablation_and_control_are_the_printed_ones(sweep, model, shared):
    run = published_run(shared, sweep, model)
    curve, found, strong = run.curve("next_norm"), run.verdict.diagnostics, control_with_leads(run)
    surface, geometry, decay = (run.own[name].layer for name in ("L_surface_to_meaning", "L_geom", "L_topk_decay"))
    values = {
        "surface": surface,
        "answer mass": curve.value("answer_mass", surface),
        "echo mass": curve.value("echo_mass_prompt", surface),
        "geometry": geometry,
        "cosine of the answer": curve.value("cos_to_answer", geometry),
        "cosine of the prompt": curve.value("cos_to_prompt_max", geometry),
        "decay": decay,
        "its mass": curve.value("topk_prompt_mass@50", decay),
        "without filler": found.ablation.L_sem_nf,
        "delta": found.ablation.delta_L_sem,
        "first margin": found.control.first_control_margin_pos,
        "largest margin": found.control.max_control_margin,
        "first clear lead": strong.first_control_strong_pos,
        "largest lead": None if strong.first_control_strong_pos is None else strong.max_control_top2_logit_gap,
    }
    if sweep == SEPTEMBER_28:  # before the tables had leads
        del values["first clear lead"], values["largest lead"]
    assert _differing(values, PROMPT_FIGURES[model].rsplit("|", sweep == SEPTEMBER_28)[0]) == []
    copies = found.ablation.L_copy_nf, found.ablation.delta_L_copy
    assert copies == STRICT_WITHOUT_FILLER.get(model, (None, None))


GATE_FIGURES = {  # run of two, margin, whether it holds at L_semantic | entropy gap | spikes
    "Mistral-7B-v0.1": "25 25 yes | 10.60 10.99 11.19 | 26",
    "Meta-Llama-3-8B": "25 32 no | 13.87 13.88 13.91 | 18",
    "Qwen3-8B": "33 31 yes | 1.66 13.79 14.01 | 15",
    "gemma-2-9b": "- 42 yes | -2.89 -2.80 -1.63 | 1",
    "Qwen3-14B": "39 36 yes | 4.21 13.40 13.59 | 14",
    "gemma-2-27b": "- 46 yes | 4.12 4.68 5.39 | 16",
    "Yi-34B": "44 44 yes | 12.29 12.59 12.78 | 4",
    "Meta-Llama-3-70B": "43 80 no | 14.33 14.34 14.35 | 15",
    "Mistral-Small-24B-Base-2501": "33 35 no | 13.58 13.59 13.66 | 34",
    "Qwen2.5-72B": "- 80 yes | 12.03 12.50 12.77 | 55",
}


@pytest.mark.parametrize("model", TEN)
def test_runs_margins_entropy_gaps_and_spikes_are_the_printed_ones(model, shared):
    """They were first published later, but follow from these tables; slope and r2 need norms that came later too."""
    run = published_run(shared, OCTOBER_4, model)
    found = run.verdict.diagnostics
    values = {
        "run of two": run.own["L_semantic_run2"].layer,
        "margin": run.own["L_semantic_margin_ok"].layer,
        "at L_semantic": "yes" if found.margin_ok_at_semantic else "no",
        **found.entropy_gap.percentiles,
        "spikes": found.trajectory.n_spikes,
    }
    assert _differing(values, GATE_FIGURES[model]) == []


def test_models_without_a_tuned_lens_say_so(shared):
    for model in NO_TUNED:
        run = published_run(shared, OCTOBER_4, model)
        assert run.said("tuned_lens/status") == "missing"
        assert run.verdict.diagnostics.attribution is None
        assert "tuned" not in run.verdict.diagnostics.fitted_lenses


def test_a_printed_figure_allows_half_a_unit_of_its_last_digit_and_no_more():
    assert _is_printed(0.03349949, "0.0335") and not _is_printed(0.03344, "0.0335")
    assert _is_printed(2.78370e-4, "2.7837e-4") and not _is_printed(2.78376e-4, "2.7837e-4")
    assert _is_printed(31, "31") and not _is_printed(31.4, "31") and not _is_printed(1e-9, "0")
    assert _is_printed(None, "-") and not _is_printed(0, "-") and not _is_printed("high", "low")
