import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from layerscope.audit.audit import judge_statements
from layerscope.audit.parse.read_report import Reference, Statement, read_report
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Finding, Judgement
from made_sweep import FITTED
from published_archives import archive_of, folder_of, with_made

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


@pytest.fixture
def archive(stem: str, request: pytest.FixtureRequest) -> Archive:
    """Of a self-made model or of a published one."""
    return archive_of(folder_of(stem, request))


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


def first_ranks(archive: Archive, stem: str, *bounds: int, lens: str = "") -> list[int | None]:
    """For each bound the first layer at which the answer's rank is within it."""
    ranks = column(archive, stem, "answer_rank", lens)
    return [first(ranks, lambda v, bound=bound: v <= bound) for bound in bounds]


def unreached(archive: Archive, stem: str, what: str) -> int:
    """A layer at which no lens crosses a bound first: what is wrong of one lens may be right of another."""
    name, op, bound = what.split()
    name = {"rank": "answer_rank", "KL": "kl_to_final_bits"}.get(name, name)
    holds = {"<=": lambda v: v <= float(bound), ">": lambda v: v > float(bound), ">=": lambda v: v >= float(bound)}[op]
    depth, found = 0, set[int | None]()
    for lens, column_name in (("", name), ("prism", name), ("tuned", name), ("rawlens", f"{name}_raw")):
        if has_column(archive, stem, column_name, lens):
            values = column(archive, stem, column_name, lens)
            depth = max(depth, *values)
            found.add(first(values, holds))
    return next(layer for layer in range(1, depth) if layer not in found)


def has_column(archive: Archive, stem: str, name: str, lens: str) -> bool:
    path = archive.path / f"output-{stem}-pure-next-token{'-' + lens if lens else ''}.csv"
    return path.is_file() and name in published(archive.path, stem, lens)[0]


def row_line(archive: Archive, file: str, layer: int) -> int:
    """The line on which the first prompt's row of a layer begins, counted from 1."""
    said = (archive.path / file).read_text(encoding="utf-8").split("\n")
    return next(n for n, line in enumerate(said, start=1) if f"pos,orig,{layer}," in line)


def of(stem: str, text: str, *references: Reference, headings: tuple[str, ...] = ()) -> Statement:
    return Statement(1, text, text, references, headings, (stem,))


def judged(archive: Archive, stem: str, text: str, *references: Reference, **about: tuple[str, ...]) -> list[Judgement]:
    return [found.judgement for found in judge_statements([of(stem, text, *references, **about)], archive)]


def lines(file: str, *spans: tuple[int, int]) -> Reference:
    return Reference(f"{file}:{spans}", file, spans)


# Crossings


@pytest.mark.parametrize("stem", with_made(*SEVEN))
def test_first_crossings_read_from_the_tables_are_supported_and_others_contradicted(
    archive: Archive, stem: str
) -> None:
    told = {
        "rank <= 10": first(column(archive, stem, "answer_rank"), lambda v: v <= 10),
        "rank <= 1": first(column(archive, stem, "answer_rank"), lambda v: v <= 1),
        "KL <= 1.0": first(column(archive, stem, "kl_to_final_bits"), lambda v: v <= 1.0),
        "p_top1 > 0.30": first(column(archive, stem, "p_top1"), lambda v: v > 0.30),
        "p_top1 > 0.60": first(column(archive, stem, "p_top1"), lambda v: v > 0.60),
        "cos_to_final >= 0.4": first(column(archive, stem, "cos_to_final"), lambda v: v >= 0.4),
    }
    for what, layer in told.items():
        right = f"first {what} at layer {layer}." if layer is not None else f"first {what}: none."
        assert judged(archive, stem, right) == [SUPPORTED], right
        changed = f"first {what} at layer {unreached(archive, stem, what)}."
        assert judged(archive, stem, changed) == [CONTRADICTED], changed
    assert (told["rank <= 1"] is None) is (stem == "mute")
    assert judged(archive, stem, "The first rank <= 1 at layer 1.") == [CONTRADICTED]
    assert judged(archive, stem, "The answer never reaches rank <= 10.") == [CONTRADICTED]


@pytest.mark.parametrize("stem", with_made(*SEVEN, made=FITTED))
def test_that_prism_never_crosses_is_held_against_its_own_rows(archive: Archive, stem: str) -> None:
    for what, name, bound in (("rank <= 10", "answer_rank", 10), ("KL <= 1.0", "kl_to_final_bits", 1)):
        never = first(column(archive, stem, name, "prism"), lambda v, bound=bound: v <= bound) is None
        assert never is (stem in SEVEN)
        assert judged(archive, stem, f"Prism never reaches {what}.") == [SUPPORTED if never else CONTRADICTED]


