"""The runs side by side: each with a name of its own, in families, and claims that say which run they cite."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from layerscope.analysis.diagnostics import Diagnostics
from layerscope.analysis.percentiles import depth_fraction
from layerscope.errors import RunError
from layerscope.record.milestone_names import ONSET, STRONG, STRONG_RUN2
from layerscope.report.cited.claims import Citation, Claim, Unit, Value
from layerscope.report.cited.evidence import Evidence, agree
from layerscope.report.sentences.readable import strength_known
from layerscope.report.sentences.weaknesses import weaknesses

EARLY_BELOW = 0.70
"""Depth fraction of rank 1 below which a model counts as early; a fixed bound, so that groups do not depend on which
models are compared."""
_SIZE = re.compile(r"[-_ ]?\d+(\.\d+)?(x\d+)?[bm](?![a-z])", re.IGNORECASE)
"""The part of a name that says how many parameters: `-8B`, `-34b`, `-8x7B`."""


@dataclass(frozen=True, eq=False)
class Compared:
    """One of the runs."""

    evidence: Evidence
    name: str
    """What the synthesis calls it: the model's name, with the run's where another run has the same model."""
    run: str
    """Name of the run's folder."""
    shares_files: bool
    """Whether another run has files of the same names, so that citations need the run's name in front."""
    place: int
    """Among those given, counted from 0."""

    @property
    def diagnostics(self) -> Diagnostics:
        """What the rows amount to."""
        return self.evidence.verdict.diagnostics

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.evidence.record.model.n_layers

    @property
    def model(self) -> str:
        """The model's id."""
        return self.evidence.record.model.id

    @cached_property
    def family(self) -> str:
        """See `family_of`."""
        return family_of(self.model)

    def layer(self, name: str) -> int | None:
        """The layer of a milestone of the primary prompt under the headline lens."""
        milestone = self.evidence.verdict.milestones.of().get(name)
        return None if milestone is None else milestone.layer

    def fraction(self, name: str) -> float | None:
        """The same as a share of the depth, to three decimals."""
        return depth_fraction(self.layer(name), self.n_layers)

    @property
    def earliness(self) -> str | None:
        """Whether rank 1 comes `early` or `late` in depth; None where it does not come."""
        return earliness(self.fraction(ONSET))

    @property
    def answered(self) -> bool | None:
        """Whether the model answers the primary prompt; None where that is not known."""
        output = None if self.evidence.primary is None else self.diagnostics.outputs.get(self.evidence.primary)
        return None if output is None else output.answered

    @property
    def preferred(self) -> str | None:
        """Name of the milestone that published files headline, by the strength of its evidence; None without any."""
        semantic = self.diagnostics.semantic
        return None if semantic is None else semantic.name

    @property
    def strength(self) -> str | None:
        """What stands behind the headline milestone: `strong`, `confirmed`, or `weak`, which is rank 1 alone.

        A confirmation by a lens that equals the headline lens there is none. See `gates_open` for what `weak` is worth.
        """
        if self.preferred is None:
            return None
        if self.preferred in (STRONG, STRONG_RUN2):
            return "strong"
        confirmed = self.diagnostics.confirmation
        return "confirmed" if confirmed is not None and confirmed.nontrivial else "weak"

    @cached_property
    def weaknesses(self) -> tuple[str, ...]:
        """What speaks against the headline milestone, as its own evaluation has it."""
        return weaknesses(self.evidence)

    @property
    def quotable(self) -> bool:
        """Whether probabilities and entropies of lens rows may be drawn on."""
        return self.evidence.record.probabilities_stand and not self.evidence.verdict.guidance.suppress_abs_probs

    @property
    def gates_open(self) -> bool:
        """Whether there is no strong layer only because values are missing that would tell."""
        milestones = self.evidence.verdict.milestones.of()
        return STRONG in milestones and milestones[STRONG].layer is None and not strength_known(milestones)

    @cached_property
    def strategy(self) -> str | None:
        """Which norms the headline lens applies, in the files' word; None where they do not say."""
        claim = self.norm_strategy()
        return claim.value if claim is not None and isinstance(claim.value, str) else None

    # Claims

    def named(self, claim: Claim | None) -> Claim | None:
        """A claim under this run's name; with the run in front of the files' names where these would not do."""
        return None if claim is None else self._named(claim)

    def _named(self, claim: Claim) -> Claim:
        return replace(claim, subject=self.name, citations=tuple(map(self._placed, claim.citations)))

    def _placed(self, citation: Citation) -> Citation:
        if not self.shares_files or "/" in citation.file:
            return citation
        return replace(citation, file=f"{self.run}/{citation.file}")

    def milestone(self, name: str, lens: str | None = None) -> Claim | None:
        """The layer of a milestone of the primary prompt; None where it was not read through that lens."""
        return self.named(self.evidence.milestone(name, lens=lens))

    def depth(self, name: str) -> Claim | None:
        """The layer of a milestone as a share of the depth; None where it has none."""
        layer, size = self.milestone(name), self.size()
        if layer is None or layer.value is None or size is None:
            return None
        return self.derived(f"{name}_frac", self.fraction(name), Unit.SHARE, [layer, size], "layer / n_layers")

    def size(self) -> Claim | None:
        """Number of blocks, from the file or else by the last row."""
        last = self.evidence.row(self.n_layers)
        basis = [] if last is None else [last[0].cite(last[1])]
        path = ("model_stats", "num_layers")
        return self.agreed("num_layers", self.n_layers, Unit.COUNT, path, basis=basis, how="last layer")

    def norm_strategy(self) -> Claim | None:
        """Which norms the headline lens applies: `next_ln1` is that of the next block."""
        place = ("diagnostics", "normalization_provenance", "strategy")
        paths = ((*place, "primary"), place)
        return self.named(self.evidence.first_stated(*paths, unit=Unit.TEXT, name="strategy"))

    def says_so(self) -> Claim | bool | None:
        """Whether the model answers the primary prompt, with the rank that shows it."""
        rank = self.cell("answer_rank", self.n_layers, Unit.RANK)
        if rank is None or self.answered is None:
            return self.answered
        return self.derived("answered", self.answered, Unit.TRUTH, [rank], "rank at the output")

    def cell(self, column: str, layer: int | None, unit: Unit, lens: str | None = None) -> Claim | None:
        """A value of a row of the primary prompt."""
        return self.named(self.evidence.cell(column, layer, unit, lens=lens))

    def rows(self, lens: str | None = None) -> tuple[Citation, ...]:
        """All rows of the primary prompt under a lens."""
        return self.evidence.whole_pass(lens)

    def raw_rows(self) -> tuple[Citation, ...]:
        """All rows that compare the headline lens with the raw one on the primary prompt; none without such a table."""
        return self.evidence.raw_rows()

    def derived(self, name: str, value: Value, unit: Unit, basis: Sequence[Claim | Citation], how: str) -> Claim:
        """A value that follows from others."""
        claim = self.evidence.derived(name, value, unit, basis, how)
        return self._named(replace(claim, citations=_stretched(claim.citations)))

    def agreed(
        self,
        name: str,
        value: Value,
        unit: Unit,
        *paths: Sequence[str | int],
        basis: Sequence[Claim | Citation] = (),
        how: str = "found in the rows",
    ) -> Claim | None:
        """A value of ours, cited from the JSON where that agrees, else from what it follows from; None without either.

        Args:
            name: what it is.
            value: ours.
            unit: what it is in.
            paths: where the JSON may have it.
            basis: what it follows from.
            how: in which way.
        """
        if isinstance(value, float) and not math.isfinite(value):
            return None
        for path in paths:
            entry = self.evidence.entry(*path)
            if entry is not None and not entry.is_container and agree(entry.value, value):
                return self.named(self.evidence.stated(*entry.path, unit=unit, name=name))
        return self.derived(name, value, unit, basis, how) if basis and value is not None else None


