"""Families: in what their members are alike and in what they differ, as far as it can be computed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from layerscope.analysis.onsets import ON_TOP_FOR_GOOD
from layerscope.record.milestone_names import ONSET
from layerscope.report.cited.document import Bullets, Name, Part, Section, Sentence, Text, paragraph, sentence
from layerscope.report.synthesis.compared import Compared
from layerscope.report.synthesis.limits import Limit, layers_compare, warns
from layerscope.report.synthesis.trust_sections import tier_of
from layerscope.report.synthesis.words import listed, names, of_runs, shown

_UNKNOWN = "not known"
_TRAITS: Mapping[str, Callable[[Compared], str | None]] = {
    "answered": lambda run: _yes(run.answered),
    "copy reflex": lambda run: _yes(run.diagnostics.copies_early),
    "rank 1 at the last layer alone": lambda run: _yes(_at_last(run)),
    "rank 1 lost again": lambda run: _yes(_lost(run)),
    "early or late rank 1": lambda run: run.earliness,
    "gates": lambda run: None if run.gates_open else run.strength,
    "last layer far from the head": lambda run: _yes(warns(run)),
    "artefact tier": tier_of,
}
"""What a family's members may share."""


def family_section(runs: Sequence[Compared], obstacles: Sequence[Limit]) -> Section:
    """One paragraph for each family with two models or more."""
    families: dict[str, list[Compared]] = {}
    for run in runs:
        families.setdefault(run.family, []).append(run)
    several = {name: members for name, members in families.items() if len({run.model for run in members}) > 1}
    alone = [run for run in runs if run.family not in several]
    intro = sentence("Families are told by the models' names: what stands before the size.")
    rest = of_runs("Alone in their family: {}.", alone)
    bullets = [Bullets(tuple(_of_family(name, members, obstacles))) for name, members in several.items()]
    return Section("Families", (paragraph(intro, rest), *bullets, *_repeats(runs)))


def _of_family(name: str, members: Sequence[Compared], obstacles: Sequence[Limit]) -> Iterator[Sentence]:
    depths = listed(
        [
            [
                Name(run.name),
                Text(" "),
                shown(run.depth(ONSET)),
                Text(" ("),
                shown(run.depth(ON_TOP_FOR_GOOD)),
                Text(")"),
            ]
            for run in members
        ]
    )
    if not layers_compare(members, obstacles):
        yield sentence("{} ({}): their layers do not compare, see above.", Name(name), names(members))
        return
    yield sentence(
        "{}: depth of rank 1 (and of on top for good), shallow models first: {}{}.", Name(name), depths, _trend(members)
    )
    values = {trait: [value(run) for run in members] for trait, value in _TRAITS.items()}
    alike: list[list[Part]] = []
    for trait, of in values.items():
        if len(set(of)) == 1 and of[0] is not None:
            alike.append([Text(f"{trait} ("), Name(of[0]), Text(")")])
    differ = [_difference(members, trait, of) for trait, of in values.items() if len(set(of) - {None}) > 1]
    if alike:
        yield sentence("{} is alike in {}.", Name(name), listed(alike))
    if differ:
        yield sentence("{} differs in {}.", Name(name), listed(differ))


def _difference(members: Sequence[Compared], trait: str, values: Sequence[str | None]) -> list[Part]:
    """`artefact tier (medium in A, low in B)`."""
    groups: dict[str, list[Compared]] = {}
    for run, value in zip(members, values, strict=True):
        groups.setdefault(value or _UNKNOWN, []).append(run)
    parts: list[Part] = [Text(f"{trait} (")]
    for place, (value, of) in enumerate(groups.items()):
        parts += [Text("; ")] if place else []
        parts += [Name(value), Text(" in "), *names(of)]
    return [*parts, Text(")")]


def _trend(members: Sequence[Compared]) -> str:
    """Whether rank 1 moves one way with the number of layers; empty where it does not, or sizes are equal."""
    fractions = [run.fraction(ONSET) for run in members]
    known = [fraction for fraction in fractions if fraction is not None]
    sizes = [run.n_layers for run in members]
    if len(known) < len(members) or len(set(sizes)) < len(sizes):
        return ""
    steps = [later - earlier for earlier, later in pairwise(known)]
    if all(step == 0 for step in steps):
        return "; it does not move with the number of layers"
    if all(step > 0 for step in steps):
        return "; it moves deeper with the number of layers"
    return "; it moves shallower with the number of layers" if all(step < 0 for step in steps) else ""


def _repeats(runs: Sequence[Compared]) -> Iterator[Bullets]:
    """Runs of one model side by side."""
    by_model: dict[str, list[Compared]] = {}
    for run in runs:
        by_model.setdefault(run.model, []).append(run)
    items = []
    for model, members in by_model.items():
        if len(members) > 1:
            same = len({run.layer(ONSET) for run in members}) == 1
            which, verb = "Both" if len(members) == 2 else "All", "agree on" if same else "differ in"
            values = listed([[shown(run.milestone(ONSET)), Text(" in "), Name(run.run)] for run in members])
            items.append(sentence("{} runs of {} {} the layer of rank 1: {}.", which, Name(model), verb, values))
    if items:
        yield Bullets(tuple(items))


def _at_last(run: Compared) -> bool | None:
    layer = run.layer(ONSET)
    return None if layer is None else layer == run.n_layers


def _lost(run: Compared) -> bool | None:
    layer = run.layer(ONSET)
    return None if layer is None else run.layer(ON_TOP_FOR_GOOD) != layer


def _yes(known: bool | None) -> str | None:
    return None if known is None else "yes" if known else "no"
