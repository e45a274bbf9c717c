import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from layerscope.audit.parse.read_report import Reference, Statement, read_report
from layerscope.audit.statements import judge_statements
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Finding, Judgement
from published_archives import archive_of

SEVEN = (
    "Meta-Llama-3-70B",
    "Mistral-7B-v0.1",
    "Qwen2.5-72B",
    "Qwen3-14B",
    "Qwen3-8B",
    "Yi-34B",
    "gemma-2-9b",
)
TUNED = tuple(stem for stem in SEVEN if stem not in ("Meta-Llama-3-70B", "Qwen2.5-72B"))
SUPPORTED, CONTRADICTED, ELSEWHERE = Judgement.SUPPORTED, Judgement.CONTRADICTED, Judgement.ELSEWHERE

Judge = Callable[..., list[Finding]]


@pytest.fixture
def october(shared: Path) -> Archive:
    return archive_of(shared / "reference" / "run-20251004-1804")


@pytest.fixture
def september(shared: Path) -> Archive:
    return archive_of(shared / "reference" / "run-20250921-1713")


@cache
def published(folder: Path, stem: str, lens: str = "") -> list[dict[str, str]]:
    """The rows of the first prompt in a published table, as the csv module reads them."""
    path = folder / f"output-{stem}-pure-next-token{'-' + lens if lens else ''}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["prompt_id"] == "pos" and row["prompt_variant"] == "orig" and first_fact(row)]


def first_fact(row: dict[str, str]) -> bool:
    return row.get("fact_index", "") in ("", "0", None)


def column(archive: Archive, stem: str, name: str, lens: str = "") -> dict[int, float]:
    rows = published(archive.path, stem, lens)
    return {int(row["layer"]): float(row[name]) for row in rows if row[name] not in ("", None)}


def first(values: dict[int, float], holds: Callable[[float], bool]) -> int | None:
    return next((layer for layer in sorted(values) if holds(values[layer])), None)


def of(stem: str, text: str, *references: Reference, headings: tuple[str, ...] = ()) -> Statement:
    return Statement(1, text, text, references, headings, (stem,))


def judged(archive: Archive, stem: str, text: str, *references: Reference, **about: tuple[str, ...]) -> list[Judgement]:
    return [found.judgement for found in judge_statements([of(stem, text, *references, **about)], archive)]


def lines(file: str, *spans: tuple[int, int]) -> Reference:
    return Reference(f"{file}:{spans}", file, spans)


# Crossings


@pytest.mark.parametrize("stem", SEVEN)
def test_first_crossings_read_from_the_tables_are_supported_and_others_contradicted(
    october: Archive, stem: str
) -> None:
    told = {
        "rank <= 10": first(column(october, stem, "answer_rank"), lambda v: v <= 10),
        "rank <= 1": first(column(october, stem, "answer_rank"), lambda v: v <= 1),
        "KL <= 1.0": first(column(october, stem, "kl_to_final_bits"), lambda v: v <= 1.0),
        "p_top1 > 0.30": first(column(october, stem, "p_top1"), lambda v: v > 0.30),
        "p_top1 > 0.60": first(column(october, stem, "p_top1"), lambda v: v > 0.60),
        "cos_to_final >= 0.4": first(column(october, stem, "cos_to_final"), lambda v: v >= 0.4),
    }
    for what, layer in told.items():
        right = f"first {what} at layer {layer}." if layer is not None else f"first {what}: none."
        assert judged(october, stem, right) == [SUPPORTED], right
    for what, lens in (("rank <= 10", "prism"), ("KL <= 1.0", "prism")):
        name, bound = ("answer_rank", 10) if "rank" in what else ("kl_to_final_bits", 1)
        assert first(column(october, stem, name, lens), lambda v, bound=bound: v <= bound) is None
        assert judged(october, stem, f"Prism never reaches {what}.") == [SUPPORTED]
    assert told["rank <= 1"] not in (None, 1)
    assert judged(october, stem, "The first rank <= 1 at layer 1.") == [CONTRADICTED]
    assert judged(october, stem, "The answer never reaches rank <= 10.") == [CONTRADICTED]