@pytest.mark.parametrize("stem", with_made(*TUNED, made=FITTED))
def test_crossings_of_the_tuned_lens_are_held_against_its_own_rows(archive: Archive, stem: str) -> None:
    tuned = first_ranks(archive, stem, 10, 5, 1, lens="tuned")
    text = "Tuned milestones: first_rank_le_10 at L {}; first_rank_le_5 at L {}; first_rank_le_1 at L {}."
    found = [
        judgement
        for place, k in enumerate((10, 5, 1))
        for judgement in judged(archive, stem, f"Tuned: first_rank_le_{k} at L {tuned[place]}.")
    ]
    assert found == [SUPPORTED] * 3
    braces = f"Tuned: rank<={{10,5,1}} at {{{tuned[0]},{tuned[1]},{tuned[2]}}}."
    assert set(judged(archive, stem, braces)) == {SUPPORTED}
    assert CONTRADICTED not in judged(archive, stem, text.format(*tuned))


@pytest.mark.parametrize("stem", with_made("Qwen3-8B"))
def test_a_list_of_bounds_has_a_layer_for_each(archive: Archive, stem: str) -> None:
    ten, five, one = first_ranks(archive, stem, 10, 5, 1)
    bounds = "rank<={10,5,1}" if one is not None else "rank<={10,5}"
    layers = f"{ten},{{}},{one}" if one is not None else f"{ten},{{}}"
    assert judged(archive, stem, f"{bounds} at {{{layers.format(five)}}}") == [SUPPORTED]
    wrong = judge_statements([of(stem, f"{bounds} at {{{layers.format(five - 1)}}}")], archive)
    assert CONTRADICTED in [found.judgement for found in wrong]
    assert any(found.correct == f"answer_rank <= 5 first at layer {five}" for found in wrong)


@pytest.mark.parametrize("stem", with_made("Qwen3-14B", made=("reference", "echo", "fickle")))
def test_a_quantity_carries_over_to_the_bounds_that_follow(archive: Archive, stem: str) -> None:
    cosine = column(archive, stem, "cos_to_final")
    low, middle, high = (first(cosine, lambda v, bound=bound: v >= bound) for bound in (0.2, 0.4, 0.6))
    text = "Cosine milestones: cos_to_final >= 0.2 at L{}, >= 0.4 at L{}, >= 0.6 at L{}."
    assert judged(archive, stem, text.format(low, middle, high)) == [SUPPORTED] * 3
    assert CONTRADICTED in judged(archive, stem, text.format(low, middle + 1, high))


@pytest.mark.parametrize("stem", with_made("Qwen3-8B", made=("echo", "fickle", "mute")))
def test_the_nearest_quantity_before_a_bound_is_meant(archive: Archive, stem: str) -> None:
    [five] = first_ranks(archive, stem, 5)
    assert judged(archive, stem, f"Entropy is low as rank <= 5 at L{five}.") == [SUPPORTED]
    assert judged(archive, stem, f"Entropy is low as rank <= 5 at L{five - 2}.") == [CONTRADICTED]


@pytest.mark.parametrize("stem", with_made("Qwen2.5-72B", made=("echo", "fickle", "mute")))
def test_by_a_layer_means_there_at_the_latest(archive: Archive, stem: str) -> None:
    layer = first(column(archive, stem, "cos_to_final"), lambda v: v >= 0.6)
    assert layer is not None and layer > 2
    assert judged(archive, stem, f"first cos_to_final >= 0.6 by L{layer + 2}") == [SUPPORTED]
    assert judged(archive, stem, f"first cos_to_final >= 0.6 by L{layer - 2}") == [CONTRADICTED]


