"""Where in depth things happen: copying, ranks, gates, surface and geometry, early and late."""

from collections.abc import Iterator, Sequence
from functools import partial

from layerscope.analysis.confirmation import NO_OTHER_LENS
from layerscope.analysis.curve_shapes import listed_layers
from layerscope.analysis.diagnostics import protocol_in_force
from layerscope.analysis.onsets import CLEARLY_AHEAD, ON_TOP_FOR_GOOD
from layerscope.record import milestone_names
from layerscope.record.milestone_names import CONFIRMED, ONSET, STRONG, STRONG_RUN2, MilestoneName
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Bullets, Name, Section, Sentence, paragraph, sentence
from layerscope.report.synthesis.compared import EARLY_BELOW, Compared, by_family, earliness
from layerscope.report.synthesis.limits import Limit, layers_compare, warns
from layerscope.report.synthesis.words import names, of_runs, remarks, run_table, shown, with_values

_EARLY_LAYERS = range(4)
_GATES = (ONSET, MilestoneName.ONSET_RUN2, MilestoneName.MARGIN_OK, MilestoneName.TOP2_OK, STRONG, STRONG_RUN2)


def glance_section(runs: Sequence[Compared]) -> Section:
    """The main outcomes, one row a model."""
    table = run_table(
        runs,
        "answered | first on top | on top for good | depth | clearly ahead for good | weak points | copy reflex",
        lambda run: [
            *(run.says_so(), run.milestone(ONSET), run.milestone(ON_TOP_FOR_GOOD), run.depth(ON_TOP_FOR_GOOD)),
            *(run.milestone(CLEARLY_AHEAD), bool(run.weaknesses) if run.preferred else None),
            run.diagnostics.copies_early,
        ],
    )
    note = sentence(
        "Of the first prompt of each run; all facts stand below. "
        "Answered: the answer has rank 1 at the output. On top for good, the headline of a run, is the layer from "
        "which it keeps rank 1; clearly ahead for good that from which it is strong as well. Weak points are what "
        "speaks against the layers of a run, as in the evaluation of each model. Depth is the layer over the number "
        "of blocks."
    )
    unanswered = of_runs("The model does not answer the prompt in {}.", [run for run in runs if run.answered is False])
    points = dict.fromkeys(point for run in runs for point in run.weaknesses)
    items = [
        sentence("Weak point, {}: {}.", point, names(run for run in runs if point in run.weaknesses))
        for point in points
    ]
    return Section(
        "At a glance",
        (table, paragraph(note, unanswered), *([Bullets(tuple(items))] if items else [])),
        (_by_key(runs),),
    )


def _by_key(runs: Sequence[Compared]) -> Section:
    """The milestone that published files headline."""
    table = run_table(
        runs,
        "milestone | layer | depth | rank 1 | depth of rank 1 | gates",
        lambda run: [
            run.preferred,
            *((run.milestone(run.preferred), run.depth(run.preferred)) if run.preferred else (None, None)),
            *(run.milestone(ONSET), run.depth(ONSET), run.strength),
        ],
    )
    note = sentence(
        "The first that exists of {}, {}, {} and {}; by its gates it is strong, confirmed by another lens, or weak, "
        "which is rank 1 alone. It may be lost again at a deeper layer.",
        *map(Name, (STRONG_RUN2, STRONG, CONFIRMED, ONSET)),
    )
    return Section("By the keys of published files", (table, paragraph(note)))


# Copying


def copy_section(runs: Sequence[Compared]) -> Section:
    """Whether shallow layers echo the prompt."""
    table = run_table(
        runs,
        "reflex in layers 0 to 3 | strict copy | strict copy holds at | soft copy | entropy collapse",
        lambda run: [
            *(_reflex(run), run.milestone(MilestoneName.COPY), _held(run, "copy_collapse")),
            *(run.milestone(milestone_names.copy_soft(1)), run.milestone(MilestoneName.LOW_ENTROPY)),
        ],
    )
    echo, none, unknown = ([r for r in runs if r.diagnostics.copies_early is known] for known in (True, False, None))
    sentences = (
        of_runs("An early echo of the prompt shows in {}.", echo, _early_layers),
        of_runs("Layers 0 to 3 hold no echo in {}.", none),
        of_runs("No copy flags were recorded for {}.", unknown),
        sentence("Entropy collapse is low entropy on any token; it is no evidence of copying."),
    )
    return Section("Copy reflex in layers 0 to 3", (table, paragraph(*sentences)))