@pytest.mark.parametrize("stem", TUNED)
def test_crossings_of_the_tuned_lens_are_held_against_its_own_rows(october: Archive, stem: str) -> None:
    tuned = [first(column(october, stem, "answer_rank", "tuned"), lambda v, k=k: v <= k) for k in (10, 5, 1)]
    text = "Tuned milestones: first_rank_le_10 at L {}; first_rank_le_5 at L {}; first_rank_le_1 at L {}."
    found = [
        judgement
        for place, k in enumerate((10, 5, 1))
        for judgement in judged(october, stem, f"Tuned: first_rank_le_{k} at L {tuned[place]}.")
    ]
    assert found == [SUPPORTED] * 3
    braces = f"Tuned: rank<={{10,5,1}} at {{{tuned[0]},{tuned[1]},{tuned[2]}}}."
    assert set(judged(october, stem, braces)) == {SUPPORTED}
    assert CONTRADICTED not in judged(october, stem, text.format(*tuned))


def test_a_list_of_bounds_has_a_layer_for_each(october: Archive) -> None:
    assert judged(october, "Qwen3-8B", "rank<={10,5,1} at {29,29,31}") == [SUPPORTED]
    wrong = judge_statements([of("Qwen3-8B", "rank<={10,5,1} at {29,28,31}")], october)
    assert CONTRADICTED in [found.judgement for found in wrong]
    assert any(found.correct == "answer_rank <= 5 first at layer 29" for found in wrong)


def test_a_quantity_carries_over_to_the_bounds_that_follow(october: Archive) -> None:
    text = "Cosine milestones: cos_to_final >= 0.2 at L5, >= 0.4 at L29, >= 0.6 at L36."
    assert judged(october, "Qwen3-14B", text) == [SUPPORTED] * 3
    assert CONTRADICTED in judged(october, "Qwen3-14B", text.replace("L29", "L30"))


def test_the_nearest_quantity_before_a_bound_is_meant(october: Archive) -> None:
    assert judged(october, "Qwen3-8B", "Entropy is low as rank <= 5 at L29.") == [SUPPORTED]


def test_by_a_layer_means_there_at_the_latest(october: Archive) -> None:
    assert judged(october, "Qwen2.5-72B", "first cos_to_final >= 0.6 by L60") == [SUPPORTED]
    assert judged(october, "Qwen2.5-72B", "first cos_to_final >= 0.6 by L50") == [CONTRADICTED]


def test_a_crossing_whose_cited_rows_are_others_is_supported_elsewhere(september: Archive) -> None:
    table = "output-Qwen2.5-72B-pure-next-token.csv"
    text = "first cos_to_final >= 0.6 at layer 53"
    [found] = judge_statements([of("Qwen2.5-72B", text, lines(table, (2, 2), (54, 54), (138, 138)))], september)
    assert found.judgement is ELSEWHERE
    text_of = (september.path / table).read_text(encoding="utf-8").split("\n")
    assert found.found_at is not None and text_of[found.found_at.line - 1].startswith("pos,orig,53,")
    assert judged(september, "Qwen2.5-72B", text, lines(table, (111, 111))) == [SUPPORTED]
    both = (lines(table, (54, 54)), lines("output-Qwen2.5-72B.json", (1, 9)))
    assert judged(september, "Qwen2.5-72B", text, *both) == [SUPPORTED]


@pytest.mark.parametrize(
    "text",
    [
        "Ablation (no-filler): rank <= 1 at L3.",
        "On the control prompt rank <= 1 at L3.",
        "At T=2.0 the rank <= 1 at L3.",
        "KL raw-vs-norm >= 1.0 at L3.",
        "KL_to_final >= 1.0 in 31/40 layers.",
        "KL rises in layers 3-9.",
    ],
)
def test_what_is_of_other_rows_is_not_judged(october: Archive, text: str) -> None:
    assert judged(october, "Qwen3-14B", text) == []


