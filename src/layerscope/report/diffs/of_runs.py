"""The report on two runs of the same prompts."""

from layerscope.analysis.run_diff import RunDiff
from layerscope.report.cited.claims import Unit
from layerscope.report.cited.document import (
    Block,
    Paragraph,
    Report,
    Section,
    Sentence,
    Table,
    paragraph,
    row,
    sentence,
)
from layerscope.report.diffs.quoted import Quoted, facts_section, notes_section

MOST = 40
"""Milestones that are listed."""
LAYER_COLUMNS = (
    ("n_rows", Unit.COUNT, "rows"),
    ("top1_agreement", Unit.SHARE, "top-1 agreement"),
    ("kl_at_least_bits", Unit.BITS, "KL at least"),
    ("entropy_change_bits", Unit.BITS, "entropy"),
    ("kl_to_final_change_bits", Unit.BITS, "KL to output"),
    ("n_rank_changes", Unit.COUNT, "ranks"),
)
LOWER_BOUND = (
    "Runs keep the likely tokens of a row and no whole distribution. The divergence that is given is a lower bound: "
    "tokens that both rows list are told apart, and all others are taken as one."
)
ROUNDING = "Reals differ by rounding between machines and libraries; ids, ranks, flags and texts should not."


def report_of_runs(found: RunDiff, quoted: Quoted) -> Report:
    """The report.

    Args:
        found: the comparison.
        quoted: its file.
    """
    return Report(
        f"{found.variant.model_id} ({found.variant.run_id}) against {found.base.model_id} ({found.base.run_id})",
        _opening(found, quoted),
        (
            _made(found, quoted),
            _columns(found, quoted),
            facts_section(quoted, found.suite, "No answer is judged under one lens in both."),
            _milestones(found, quoted),
            *_lenses(found, quoted),
            *notes_section(quoted, found.notes),
            Section("How to read this", (paragraph(sentence(LOWER_BOUND), sentence(ROUNDING)),)),
        ),
    )


def _opening(found: RunDiff, quoted: Quoted) -> Paragraph:
    same = sentence(
        "{} prompts are the same tokens in both runs, and {} rows are of the same prompt, lens, layer and position; {} "
        "rows of these prompts are in the base only, {} in the variant only.",
        *(
            quoted.claim(Unit.COUNT, name)
            for name in ("n_prompts", "n_rows", "n_rows_in_base_only", "n_rows_in_variant_only")
        ),
    )
    if found.is_identical:
        return paragraph(same, sentence("Nothing differs in any cell of them, and every milestone is the same."))
    return paragraph(same, _last_layer(found, quoted))


def _last_layer(found: RunDiff, quoted: Quoted) -> Sentence | None:
    last = found.last_layer
    if last is None or last.top1_agreement is None:
        return None
    return sentence(
        "Under {} at layer {}, behind the last block, the share of rows with the same token on top is {}.",
        quoted.claim(Unit.TEXT, "last_layer", "lens"),
        quoted.claim(Unit.LAYER, "last_layer", "layer"),
        quoted.claim(Unit.SHARE, "last_layer", "top1_agreement"),
    )


def _made(found: RunDiff, quoted: Quoted) -> Section:
    if not found.settings:
        alike = sentence("Model, protocol, libraries and device are recorded as the same.")
        return Section("How they were made", (paragraph(alike),))
    rows = tuple(
        row(
            quoted.claim(Unit.TEXT, "settings", i, "name"),
            quoted.claim(Unit.TEXT, "settings", i, "base", reason="its record lacks it"),
            quoted.claim(Unit.TEXT, "settings", i, "variant", reason="its record lacks it"),
        )
        for i in range(len(found.settings))
    )
    told = sentence("What the two records have otherwise, results left out.")
    return Section("How they were made", (Table(("entry", "base", "variant"), rows, told),))


def _columns(found: RunDiff, quoted: Quoted) -> Section:
    if not found.columns:
        return Section("Rows", (paragraph(sentence("No cell of the rows that both have differs.")),))
    rows = tuple(
        row(
            quoted.claim(Unit.TEXT, "columns", i, "column"),
            quoted.claim(Unit.COUNT, "columns", i, "n_different"),
            quoted.claim(Unit.COUNT, "columns", i, "n_in_one_only"),
            quoted.claim(Unit.NUMBER, "columns", i, "largest_difference", reason=_no_size(column.is_real)),
            quoted.claim(Unit.TEXT, "columns", i, "unit"),
            quoted.claim(Unit.LAYER, "columns", i, "layer", reason="no largest difference"),
        )
        for i, column in enumerate(found.columns)
    )
    header = ("column", "rows that differ", "without a value in one", "largest difference", "unit", "at layer")
    blocks: list[Block] = [Table(header, rows, sentence("Columns in which some cell differs."))]
    if not found.discrete():
        blocks.append(
            paragraph(sentence("They are columns of reals alone: every id, rank, flag and text is the same."))
        )
    return Section("Rows", tuple(blocks))


def _no_size(is_real: bool) -> str:
    return "no cell has a value in both" if is_real else "no real number"


def _milestones(found: RunDiff, quoted: Quoted) -> Section:
    n = quoted.claim(Unit.COUNT, "n_milestones")
    if not found.milestones:
        told = sentence("All {} that both have stand at the same layer, or in neither.", n)
        return Section("Milestones", (paragraph(told),))
    moved = quoted.count(len(found.milestones), "milestones")
    rows = tuple(
        row(
            quoted.claim(Unit.TEXT, "milestones", i, "milestone"),
            quoted.claim(Unit.TEXT, "milestones", i, "lens"),
            quoted.token("milestones", i, "asked"),
            quoted.claim(Unit.LAYER, "milestones", i, "base", reason="at no layer"),
            quoted.claim(Unit.LAYER, "milestones", i, "variant", reason="at no layer"),
        )
        for i in range(min(MOST, len(found.milestones)))
    )
    more = "" if len(found.milestones) <= MOST else " The table has the first of them; the others are in the file."
    told = sentence("Of {} that were compared {} stand at another layer.{}", n, moved, more)
    return Section("Milestones", (Table(("milestone", "lens", "prompt", "base", "variant"), rows, told),))


def _lenses(found: RunDiff, quoted: Quoted) -> tuple[Section, ...]:
    """The headline lens layer by layer; none where the two have no lens in common."""
    lens = found.headline or next(iter(found.by_lens()), None)
    if lens is None:
        return ()
    rows = tuple(
        row(
            quoted.claim(Unit.LAYER, "layers", i, "layer"),
            *(quoted.claim(unit, "layers", i, name, reason="no such value in both") for name, unit, _ in LAYER_COLUMNS),
        )
        for i, layer in enumerate(found.layers)
        if layer.lens == lens
    )
    header = ("layer", *(label for _, _, label in LAYER_COLUMNS))
    told = sentence(
        "Rows under {} that both have; of entropies and divergences from the output the mean size of the difference, "
        "in bits.",
        quoted.claim(Unit.TEXT, "headline") if found.headline is not None else "the first lens",
    )
    return (Section("Every layer", (Table(header, rows, told),)),)