def _reflex(run: Compared) -> Claim | None:
    reflex, basis = run.diagnostics.copies_early, _copy_cells(run)
    how = "copy_collapse or copy_soft_k1 at a layer from 0 to 3"
    return run.derived("copy_reflex", reflex, Unit.TRUTH, basis, how) if basis and reflex is not None else None


def _copy_cells(run: Compared) -> list[Claim]:
    soft = f"copy_soft_k1@{protocol_in_force(run.evidence.record).thresholds.copy_soft:g}"
    cells = [run.cell(column, layer, Unit.TRUTH) for column in ("copy_collapse", soft) for layer in _EARLY_LAYERS]
    return [cell for cell in cells if cell is not None]


def _early_layers(run: Compared) -> Claim | None:
    """Which of layers 0 to 3 echo, strictly or softly."""
    firing = [cell for cell in _copy_cells(run) if cell.value]
    layers = sorted({cell.layer for cell in firing if cell.layer is not None})
    value = f"layer{'' if len(layers) == 1 else 's'} {listed_layers(layers)}"
    return run.derived("copy_layers", value, Unit.TEXT, firing, "layers that echo the prompt") if firing else None


def _held(run: Compared, column: str) -> Claim | None:
    """All layers at which a flag holds."""
    curve = run.evidence.curve()
    layers = [] if curve is None else curve.layers(lambda row: row[column])
    cells = [cell for layer in layers if (cell := run.cell(column, layer, Unit.TRUTH)) is not None]
    return run.derived(f"{column} holds", listed_layers(layers), Unit.TEXT, cells, "layers") if cells else None


# Ranks


def rank_section(runs: Sequence[Compared], obstacles: Sequence[Limit]) -> Section:
    """Rank milestones, in the order of the depth from which the answer is on top for good."""
    ordered = sorted(
        runs, key=lambda run: (run.fraction(ON_TOP_FOR_GOOD) is None, run.fraction(ON_TOP_FOR_GOOD) or 0.0)
    )
    ranks = [milestone_names.rank_within(rank) for rank in (10, 5, 1)]
    table = run_table(
        ordered,
        "rank <= 10 | rank <= 5 | rank 1 | on top for good | depth, rank <= 10 | depth, rank <= 5 | "
        "depth, rank 1 | depth, on top for good",
        lambda run: [
            *(*map(run.milestone, ranks), run.milestone(ON_TOP_FOR_GOOD)),
            *map(run.depth, (*ranks[:2], ONSET, ON_TOP_FOR_GOOD)),
        ],
    )
    return Section("Rank milestones", (table, *remarks(*_rank_sentences(ordered, obstacles))))


def _rank_sentences(ordered: Sequence[Compared], obstacles: Sequence[Limit]) -> Iterator[Sentence | None]:
    there = [run for run in ordered if run.layer(ONSET) is not None]
    for template, name in (
        ("The answer is on top for good shallowest in {}.", ON_TOP_FOR_GOOD),
        ("The answer first leads shallowest in {}.", ONSET),
    ):
        yield _shallowest(template, name, [run for run in ordered if run.layer(name) is not None], obstacles)
    at_last = [run for run in there if run.layer(ONSET) == run.n_layers]
    yield of_runs("The answer leads at the last layer alone in {}.", at_last, ONSET)
    kept = [run for run in there if run.layer(ON_TOP_FOR_GOOD) is not None]
    lost = [run for run in kept if run.layer(ON_TOP_FOR_GOOD) != run.layer(ONSET)]
    yield of_runs("The lead is lost again after its first layer in {}.", lost, ONSET)
    gone = [run for run in there if run not in kept]
    ended = [run for run in gone if run.cell("answer_rank", run.n_layers, Unit.RANK) is not None]
    yield of_runs("The answer passes through rank 1 and loses it in {}.", ended, ONSET)
    open_ = [run for run in gone if run not in ended]
    yield of_runs("The last layer, which would tell whether rank 1 holds, is missing in {}.", open_, ONSET)
    never = [run for run in ordered if run.layer(ONSET) is None]
    yield of_runs("The answer leads at no layer, or its rank is not known, in {}.", never)


