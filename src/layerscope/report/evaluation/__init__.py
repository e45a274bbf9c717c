"""The evaluation of one run: how it was measured, what was found, and how far that may be trusted."""

from layerscope.report.cited.document import Name, Report, Section, paragraph, sentence
from layerscope.report.cited.evidence import Evidence
from layerscope.report.evaluation.causal import causal
from layerscope.report.evaluation.checklist import checklist
from layerscope.report.evaluation.findings import layer_by_layer, milestones
from layerscope.report.evaluation.lenses import fitted, raw_lens
from layerscope.report.evaluation.limits import limitations
from layerscope.report.evaluation.method import method
from layerscope.report.evaluation.overview import fingerprint, overview
from layerscope.report.evaluation.patterns import patterns
from layerscope.report.evaluation.prompts import ablation, control, facts, temperatures
from layerscope.report.evaluation.quotes import Quotes
from layerscope.report.evaluation.single_writes import single_writes

__all__ = ["evaluation"]
NO_RANKS = (
    "The identity check failed, so that ranks, milestones, facts and what lenses say of each other do not stand and "
    "are left out."
)


def evaluation(evidence: Evidence) -> Report:
    """The report on one run's primary prompt; what a run lacks is said to be absent, never made up.

    Args:
        evidence: the run with its files in the published format.
    """
    quotes = Quotes(evidence)
    template = "Numbers are followed by the file and the lines that show them; {} is what the run does not hold."
    opening = paragraph(sentence(template, Name("n.a.")))
    return Report(
        f"Evaluation of {evidence.record.model.id}",
        opening,
        (
            overview(quotes),
            method(quotes),
            _findings(quotes),
            patterns(quotes),
            checklist(quotes),
            limitations(quotes),
            fingerprint(quotes),
        ),
    )


def _findings(quotes: Quotes) -> Section:
    """All tables; of a run whose ranks do not stand, those of the model's own head alone."""
    title = "Quantitative findings"
    if not quotes.ranked:
        return Section(title, (paragraph(sentence(NO_RANKS)),), (temperatures(quotes),))
    sections = (
        layer_by_layer(quotes),
        *milestones(quotes).sections,
        control(quotes),
        ablation(quotes),
        facts(quotes),
        raw_lens(quotes),
        fitted(quotes),
        *causal(quotes),
        *single_writes(quotes),
        temperatures(quotes),
    )
    return Section(title, (), sections)