# Shapes


@pytest.mark.parametrize("stem", SEVEN)
@pytest.mark.parametrize("name", ["kl_to_final_bits", "entropy", "cos_to_final"])
def test_a_movement_is_contradicted_only_where_the_curve_turns_far(october: Archive, stem: str, name: str) -> None:
    values = column(october, stem, name)
    words = {"kl_to_final_bits": "KL decreases", "entropy": "Entropy decreases", "cos_to_final": "cos_to_final rises"}
    sign = -1 if name == "cos_to_final" else 1
    curve = [sign * values[layer] for layer in sorted(values) if layer >= 2]
    back = max(b - a for i, a in enumerate(curve) for b in curve[i:])
    span = max(curve) - min(curve)
    found = judged(october, stem, f"{words[name]} with depth.")
    if back < 0.15 * span:
        assert CONTRADICTED not in found
    if back >= 0.25 * span:
        assert found == [CONTRADICTED]


@pytest.mark.parametrize(
    "text",
    [
        "KL generally decreases with depth.",
        "KL tends to decrease with depth.",
        "KL decreases toward final.",
        "KL decreases steadily from L30 on.",
        "In late layers KL decreases with depth.",
        "KL does not decrease with depth.",
        "Not that KL decreases with depth.",
        "KL decreases.",
        "Negative control: KL decreases with depth.",
        "The direction may be an early alignment.",
    ],
)
def test_hedged_and_partial_movements_are_not_judged(october: Archive, text: str) -> None:
    assert judged(october, "Qwen3-8B", text) == []


def test_a_curve_that_goes_both_ways_a_little_is_undecided(october: Archive) -> None:
    assert judged(october, "Qwen3-14B", "Entropy decreases with depth.") == [Judgement.UNDECIDED]


@pytest.mark.parametrize("stem", SEVEN)
def test_peaks_are_where_the_largest_value_is(october: Archive, stem: str) -> None:
    for name, word in (("kl_to_final_bits", "KL"), ("entropy", "Entropy")):
        values = column(october, stem, name)
        top = max(sorted(values), key=lambda layer: values[layer])
        span = max(values.values()) - min(values.values())
        assert judged(october, stem, f"{word} peaks at layer {top}.") == [SUPPORTED]
        assert judged(october, stem, f"The largest {word} is at layer {top}.") == [SUPPORTED]
        off = next(layer for layer in sorted(values) if values[top] - values[layer] > 0.2 * span)
        assert judged(october, stem, f"{word} peaks at layer {off}.") == [CONTRADICTED]


def test_staying_on_one_side_is_judged_over_the_layers_that_are_meant(september: Archive) -> None:
    table, text = "output-Qwen2.5-72B-pure-next-token-prism.csv", "Under Prism answer_rank stays >10^4"
    assert judged(september, "Qwen2.5-72B", text, lines(table, (116, 120))) == [CONTRADICTED]
    assert judged(september, "Qwen2.5-72B", text, lines(table, (116, 118))) == [SUPPORTED]
    kl = column(september, "Qwen2.5-72B", "kl_to_final_bits")
    assert min(value for layer, value in kl.items() if layer < 75) > 5 > kl[80]
    assert judged(september, "Qwen2.5-72B", "KL stays above 5 bits until L75.") == [SUPPORTED]
    assert judged(september, "Qwen2.5-72B", "KL stays above 5 bits from L70.") == [CONTRADICTED]
    assert judged(september, "Qwen2.5-72B", "rest_mass stays below 0.4 after L_semantic.") == []