@pytest.mark.parametrize("stem", with_made(made=("reference", "echo", "fickle")))
def test_a_crossing_whose_cited_row_is_another_layers_is_told_the_right_row(archive: Archive, stem: str) -> None:
    table = f"output-{stem}-pure-next-token.csv"
    layer = first(column(archive, stem, "cos_to_final"), lambda v: v >= 0.6)
    assert layer is not None
    right, wrong = (row_line(archive, table, at) for at in (layer, layer - 1))
    text = f"first cos_to_final >= 0.6 at layer {layer}"
    [found] = judge_statements([of(stem, text, lines(table, (2, 2), (wrong, wrong)))], archive)
    assert (found.judgement, found.found_at and found.found_at.line) == (ELSEWHERE, right)
    assert judged(archive, stem, text, lines(table, (right, right))) == [SUPPORTED]


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
@pytest.mark.parametrize("stem", with_made("Qwen3-14B", made=FITTED))
def test_what_is_of_other_rows_is_not_judged(archive: Archive, stem: str, text: str) -> None:
    assert judged(archive, stem, text) == []


# Shapes


@pytest.mark.parametrize("stem", with_made(*SEVEN))
@pytest.mark.parametrize("name", ["kl_to_final_bits", "entropy", "cos_to_final"])
def test_a_movement_is_contradicted_only_where_the_curve_turns_far(archive: Archive, stem: str, name: str) -> None:
    values = column(archive, stem, name)
    words = {"kl_to_final_bits": "KL decreases", "entropy": "Entropy decreases", "cos_to_final": "cos_to_final rises"}
    sign = -1 if name == "cos_to_final" else 1
    curve = [sign * values[layer] for layer in sorted(values) if layer >= 2]
    back = max(b - a for i, a in enumerate(curve) for b in curve[i:])
    span = max(curve) - min(curve)
    found = judged(archive, stem, f"{words[name]} with depth.")
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
@pytest.mark.parametrize("stem", with_made("Qwen3-8B", made=("mute",)))
def test_hedged_and_partial_movements_are_not_judged(archive: Archive, stem: str, text: str) -> None:
    assert judged(archive, stem, text) == []


def test_a_curve_that_goes_both_ways_a_little_is_undecided(october: Archive) -> None:
    assert judged(october, "Qwen3-14B", "Entropy decreases with depth.") == [Judgement.UNDECIDED]


@pytest.mark.parametrize("stem", with_made(*SEVEN))
def test_peaks_are_where_the_largest_value_is(archive: Archive, stem: str) -> None:
    for name, word in (("kl_to_final_bits", "KL"), ("entropy", "Entropy")):
        values = column(archive, stem, name)
        top = max(sorted(values), key=lambda layer: values[layer])
        span = max(values.values()) - min(values.values())
        assert judged(archive, stem, f"{word} peaks at layer {top}.") == [SUPPORTED]
        assert judged(archive, stem, f"The largest {word} is at layer {top}.") == [SUPPORTED]
        off = next(layer for layer in sorted(values) if values[top] - values[layer] > 0.2 * span)
        assert judged(archive, stem, f"{word} peaks at layer {off}.") == [CONTRADICTED]


def test_staying_on_one_side_is_judged_over_the_layers_that_are_meant(september: Archive) -> None:
    table, text = "output-Qwen2.5-72B-pure-next-token-prism.csv", "Under Prism answer_rank stays >10^4"
    assert judged(september, "Qwen2.5-72B", text, lines(table, (116, 120))) == [CONTRADICTED]
    assert judged(september, "Qwen2.5-72B", text, lines(table, (116, 118))) == [SUPPORTED]
    kl = column(september, "Qwen2.5-72B", "kl_to_final_bits")
    assert min(value for layer, value in kl.items() if layer < 75) > 5 > kl[80]
    assert judged(september, "Qwen2.5-72B", "KL stays above 5 bits until L75.") == [SUPPORTED]
    assert judged(september, "Qwen2.5-72B", "KL stays above 5 bits from L70.") == [CONTRADICTED]
    assert judged(september, "Qwen2.5-72B", "rest_mass stays below 0.4 after L_semantic.") == []


@pytest.mark.parametrize("stem", ["reference", "echo"])
def test_staying_above_a_bound_is_judged_over_the_layers_that_are_named(archive: Archive, stem: str) -> None:
    kl = column(archive, stem, "kl_to_final_bits")
    below = first(kl, lambda v: v <= 3.0)
    assert below is not None and below > 2
    assert judged(archive, stem, f"KL stays above 3 bits until L{below - 1}.") == [SUPPORTED]
    assert judged(archive, stem, f"KL stays above 3 bits from L{below - 2}.") == [CONTRADICTED]


EARLY_ALIGNMENT_IS_WRONG = {"Qwen2.5-72B": True, "Qwen3-8B": True, "Yi-34B": True, "Qwen3-14B": False, "echo": False}