def _shallowest(template: str, name: str, there: Sequence[Compared], obstacles: Sequence[Limit]) -> Sentence | None:
    """Which have it first, where layers compare and differ."""
    fractions = sorted(fraction for run in there if (fraction := run.fraction(name)) is not None)
    if len(fractions) < 2 or fractions[0] == fractions[-1] or not layers_compare(there, obstacles):
        return None
    earliest = [run for run in there if run.fraction(name) == fractions[0]]
    return of_runs(template, earliest, lambda run: run.depth(name))


# Gates and confirmation


def gate_section(runs: Sequence[Compared]) -> Section:
    """Strong and confirmed layers."""
    table = run_table(
        runs,
        "rank 1 | twice in a row | margin | lead | strong | strong twice in a row | lead at rank 1",
        lambda run: [*map(run.milestone, _GATES), run.cell("answer_logit_gap", run.layer(ONSET), Unit.LOGIT)],
    )
    note = sentence(
        "Margin: rank 1 and a probability above uniform by the threshold; lead: rank 1 and a lead over the second "
        "logit of at least the threshold; strong: both. The last column is the lead in logits at the first rank 1.",
    )
    strong = [run for run in runs if run.strength == "strong"]
    weak = [run for run in runs if run.strength == "weak" and not run.gates_open]
    later = [run for run in strong if run.layer(STRONG) != run.layer(ONSET)]
    unsure = [run for run in strong if warns(run) and run.layer(STRONG) == run.n_layers]
    sentences = (
        of_runs("A strong layer exists in {}.", strong, lambda run: run.depth(STRONG)),
        of_runs(
            "It is the last layer, where lens and head differ, so that margin and lead are the lens' own, in {}.",
            unsure,
            STRONG,
        ),
        of_runs("It lies deeper than the first rank 1 in {}.", later, STRONG),
        of_runs("Neither strong nor confirmed is the rank 1 of {}.", weak, ONSET),
        of_runs(
            "The lead was not recorded where it counts, so that nothing can be said of strength, in {}.",
            [run for run in runs if run.gates_open],
        ),
    )
    gates = Section("Gates", (table, paragraph(note, *sentences), *_otherwise(runs)))
    return Section("Strong and confirmed layers", (), (gates, _confirmation(runs)))


def _otherwise(runs: Sequence[Compared]) -> Iterator[Bullets]:
    """Where files say another layer than their rows."""
    items = []
    for name in (*_GATES, CONFIRMED, "gap_ge_0.5", "gap_ge_1.0"):
        pairs = {run: run.named(run.evidence.otherwise(name)) for run in runs if run.milestone(name) is not None}
        empty = [run for run, stated in pairs.items() if stated is not None and stated.value is None]
        if empty:
            layers = with_values(empty, partial(_layer_against, name=name))
            items.append(sentence("Files leave {} empty where their rows give a layer: {}.", Name(name), layers))
        for run, stated in pairs.items():
            if stated is not None and stated.value is not None:
                rows = shown(run.milestone(name))
                items.append(
                    sentence("The file of {} has {} at {}, its rows at {}.", Name(run.name), Name(name), stated, rows)
                )
    if items:
        yield Bullets(tuple(items))


def _layer_against(run: Compared, name: str) -> Claim | None:
    """The layer by the rows, with the place in the file that lacks it."""
    ours, stated = run.milestone(name), run.named(run.evidence.otherwise(name))
    if ours is None or stated is None:
        return ours
    return run.derived(name, ours.value, ours.unit, [ours, stated], "found in the rows")


def _confirmation(runs: Sequence[Compared]) -> Section:
    table = run_table(
        runs,
        "rank 1 | confirmed | by | says something new | rank 1, raw | rank 1, tuned",
        lambda run: [
            *(run.milestone(ONSET), run.milestone(CONFIRMED), _source(run), _nontrivial(run)),
            *(_onset(run, "raw"), _onset(run, "tuned")),
        ],
    )
    new, trivial, others = ([run for run in runs if _nontrivial(run) is known] for known in (True, False, None))
    unread = [run for run in others if (c := run.diagnostics.confirmation) and c.reason == NO_OTHER_LENS]
    sentences = (
        of_runs("Another lens confirms the first rank 1 in {}.", new, ONSET),
        of_runs(
            "The confirmation rests on a row at which the other lens is the headline lens itself, so that it "
            "counts as none, in {}.",
            trivial,
            ONSET,
        ),
        of_runs("No other lens has the answer near it in {}.", [run for run in others if run not in unread]),
        of_runs("No other lens was read that could confirm a layer of {}.", unread),
    )
    return Section("Confirmation by another lens", (table, *remarks(*sentences)))