@pytest.mark.parametrize(
    ("stem", "wrong"),
    [("Qwen2.5-72B", True), ("Qwen3-8B", True), ("Yi-34B", True), ("Qwen3-14B", False), ("gemma-2-9b", None)],
)
def test_early_alignment_is_wrong_where_the_cosine_then_points_away(
    october: Archive, stem: str, wrong: bool | None
) -> None:
    cosine = column(october, stem, "cos_to_final")
    start = first(cosine, lambda v: v >= 0.2)
    assert start is not None
    after = [value for layer, value in cosine.items() if start < layer < max(cosine)]
    away = start > 0.75 * max(cosine) or sum(value < 0 for value in after) > len(after) / 2
    assert wrong is None or wrong == away
    text = "The cosine shows an early directional lock-in."
    assert judged(october, stem, text) == ([CONTRADICTED] if away else [])
    assert judged(october, stem, "There is no early cosine alignment.") == []


# Tokens


@pytest.mark.parametrize("stem", SEVEN)
def test_when_the_answer_leads(october: Archive, stem: str) -> None:
    ranks = column(october, stem, "answer_rank")
    onset, five = first(ranks, lambda v: v == 1), first(ranks, lambda v: v <= 5)
    assert judged(october, stem, f"'Berlin' first becomes rank-1 at L{onset}.") == [SUPPORTED]
    assert SUPPORTED in judged(october, stem, f"Berlin first enters the top-5 at L {five}.")
    assert judged(october, stem, "'Berlin' is top-1 at layer 2.") == [CONTRADICTED]
    held = max((layer for layer, rank in ranks.items() if rank != 1), default=-1) + 1
    assert judged(october, stem, f"Berlin stabilises as the persistent top-1 from L{held} onward.") == [SUPPORTED]
    early = judged(october, stem, f"Berlin stabilises as the persistent top-1 from L{held - 1} onward.")
    assert early == [CONTRADICTED]
    assert judged(october, stem, "Paris becomes rank-1 at L2.") == []


def test_lists_of_tokens_are_held_against_the_cited_rows(september: Archive) -> None:
    table = "output-Qwen2.5-72B-records.csv"
    with (september.path / table).open(newline="", encoding="utf-8") as file:
        at_76 = [row for row in csv.DictReader(file) if row["layer"] == "76"]
    fives = [{row[f"top{k}"].strip() for k in range(1, 6)} for row in at_76]
    assert any("capital" in five for five in fives)
    assert not any({"capital", "Berlin"} <= five for five in fives)
    cited = lines(table, (3966, 3966))
    assert judged(september, "Qwen2.5-72B", "L76 top-5 includes capital alongside Berlin", cited) == [CONTRADICTED]
    assert judged(september, "Qwen2.5-72B", "L76 top-5 includes capital", cited) == [SUPPORTED]
    assert judged(september, "Qwen2.5-72B", "L76 top-5 includes punctuation", cited) == []


def test_kinds_of_tokens_over_named_and_over_cited_layers(october: Archive, september: Archive) -> None:
    tops = {int(row["layer"]): row["top1"] for row in published(october.path, "Qwen3-8B")}
    assert all(not any(letter.isalnum() for letter in tops[layer]) for layer in range(20, 29))
    assert judged(october, "Qwen3-8B", "Underscores/punctuation dominate top-1 in L20-28.") == [SUPPORTED]
    assert judged(october, "Qwen3-14B", "Fillers dominate L0-5 top-1.") == [CONTRADICTED]
    assert judged(october, "Qwen3-14B", "Fillers do not dominate; in L0-5 top-1 varies.") == []
    table = "output-Qwen2.5-72B-pure-next-token.csv"
    text = "Present in mid/late layers (quotes/commas dominate top-1)"
    assert judged(september, "Qwen2.5-72B", text, lines(table, (51, 72))) == [ELSEWHERE]
    assert judged(september, "Qwen2.5-72B", text, lines(table, (109, 130))) == [SUPPORTED]


# Flags


