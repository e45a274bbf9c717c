"""The synthesis as a whole."""

from collections.abc import Mapping, Sequence

from layerscope.report.cited.document import Bullets, Name, Report, Section, Sentence, paragraph, sentence
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.findings import Finding
from layerscope.report.synthesis import milestone_sections
from layerscope.report.synthesis.causal_section import causal_section, patched
from layerscope.report.synthesis.compared import Compared, by_family, compared, repeated
from layerscope.report.synthesis.facts_section import facts_section
from layerscope.report.synthesis.family_section import family_section
from layerscope.report.synthesis.fitted_sections import fitted_section
from layerscope.report.synthesis.limits import limits
from layerscope.report.synthesis.misreadings import misreadings_section
from layerscope.report.synthesis.scope import scope_section
from layerscope.report.synthesis.trust_sections import artefact_section, drift_section, head_section
from layerscope.report.synthesis.words import listed, of_runs
from layerscope.report.synthesis.writes_section import writes_section


def synthesis(evidences: Sequence[Evidence], findings: Mapping[str, Sequence[Finding]] | None = None) -> Report:
    """What several runs say together, every number with its place.

    Models are compared by layers as shares of the depth, by ranks, and by whether gates hold; a run that is given twice
    counts once, and runs of one model have the run in their names and citations.

    Args:
        evidences: the runs, of any number of folders.
        findings: what an audit found in reports that lie beside them, by the report's name.

    Raises:
        RunError: no run at all.
    """
    runs = by_family(compared(evidences))
    obstacles = limits(runs)
    sections = (
        milestone_sections.glance_section(runs),
        scope_section(runs, obstacles, repeated(evidences)),
        milestone_sections.copy_section(runs),
        milestone_sections.rank_section(runs, obstacles),
        milestone_sections.earliness_section(runs, obstacles),
        milestone_sections.gate_section(runs),
        head_section(runs),
        artefact_section(runs),
        milestone_sections.surface_section(runs),
        drift_section(runs),
        fitted_section(runs),
        family_section(runs, obstacles),
        facts_section(runs),
        *causal_section(runs),
        *writes_section(runs),
        misreadings_section(findings or {}),
        _limitations(runs),
    )
    folders = listed([Name(name) for name in dict.fromkeys(run.run for run in runs)])
    opening = paragraph(
        sentence("What the runs in {} say together.", folders),
        sentence("Values are found in the rows of the files; each is followed by the lines that hold it."),
        sentence(
            "Layers count the blocks that have written: the embedding comes before the first, the last is the model's "
            "output."
        ),
    )
    return Report("Synthesis across models", opening, sections)


def _limitations(runs: Sequence[Compared]) -> Section:
    items = [
        sentence(
            "A lens reads what the unembedding can read; that a token is readable at a layer is no proof that the "
            "model uses it there."
        ),
        _correlation(runs),
        *_only_residuals(runs),
    ]
    if all(run.diagnostics.statistics.n < 2 for run in runs):
        items.append(sentence("Everything rests on one fact in one wording, read at its last position."))
    if any(run.evidence.record.source == "published" and run.diagnostics.fitted_lenses for run in runs):
        items.append(
            sentence(
                "Fitted lenses of files that were read and not measured here are as those files have them; how well "
                "they were fitted is not checked."
            )
        )
    return Section("Limitations", (Bullets(tuple(items)),))


def _only_residuals(runs: Sequence[Compared]) -> list[Sentence]:
    """That nothing but the stream was read, of the runs of which that is so."""
    without = [run for run in runs if run.evidence.record.measured.sublayers is None]
    if len(without) == len(runs):
        return [sentence("Only the residual stream was read, neither attention nor single neurons.")]
    told = of_runs("Of {} only the residual stream was read, neither attention nor MLPs.", without)
    return [] if told is None else [told]


def _correlation(runs: Sequence[Compared]) -> Sentence:
    """That lenses show no cause; the patches do, of the runs that have them."""
    if any(patched(run) is not None for run in runs):
        return sentence(
            "All but the patches is correlation. A patch tells that a state is enough to carry the answer, given the "
            "rest of the run, and not that it is the only one."
        )
    return sentence("All of this is correlation: nothing was changed inside a model to see what follows.")