@pytest.mark.parametrize("stem", with_made(*SEVEN[2:]))
def test_early_alignment_is_wrong_where_the_cosine_then_points_away(archive: Archive, stem: str) -> None:
    cosine = column(archive, stem, "cos_to_final")
    start = first(cosine, lambda v: v >= 0.2)
    assert start is not None
    after = [value for layer, value in cosine.items() if start < layer < max(cosine)]
    away = start > 0.75 * max(cosine) or sum(value < 0 for value in after) > len(after) / 2
    assert EARLY_ALIGNMENT_IS_WRONG.get(stem, away) == away
    text = "The cosine shows an early directional lock-in."
    assert judged(archive, stem, text) == ([CONTRADICTED] if away else [])
    assert judged(archive, stem, "There is no early cosine alignment.") == []


# Tokens


@pytest.mark.parametrize("stem", with_made(*SEVEN, made=("reference", "echo")))
def test_when_the_answer_leads(archive: Archive, stem: str) -> None:
    ranks = column(archive, stem, "answer_rank")
    onset, five = first(ranks, lambda v: v == 1), first(ranks, lambda v: v <= 5)
    assert judged(archive, stem, f"'Berlin' first becomes rank-1 at L{onset}.") == [SUPPORTED]
    assert SUPPORTED in judged(archive, stem, f"Berlin first enters the top-5 at L {five}.")
    assert judged(archive, stem, "'Berlin' is top-1 at layer 1.") == [CONTRADICTED]
    held = max((layer for layer, rank in ranks.items() if rank != 1), default=-1) + 1
    assert judged(archive, stem, f"Berlin stabilises as the persistent top-1 from L{held} onward.") == [SUPPORTED]
    early = judged(archive, stem, f"Berlin stabilises as the persistent top-1 from L{held - 1} onward.")
    assert early == [CONTRADICTED]
    assert judged(archive, stem, "Paris becomes rank-1 at L2.") == []


@pytest.mark.parametrize("stem", with_made())
def test_a_list_of_tokens_is_held_against_the_row_that_is_cited(archive: Archive, stem: str) -> None:
    table = f"output-{stem}-pure-next-token.csv"
    [row] = [row for row in published(archive.path, stem) if row["layer"] == "9"]
    five, before = [[row[f"top{k}"].strip() for k in range(1, 6)] for row in (row, published(archive.path, stem)[0])]
    shown = next(word for word in five if word.isalpha())
    absent = next(word for word in before if word.isalpha() and word not in five)
    cited = lines(table, (row_line(archive, table, 9),) * 2)
    assert judged(archive, stem, f"L9 top-5 includes {shown}", cited) == [SUPPORTED]
    assert judged(archive, stem, f"L9 top-5 includes {absent} alongside {shown}", cited) == [CONTRADICTED]


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


@pytest.mark.parametrize("stem", with_made(*SEVEN))
def test_copying_early(archive: Archive, stem: str) -> None:
    early = [row for row in published(archive.path, stem) if int(row["layer"]) <= 3]
    copies = any(row[flag] == "True" for row in early for flag in ("copy_collapse", "copy_soft_k1@0.5"))
    denied, affirmed = "Copy-reflex? ✗ (no strict/soft hits in L0-3)", "Copy-reflex? ✓ (fires at L0)"
    assert judged(archive, stem, denied) == [CONTRADICTED if copies else SUPPORTED]
    assert judged(archive, stem, affirmed) == [SUPPORTED if copies else CONTRADICTED]
    assert copies == stem.startswith(("gemma", "echo", "fickle"))


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


@pytest.mark.parametrize("stem", with_made())
def test_a_clean_bill_is_supported_where_nothing_is_flagged(archive: Archive, stem: str) -> None:
    divergence = column(archive, stem, "kl_to_final_bits")
    assert divergence[max(divergence)] < 1e-3
    assert judged(archive, stem, "Numeric health is clean.") == [SUPPORTED]
    assert judged(archive, stem, "Final-head calibration is excellent.") == [SUPPORTED]


# Sums


def test_percentages_and_differences_are_computed_anew(october: Archive) -> None:
    assert judged(october, "Meta-Llama-3-70B", "40/80 = 50%") == [SUPPORTED]
    assert judged(october, "Meta-Llama-3-70B", "40/80 = 60%") == [CONTRADICTED]
    assert judged(october, "Meta-Llama-3-8B", "25/32 ≈ 78%") == [SUPPORTED]
    assert CONTRADICTED in judged(october, "Qwen3-14B", "Δ rank = +4 (39 vs 36)")
    assert judged(october, "Qwen3-14B", "Δ rank = +3 (39 vs 36)") == []