@pytest.mark.parametrize("stem", SEVEN)
def test_copying_early(october: Archive, stem: str) -> None:
    early = [row for row in published(october.path, stem) if int(row["layer"]) <= 3]
    copies = any(row[flag] == "True" for row in early for flag in ("copy_collapse", "copy_soft_k1@0.5"))
    denied, affirmed = "Copy-reflex? ✗ (no strict/soft hits in L0-3)", "Copy-reflex? ✓ (fires at L0)"
    assert judged(october, stem, denied) == [CONTRADICTED if copies else SUPPORTED]
    assert judged(october, stem, affirmed) == [SUPPORTED if copies else CONTRADICTED]
    assert copies == stem.startswith("gemma")


def test_wider_windows_of_soft_copying_are_no_reflex(october: Archive) -> None:
    assert judged(october, "gemma-2-9b", "No early copy flags for soft windows k=2,3.") == []


def test_clean_bills_are_held_against_flags(october: Archive) -> None:
    spikes = "The normalizer effect is well-behaved (no extreme spikes)"
    assert judged(october, "Qwen3-14B", spikes) == [CONTRADICTED]
    assert judged(october, "Qwen3-14B", "No spike in rest_mass; the norm is fine.") == []
    assert judged(october, "Qwen3-14B", "Numeric health is clean.") == [SUPPORTED]
    assert judged(october, "Qwen3-14B", "Final-head calibration is excellent.") == [SUPPORTED]
    assert judged(october, "gemma-2-9b", "Final-head calibration is excellent.") == [CONTRADICTED]
    assert judged(october, "gemma-2-9b", "The head is not well-calibrated.") == []


# Sums


def test_percentages_and_differences_are_computed_anew(october: Archive) -> None:
    assert judged(october, "Meta-Llama-3-70B", "40/80 = 50%") == [SUPPORTED]
    assert judged(october, "Meta-Llama-3-70B", "40/80 = 60%") == [CONTRADICTED]
    assert judged(october, "Meta-Llama-3-8B", "25/32 ≈ 78%") == [SUPPORTED]
    assert CONTRADICTED in judged(october, "Qwen3-14B", "Δ rank = +4 (39 vs 36)")
    assert judged(october, "Qwen3-14B", "Δ rank = +3 (39 vs 36)") == []


def test_an_entropy_drop_is_the_difference_of_two_entropies(october: Archive) -> None:
    entropy = column(october, "Qwen3-14B", "entropy")
    text = "ΔH ≈ {} bits (entropy@L_copy≈{:.3f} vs entropy@L_sem≈{:.3f})"
    right = text.format("0.50", entropy[32], entropy[36])
    assert judged(october, "Qwen3-14B", right) == [SUPPORTED]
    assert judged(october, "Qwen3-14B", text.format("0.70", entropy[32], entropy[36])) == [CONTRADICTED]


# Fitted lenses


def gains(archive: Archive, stem: str, lens: str) -> list[float]:
    """Baseline less fitted, in bits, at a quarter, half and three quarters of the depth."""
    base, fitted = (column(archive, stem, "kl_to_final_bits", which) for which in ("", lens))
    depth = max(base)
    return [base[round(depth * q)] - fitted[round(depth * q)] for q in (0.25, 0.5, 0.75)]


FITTED = [*((stem, "prism") for stem in SEVEN), *((stem, "tuned") for stem in TUNED)]


@pytest.mark.parametrize(("stem", "lens"), FITTED)
def test_gains_have_the_sign_that_the_text_says_they_have(october: Archive, stem: str, lens: str) -> None:
    true = gains(october, stem, lens)
    as_gain = "{" + ", ".join(f"{gain:+.2f}" for gain in true) + "}"
    as_change = "{" + ", ".join(f"{-gain:+.2f}" for gain in true) + "}"
    base = f"ΔKL_{lens}"
    assert judged(october, stem, f"{base} = {as_gain} bits ({lens})") == [SUPPORTED]
    assert judged(october, stem, f"{base} = {as_change} bits ({lens})") == [CONTRADICTED]
    assert judged(october, stem, f"{base} = {as_change} bits ({lens} − baseline)") == [SUPPORTED]
    assert judged(october, stem, f"{base} = {as_gain} bits ({lens} − baseline)") == [CONTRADICTED]
    assert judged(october, stem, f"{base} = {as_gain} bits (baseline − {lens})") == [SUPPORTED]
    assert judged(october, stem, f"{base} = {as_change} bits (baseline − {lens})") == [CONTRADICTED]
    assert CONTRADICTED not in judged(october, stem, f"{base} vs baseline = {as_change} bits ({lens})")