def compared(evidences: Sequence[Evidence]) -> tuple[Compared, ...]:
    """Runs with names that tell them apart, in the order given; a run that is given twice counts once.

    Raises:
        RunError: no run at all.
    """
    if not evidences:
        raise RunError("there is nothing to compare: give at least one run with published files.")
    distinct = _distinct(evidences)
    runs = _numbered(
        [folder_name(evidence) for evidence in distinct], [str(evidence.sources.folder) for evidence in distinct]
    )
    stems = Counter(evidence.stem for evidence in distinct)
    names = [
        evidence.stem if stems[evidence.stem] == 1 else f"{evidence.stem} ({run})"
        for evidence, run in zip(distinct, runs, strict=True)
    ]
    return tuple(
        Compared(evidence, name, run, stems[evidence.stem] > 1, place)
        for place, (evidence, name, run) in enumerate(zip(distinct, names, runs, strict=True))
    )


def repeated(evidences: Sequence[Evidence]) -> tuple[str, ...]:
    """Models of runs that were given more than once, each once."""
    distinct = _distinct(evidences)
    kept = {id(evidence) for evidence in distinct}
    return tuple(dict.fromkeys(evidence.stem for evidence in evidences if id(evidence) not in kept))


def by_family(runs: Sequence[Compared]) -> list[Compared]:
    """In the order of tables: families by name, in each the shallow models first."""
    return sorted(runs, key=lambda run: (run.family.lower(), run.n_layers, run.name))