@pytest.mark.parametrize("stem", with_made())
def test_a_share_of_the_depth_is_computed_anew(archive: Archive, stem: str) -> None:
    [layer], depth = first_ranks(archive, stem, 10), max(column(archive, stem, "entropy"))
    assert layer is not None
    assert judged(archive, stem, f"{layer}/{depth} ≈ {100 * layer / depth:.0f}%") == [SUPPORTED]
    assert judged(archive, stem, f"{layer}/{depth} ≈ {100 * layer / depth + 10:.0f}%") == [CONTRADICTED]


@pytest.mark.parametrize("stem", with_made("Qwen3-14B", made=("reference", "echo", "fickle")))
def test_an_entropy_drop_is_the_difference_of_two_entropies(archive: Archive, stem: str) -> None:
    entropy = column(archive, stem, "entropy")
    [onset] = first_ranks(archive, stem, 1)
    assert onset is not None
    before = entropy[onset - 4]
    text = "ΔH ≈ {:.2f} bits (entropy@L_copy≈{:.3f} vs entropy@L_sem≈{:.3f})"
    drop = before - entropy[onset]
    assert judged(archive, stem, text.format(drop, before, entropy[onset])) == [SUPPORTED]
    assert judged(archive, stem, text.format(drop + 0.2, before, entropy[onset])) == [CONTRADICTED]


# Fitted lenses


def gains(archive: Archive, stem: str, lens: str) -> list[float]:
    """Baseline less fitted, in bits, at a quarter, half and three quarters of the depth."""
    base, fitted = (column(archive, stem, "kl_to_final_bits", which) for which in ("", lens))
    depth = max(base)
    return [base[round(depth * q)] - fitted[round(depth * q)] for q in (0.25, 0.5, 0.75)]


PAIRS = [
    *((stem, "prism") for stem in with_made(*SEVEN, made=FITTED)),
    *((stem, "tuned") for stem in with_made(*TUNED, made=FITTED)),
]


@pytest.mark.parametrize(("stem", "lens"), PAIRS)
def test_gains_have_the_sign_that_the_text_says_they_have(archive: Archive, stem: str, lens: str) -> None:
    true = gains(archive, stem, lens)
    as_gain = "{" + ", ".join(f"{gain:+.2f}" for gain in true) + "}"
    as_change = "{" + ", ".join(f"{-gain:+.2f}" for gain in true) + "}"
    base = f"ΔKL_{lens}"
    assert judged(archive, stem, f"{base} = {as_gain} bits ({lens})") == [SUPPORTED]
    assert judged(archive, stem, f"{base} = {as_change} bits ({lens})") == [CONTRADICTED]
    assert judged(archive, stem, f"{base} = {as_change} bits ({lens} − baseline)") == [SUPPORTED]
    assert judged(archive, stem, f"{base} = {as_gain} bits ({lens} − baseline)") == [CONTRADICTED]
    assert judged(archive, stem, f"{base} = {as_gain} bits (baseline − {lens})") == [SUPPORTED]
    assert judged(archive, stem, f"{base} = {as_change} bits (baseline − {lens})") == [CONTRADICTED]
    assert CONTRADICTED not in judged(archive, stem, f"{base} vs baseline = {as_change} bits ({lens})")


@pytest.mark.parametrize(("stem", "lens"), PAIRS)
def test_words_on_gains_count_before_signs(archive: Archive, stem: str, lens: str) -> None:
    true = gains(archive, stem, lens)
    amounts = "{" + ", ".join(f"{abs(gain):.2f}" for gain in true) + "}"
    better, worse = (judged(archive, stem, f"{lens} {verb} KL by {amounts} bits.") for verb in ("lowers", "raises"))
    telling = [gain for gain in true if abs(gain) > 0.05]  # words say nothing of less
    assert (CONTRADICTED in better) == all(gain < 0 for gain in telling)
    assert (CONTRADICTED in worse) == all(gain > 0 for gain in telling)


def test_words_on_ranks_say_nothing_of_bits(october: Archive) -> None:
    amounts = "{" + ", ".join(f"{gain:+.2f}" for gain in gains(october, "Yi-34B", "tuned")) + "}"
    text = f"Tuned ΔKL = {amounts} bits, yet no rank improvements."
    assert judged(october, "Yi-34B", text) == [SUPPORTED, SUPPORTED]