@pytest.mark.parametrize(("stem", "lens"), FITTED)
def test_words_on_gains_count_before_signs(october: Archive, stem: str, lens: str) -> None:
    true = gains(october, stem, lens)
    amounts = "{" + ", ".join(f"{abs(gain):.2f}" for gain in true) + "}"
    better, worse = (judged(october, stem, f"{lens} {verb} KL by {amounts} bits.") for verb in ("lowers", "raises"))
    assert (CONTRADICTED in better) == all(gain < 0 for gain in true)
    assert (CONTRADICTED in worse) == all(gain > 0 for gain in true)


def test_words_on_ranks_say_nothing_of_bits(october: Archive) -> None:
    amounts = "{" + ", ".join(f"{gain:+.2f}" for gain in gains(october, "Yi-34B", "tuned")) + "}"
    text = f"Tuned ΔKL = {amounts} bits, yet no rank improvements."
    assert judged(october, "Yi-34B", text) == [SUPPORTED, SUPPORTED]


@pytest.mark.parametrize("stem", TUNED)
def test_shifts_in_layers_are_fitted_less_baseline(october: Archive, stem: str) -> None:
    shifts = {}
    for k in (10, 5, 1):
        base, tuned = (first(column(october, stem, "answer_rank", w), lambda v, k=k: v <= k) for w in ("", "tuned"))
        assert base is not None and tuned is not None
        shifts[k] = tuned - base
    for k, shift in shifts.items():
        assert judged(october, stem, f"Tuned rank deltas: le_{k} {shift:+d}") == [SUPPORTED]
        assert judged(october, stem, f"Tuned rank deltas: le_{k} {-shift - 1:+d}") == [CONTRADICTED]
    assert min(shifts.values()) >= 0
    assert judged(october, stem, "Tuned gives consistent rank improvements.") == [CONTRADICTED]
    assert judged(october, stem, "Tuned gives no earlier rank milestones.") == [SUPPORTED]
    assert judged(october, stem, "Tuned may give earlier rank milestones.") == []
    assert judged(october, stem, "The baseline has earlier rank milestones than tuned.") == []
    later = judged(october, stem, "Tuned milestones are later.")
    assert later == [SUPPORTED if max(shifts.values()) > 0 else CONTRADICTED]


@pytest.mark.parametrize("stem", SEVEN)
def test_higher_or_lower_divergence_of_a_fitted_lens(october: Archive, stem: str) -> None:
    true = gains(october, stem, "prism")
    higher = judged(october, stem, "Prism is regressive (higher KL).")
    assert (CONTRADICTED in higher) == all(gain > 0 for gain in true)
    assert (SUPPORTED in higher) == all(gain < 0 for gain in true)


# Several models, and reports on other runs


def test_each_model_of_a_sentence_is_judged_by_its_own_rows(october: Archive) -> None:
    text = "Examples: Qwen3-8B rank<={10,5,1} at {29,29,31}; Yi-34B rank<={10,5,1} at {43,44,45}."
    statement = Statement(1, text, text, (), (), ("Qwen3-8B", "Yi-34B"))
    found = judge_statements([statement], october)
    assert {(one.judgement, "45" in one.claim) for one in found} == {(SUPPORTED, False), (CONTRADICTED, True)}


def test_a_sentence_on_all_models_is_not_taken_for_one_on_the_model_beside_it(october: Archive) -> None:
    general = Statement(1, "KL decreases with depth.", "", (), (), ("Qwen3-8B",))
    other = Statement(2, "Yi-34B is late.", "", (), (), ("Yi-34B",))
    named = Statement(3, "For Qwen3-8B KL decreases with depth.", "", (), (), ("Qwen3-8B",))
    assert [found.line for found in judge_statements([general, other, named], october)] == [3]