def _onset(run: Compared, lens: str) -> Claim | None:
    """The first layer with the answer on top under another lens."""
    name, confirmation = f"L_semantic_{lens}", run.diagnostics.confirmation
    layer = None if confirmation is None else getattr(confirmation, f"onset_{lens}")
    basis = run.raw_rows() if lens == "raw" else ()
    return (
        run.agreed(name, layer, Unit.LAYER, ("diagnostics", "confirmed_semantics", name))
        or run.milestone(ONSET, lens=lens)
        or run.agreed(name, layer, Unit.LAYER, basis=basis, how="first rank 1")
    )


def _source(run: Compared) -> Claim | str | None:
    """The lens that confirms: as the file states it, or by its name."""
    confirmation = run.diagnostics.confirmation
    source = None if confirmation is None else confirmation.source
    path = ("diagnostics", "confirmed_semantics", "confirmed_source")
    return run.agreed("confirmed_source", source, Unit.TEXT, path) or source


def _nontrivial(run: Compared) -> bool | None:
    return None if run.diagnostics.confirmation is None else run.diagnostics.confirmation.nontrivial


# Surface and geometry


def surface_section(runs: Sequence[Compared]) -> Section:
    """Where the answer outweighs the prompt's words, where the row turns to it, and where the echo is gone."""
    surface, geometry = MilestoneName.SURFACE_TO_MEANING, MilestoneName.GEOMETRY
    others = (MilestoneName.TOPK_DECAY, "cos_ge_0.2", "cos_ge_0.4", "cos_ge_0.6")
    table = run_table(
        runs,
        "surface | depth | geometry | depth | echo gone | cos 0.2 | cos 0.4 | cos 0.6",
        lambda run: [
            *(run.milestone(surface), run.depth(surface), run.milestone(geometry), run.depth(geometry)),
            *map(run.milestone, others),
        ],
    )
    note = sentence(
        "Surface: the answer's probability exceeds that of the prompt's tokens by the threshold. Geometry: the row "
        "points at the answer more than at any token of the prompt. Echo gone: prompt tokens hold little among the "
        "most likely; where shallow rows are near uniform this holds from the embedding on and says nothing.",
    )
    pairs = {run: (run.layer(surface), run.layer(geometry)) for run in runs}
    before = [run for run, (s, g) in pairs.items() if s is not None and g is not None and g < s]
    after = [run for run, (s, g) in pairs.items() if s is not None and g is not None and g > s]
    never = [run for run, (_, g) in pairs.items() if run.evidence.curve() and g is None]
    sentences = (
        of_runs("The row turns to the answer before the answer outweighs the prompt in {}.", before, geometry),
        of_runs("It turns to it after that in {}.", after, geometry),
        of_runs("It never does, or that is not known, in {}.", never),
    )
    return Section("Surface and geometry", (table, paragraph(note, *sentences)))


# Early and late


def earliness_section(runs: Sequence[Compared], obstacles: Sequence[Limit]) -> Section:
    """Groups by a fixed bound."""
    bound = Name(f"{EARLY_BELOW:.2f}")
    note = sentence("Early: the layer lies below {} of the depth; late: at {} or deeper.", bound, bound)
    groups: list[Sentence] = []
    for title, name in (("rank 1", ONSET), ("on top for good", ON_TOP_FOR_GOOD), ("the strong layer", STRONG)):
        for group in ("early", "late"):
            members = [run for run in runs if earliness(run.fraction(name)) == group]
            members.sort(key=lambda run: run.fraction(name) or 0.0)
            if members:
                values = with_values(members, partial(Compared.depth, name=name))
                groups.append(sentence("{} by {}: {}.", group.capitalize(), title, values))
    groups_of = {run: {earliness(run.fraction(name)) for name in (ONSET, STRONG)} for run in by_family(runs)}
    moved = [run for run, both in groups_of.items() if both == {"early", "late"}]
    change = of_runs("The group changes with the milestone in {}.", moved)
    mixed = (
        None if layers_compare(runs, obstacles) else sentence("Groups mix runs whose layers do not compare, see above.")
    )
    return Section("Early and late", (paragraph(note, change, mixed), *([Bullets(tuple(groups))] if groups else [])))
