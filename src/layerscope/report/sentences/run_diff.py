"""A comparison of two runs in words."""

from layerscope.analysis.run_diff import ColumnDiff, ComparedRun, MilestoneMove, RunDiff
from layerscope.report.sentences.lines import LabelledLine, plural
from layerscope.report.sentences.model_diff import bits, facts, flipped

MOST = 5
"""How many columns, settings, milestones and facts are named."""
LONGEST = 40
"""Characters of a setting that are shown."""


def title(found: RunDiff) -> str:
    """Which two runs."""
    return f"diff of runs · {_run(found.base)} → {_run(found.variant)}"


def headline(found: RunDiff) -> str:
    """What differs, in a sentence."""
    n = f"{found.n_rows} {plural('row', found.n_rows)} of {found.n_prompts} {plural('prompt', found.n_prompts)}"
    if found.is_identical:
        return f"Nothing differs in any cell of {n}, and every milestone is the same."
    if not found.columns:
        besides = "milestones moved" if found.milestones else "one of the two has rows that the other lacks"
        return f"No cell of the {n} that both have differs; {besides}."
    if not found.discrete():
        moved = "no milestone moved" if not found.milestones else "milestones moved"
        return f"Every id, rank, flag and text of {n} is the same, and {moved}; reals differ by what is listed."
    last = found.last_layer
    if last is None or last.top1_agreement is None:
        return f"The two differ in ids, ranks, flags or texts; {n} were compared."
    return (
        f"At layer {last.layer} the same token is on top in {100 * last.top1_agreement:.1f} % of {last.n_rows} "
        f"{plural('row', last.n_rows)} under {last.lens}; {n} were compared."
    )


def in_lines(found: RunDiff) -> list[LabelledLine]:
    """How both were made, rows, columns, facts and milestones, a line each."""
    lines = [LabelledLine("made", _settings(found))]
    if found.n_rows_in_base_only or found.n_rows_in_variant_only:
        alone = f"{found.n_rows_in_base_only} of these prompts in the base only, {found.n_rows_in_variant_only} in the "
        lines.append(LabelledLine("rows", f"{alone}variant only"))
    if found.real():
        lines.append(LabelledLine("reals", _columns(found.real())))
    if found.discrete():
        lines.append(LabelledLine("ids, flags", _columns(found.discrete())))
    if found.suite is not None:
        lines.append(LabelledLine("facts", facts(found.suite)))
        flips = dict.fromkeys(flipped(fact) for fact in found.suite.prompts if fact.flips)
        lines += [LabelledLine("", text) for text in flips][:MOST]
    lines.append(LabelledLine("milestones", _milestones(found)))
    return [*lines, *(LabelledLine("note", note) for note in found.notes)]


def how_to_read() -> str:
    """What the columns of the table of layers are."""
    return (
        "Over the rows of a layer that both have. top 1: share with the same token on top. KL at least: a lower bound "
        "of KL(base || variant) from the tokens that both rows list, since runs keep no whole distributions; entropy, "
        "KL to output: by how much those differ (means). ranks: rows in which the answer's rank differs."
    )


def _run(run: ComparedRun) -> str:
    when = "" if run.created_utc is None else f", {run.created_utc}"
    by = "" if run.layerscope_version is None else f", layerscope {run.layerscope_version}"
    return f"{run.model_id} ({run.run_id}{when}{by})"


def _settings(found: RunDiff) -> str:
    if not found.settings:
        return "alike: model, protocol, libraries and device are recorded as the same"
    named = [f"{one.name} {_short(one.base)} → {_short(one.variant)}" for one in found.settings[:MOST]]
    left = len(found.settings) - len(named)
    return "; ".join(named) + (f"; and {left} more in run-diff.json" if left else "")


def _short(text: str | None) -> str:
    text = "none" if text is None else text.strip('"')
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _columns(columns: tuple[ColumnDiff, ...]) -> str:
    """Those that differ in most cells."""
    worst = sorted(columns, key=lambda column: -column.n_different)
    named = "; ".join(map(_column, worst[:MOST]))
    left = len(worst) - MOST
    return named + (f"; and {left} more {plural('column', left)}" if left > 0 else "")


def _column(column: ColumnDiff) -> str:
    told = f"{column.column} in {column.n_different} {plural('row', column.n_different)}"
    if column.n_in_one_only:
        told += f" ({column.n_in_one_only} without a value in one)"
    if column.largest_difference is not None:
        told += f", by {bits(column.largest_difference)} at most (layer {column.layer}, {column.lens})"
    return told


def _milestones(found: RunDiff) -> str:
    n = found.n_milestones
    if not found.milestones:
        return f"all {n} at the same layer, or in neither" if n else "none in common"
    named = "; ".join(map(_move, found.milestones[:MOST]))
    left = len(found.milestones) - MOST
    more = f"; and {left} more in run-diff.json" if left > 0 else ""
    return f"{len(found.milestones)} of {n} moved: {named}{more}"


def _move(move: MilestoneMove) -> str:
    base, variant = ("none" if layer is None else layer for layer in (move.base, move.variant))
    return f"{move.milestone} ({move.lens}) {base} → {variant} after {move.prompt!r}"