@pytest.mark.parametrize("stem", with_made(*TUNED, made=FITTED))
def test_shifts_in_layers_are_fitted_less_baseline(archive: Archive, stem: str) -> None:
    shifts = {}
    for k in (10, 5, 1):
        base, tuned = (first(column(archive, stem, "answer_rank", w), lambda v, k=k: v <= k) for w in ("", "tuned"))
        assert base is not None and tuned is not None
        shifts[k] = tuned - base
    for k, shift in shifts.items():
        assert judged(archive, stem, f"Tuned rank deltas: le_{k} {shift:+d}") == [SUPPORTED]
        assert judged(archive, stem, f"Tuned rank deltas: le_{k} {-shift - 1:+d}") == [CONTRADICTED]
    earlier = max(shifts.values()) < 0
    assert earlier or min(shifts.values()) >= 0
    better, never = "Tuned gives consistent rank improvements.", "Tuned gives no earlier rank milestones."
    assert judged(archive, stem, better) == [SUPPORTED if earlier else CONTRADICTED]
    assert judged(archive, stem, never) == [CONTRADICTED if earlier else SUPPORTED]
    assert judged(archive, stem, "Tuned may give earlier rank milestones.") == []
    assert judged(archive, stem, "The baseline has earlier rank milestones than tuned.") == []
    later = judged(archive, stem, "Tuned milestones are later.")
    assert later == [SUPPORTED if max(shifts.values()) > 0 else CONTRADICTED]


@pytest.mark.parametrize("stem", with_made(*SEVEN, made=FITTED))
def test_higher_or_lower_divergence_of_a_fitted_lens(archive: Archive, stem: str) -> None:
    true = gains(archive, stem, "prism")
    higher = judged(archive, stem, "Prism is regressive (higher KL).")
    assert (CONTRADICTED in higher) == all(gain > 0 for gain in true)
    assert (SUPPORTED in higher) == all(gain < 0 for gain in true)


# Several models, and reports on other runs


BESIDE = {"echo": "fickle", "Qwen3-8B": "Yi-34B"}


@pytest.mark.parametrize("stem", with_made("Qwen3-8B", made=("echo",)))
def test_each_model_of_a_sentence_is_judged_by_its_own_rows(archive: Archive, stem: str) -> None:
    other = BESIDE[stem]
    ten, five, one = first_ranks(archive, stem, 10, 5, 1)
    far, near, lead = first_ranks(archive, other, 10, 5, 1)
    text = f"Examples: {stem} rank<={{10,5,1}} at {{{ten},{five},{one}}}; "
    text += f"{other} rank<={{10,5,1}} at {{{far},{near - 1},{lead}}}."
    found = judge_statements([Statement(1, text, text, (), (), (stem, other))], archive)
    assert {(one.judgement, f"{{{far},{near - 1}" in one.claim) for one in found} == {
        (SUPPORTED, False), (CONTRADICTED, True)
    }  # fmt: skip


@pytest.mark.parametrize("stem", with_made("Qwen3-8B", made=("echo",)))
def test_a_sentence_on_all_models_is_not_taken_for_one_on_the_model_beside_it(archive: Archive, stem: str) -> None:
    general = Statement(1, "Entropy decreases with depth.", "", (), (), (stem,))
    beside = Statement(2, f"{BESIDE[stem]} is late.", "", (), (), (BESIDE[stem],))
    named = Statement(3, f"For {stem} entropy decreases with depth.", "", (), (), (stem,))
    assert [found.line for found in judge_statements([general, beside, named], archive)] == [3]


@pytest.mark.parametrize("stem", with_made("Qwen3-8B", made=FITTED))
def test_a_report_that_cites_other_files_of_the_model_is_not_judged(archive: Archive, stem: str) -> None:
    cited = Reference(f"output-{stem}.txt:1", f"output-{stem}.txt", ((1, 1),))
    text = "Entropy peaks at layer 1."
    assert judged(archive, stem, text) != []
    assert judged(archive, stem, text, cited) == []


@pytest.mark.parametrize("text", ["KL decreases ", "fillers/", "rank ", "'Berlin' ", "1.0,", "{", ">= 0.2 ", "L 1 - "])
@pytest.mark.parametrize("stem", with_made("Qwen3-8B", made=FITTED))
def test_long_texts_without_a_claim_say_nothing(archive: Archive, stem: str, text: str) -> None:
    assert judged(archive, stem, text * (6000 // len(text))) == []


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