def family_of(model: str) -> str:
    """The part of a model's name before its size, without organisation: `Qwen3` of `Qwen/Qwen3-8B`.

    A name without a size is a family of its own; Llama models are named with and without their maker.
    """
    name = model.rsplit("/", 1)[-1]
    size = _SIZE.search(name)
    family = name[: size.start()] if size is not None and size.start() else name
    return family.removeprefix("Meta-")


def earliness(fraction: float | None) -> str | None:
    """`early` below `EARLY_BELOW` of the depth, else `late`."""
    return None if fraction is None else "early" if fraction < EARLY_BELOW else "late"


def folder_name(evidence: Evidence) -> str:
    """Name of the run's folder, whose published files may lie in a folder `published` inside."""
    folder = evidence.sources.folder.resolve()
    return folder.parent.name if folder.name == "published" else folder.name


def _distinct(evidences: Sequence[Evidence]) -> list[Evidence]:
    kept: list[Evidence] = []
    for evidence in evidences:
        if not any(_is_same_run(evidence, other) for other in kept):
            kept.append(evidence)
    return kept


def _is_same_run(evidence: Evidence, other: Evidence) -> bool:
    """One place, or copies of one run: equal to the last value."""
    if evidence is other:
        return True
    if evidence.stem != other.stem:
        return False
    return evidence.sources.folder.resolve() == other.sources.folder.resolve() or evidence.run == other.run


def _numbered(names: Sequence[str], places: Sequence[str]) -> list[str]:
    """Folders of one name in different places, told apart by a number."""
    order: dict[str, list[str]] = {}
    for name, place in zip(names, places, strict=True):
        if place not in order.setdefault(name, []):
            order[name].append(place)
    numbers = [order[name].index(place) for name, place in zip(names, places, strict=True)]
    return [f"{name}#{number + 1}" if number else name for name, number in zip(names, numbers, strict=True)]


def _stretched(citations: Sequence[Citation]) -> tuple[Citation, ...]:
    """Rows of a table that follow on each other as one stretch of lines."""
    stretches: list[Citation] = []
    for citation in citations:
        before = stretches[-1] if stretches else None
        if before is not None and _follows(before, citation):
            stretches[-1] = replace(before, last_line=citation.last_line)
        else:
            stretches.append(citation)
    return tuple(stretches)


def _follows(before: Citation, citation: Citation) -> bool:
    """Whether two citations are of one column, or of whole rows, in neighbouring rows."""
    if before.row is None or citation.row is None:
        return False
    same = before.file == citation.file and before.column == citation.column
    return same and citation.line == before.last_line + 1