def test_a_report_that_cites_other_files_of_the_model_is_not_judged(october: Archive) -> None:
    cited = Reference("output-Qwen3-8B.txt:1", "output-Qwen3-8B.txt", ((1, 1),))
    assert judged(october, "Qwen3-8B", "KL decreases with depth.", cited) == []


@pytest.mark.parametrize("text", ["KL decreases ", "fillers/", "rank ", "'Berlin' ", "1.0,", "{", ">= 0.2 ", "L 1 - "])
def test_long_texts_without_a_claim_say_nothing(october: Archive, text: str) -> None:
    assert judged(october, "Qwen3-8B", text * (6000 // len(text))) == []


# The published reports

WRONG = {
    "H37": "KL decreases with depth",
    "H38": ">= 0.6 at layer 53",
    "H39": "quotes/commas dominate",
    "H40": "answer_rank stays >10^4",
    "H41": "L76 top-5 includes capital alongside Berlin",
    "H42": "early directional lock-in",
    "H47": "no extreme spikes",
    "H48": "fillers dominate",
    "H50": "KL to final decreases with depth",
}
RUNS = {
    "evaluation-Qwen2.5-72B.20250921.md": "run-20250921-1713",
    "evaluation-Qwen3-14B.20251004.md": "run-20251004-1804",
    "evaluation-Qwen3-8B.20251004.md": "run-20251004-1804",
    "evaluation-cross-models.20250928.md": "run-20250928-1722",
    "evaluation-Qwen3-8B.early.md": "run-20251004-1804",
}


@pytest.fixture
def audited(shared: Path) -> Callable[[str], list[Finding]]:
    def audit(report: str) -> list[Finding]:
        archive = archive_of(shared / "reference" / RUNS[report])
        text = (shared / "reports" / report).read_text(encoding="utf-8")
        return judge_statements(read_report(text, archive.stems), archive)

    return audit


def test_conclusions_known_to_be_wrong_are_found(shared: Path, audited: Callable[[str], list[Finding]]) -> None:
    with (shared / "reports" / "claims.csv").open(newline="", encoding="utf-8") as file:
        claims = {row["id"]: row for row in csv.DictReader(file)}
    for name, words in WRONG.items():
        assert claims[name]["label"] == "false"
        found = [f for f in audited(claims[name]["report"]) if f.line == int(claims[name]["line"])]
        assert any(f.claim == words and f.judgement.is_wrong for f in found), name


EXPECTED_LINES = {
    "evaluation-Qwen2.5-72B.20250921.md": {106, 108, 113, 120, 124, 130, 145, 153},
    "evaluation-Qwen3-14B.20251004.md": {17, 18, 133, 183},
    "evaluation-Qwen3-8B.20251004.md": {95},
    "evaluation-cross-models.20250928.md": set(),
    "evaluation-Qwen3-8B.early.md": set(),
}
"""Lines whose wrong verdicts were each checked by hand against the tables."""


@pytest.mark.parametrize("report", RUNS)
def test_no_other_line_of_the_published_reports_is_called_wrong(
    audited: Callable[[str], list[Finding]], report: str
) -> None:
    assert {found.line for found in audited(report) if found.judgement.is_wrong} == EXPECTED_LINES[report]


def test_findings_on_right_conclusions_are_there(audited: Callable[[str], list[Finding]]) -> None:
    supported = {(f.line, f.claim) for f in audited("evaluation-Qwen2.5-72B.20250921.md") if f.judgement is SUPPORTED}
    assert {(102, "p_top1 > 0.30 at layer 77"), (102, "p_top1 > 0.60: none")} <= supported
    shifts = {(f.line, f.claim) for f in audited("evaluation-Qwen3-14B.20251004.md") if f.judgement is SUPPORTED}
    assert (144, "first_rank_le_1 = +3") in shifts
