"""What was compared, and what of it may not be."""

from collections.abc import Iterator, Sequence

from layerscope.analysis.comparability import NOT_RECORDED
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Unit
from layerscope.report.cited.document import Name, Section, Sentence, paragraph, sentence
from layerscope.report.synthesis.compared import Compared
from layerscope.report.synthesis.limits import Limit, gold_resolved
from layerscope.report.synthesis.words import Value, listed, run_table

_MOST_NAMED = 3
"""Up to so many runs the largest group of a mixture is named run by run."""
_MIXTURES = {
    "mixed_protocols": (
        "The runs follow different protocols: {}; layers compare within one protocol and not between them."
    ),
    "mixed_thresholds": "Thresholds differ: {}; milestones that rest on them are not the same milestones.",
    "mixed_norm_strategies": (
        "The headline lens applies different norms: {}; a layer read through one norm is not a layer read through "
        "another."
    ),
    "mixed_stacks": (
        "Blocks are norm-first in some models and norm-last in others: {}; the residual stream is not the same "
        "quantity in both."
    ),
    "mixed_questions": "The primary prompts differ: {}; their layers are those of different questions.",
    "mixed_bos": "Prompts begin by different rules: {}; what stands at the beginning moves layers of all that follows.",
    "mixed_prompts": "Not all ask the same: {}; medians over prompts are of different questions.",
    "mixed_answer_forms": (
        "Answers are judged in forms chosen by different rules: {}; a word after a space and the bare word are two "
        "tokens."
    ),
    "mixed_dtypes": "Blocks computed in different number formats: {}; last digits differ, and near ties may turn.",
    "mixed_transformers": "Versions of Transformers differ: {}; a model's code may have changed.",
    "mixed_facts": "The suites hold different facts: {}; medians over facts are medians of different questions.",
}
_ABLATED = "{} is {} with {}, so its numbers are of the ablated model and none of {}."
_ALONE = {
    "identity_failed": "Nothing of these runs may be quoted, since the last layer is not the model's own output",
    "unresolved_gold": "Ranks are missing in part, since answers could not be told in the model's tokens",
    "decoding_point_sensitive": "The semantic layer hangs on which norm decodes it",
    "suppressed_probabilities": "No probability or entropy of a layer may be quoted",
    "high_last_layer_kl": "Lens and head differ at the last layer, so milestones of divergence do not compare",
    "norm_not_recorded": "The files do not say which norm the lens applied",
    "no_raw_lens": "No raw lens was read over all layers, so there is no artefact tier and less to confirm a layer by",
}


def scope_section(runs: Sequence[Compared], obstacles: Sequence[Limit], twice: Sequence[str]) -> Section:
    """The runs, and the limits of comparing them."""
    always = sentence(
        "Between models this text compares layers as shares of the depth, ranks, and whether gates hold. "
        "Probabilities, entropies, divergences and cosines are shown where they help to read a run, and "
        "compared with nothing outside it."
    )
    once = (
        sentence("Given more than once and counted once: {}.", listed([Name(stem) for stem in twice]))
        if twice
        else None
    )
    return Section(
        "What was compared",
        (_runs(runs), paragraph(always, once)),
        (
            Section("What may not be compared", (doc.Bullets(tuple(_sentences(runs, obstacles))),)),
            Section("What may be quoted of each run", (_quotable(runs),)),
        ),
    )


def _runs(runs: Sequence[Compared]) -> doc.Table:
    return run_table(
        runs,
        "run | protocol | headline lens | norm | layers | d_model | family",
        lambda run: [
            *(run.run, run.evidence.record.protocol.name, run.evidence.headline, run.norm_strategy() or NOT_RECORDED),
            run.size(),
            run.agreed("d_model", run.evidence.record.model.d_model, Unit.COUNT, ("model_stats", "d_model")),
            run.family,
        ],
    )


def _sentences(runs: Sequence[Compared], obstacles: Sequence[Limit]) -> Iterator[Sentence]:
    if not any(limit.is_mixture for limit in obstacles):
        same = "All runs share protocol, norm, question and facts." if len(runs) > 1 else "There is one run alone."
        yield sentence(same)
    for limit in obstacles:
        if limit.is_mixture:
            yield sentence(_MIXTURES[limit.name], _groups(limit))
        else:
            every = len(limit.by_run) == len(runs) > 1
            members = [doc.Text("every run")] if every else listed([Name(run) for run in limit.by_run])
            yield sentence("{}: {}.", _ALONE[limit.name], members)
    models = [run.model for run in runs]
    again = dict.fromkeys(model for model in models if models.count(model) > 1)
    if again:
        yield sentence("Runs of one model are no independent cases: {}.", listed([Name(model) for model in again]))
    for run in runs:
        if (ablation := run.evidence.record.model.ablation) is not None:
            yield sentence(_ABLATED, *map(Name, (run.run, ablation.base_id, ablation.words, ablation.base_id)))


def _groups(limit: Limit) -> list[doc.Part]:
    """`next_ln1 in A and B; ln_final in C`."""
    parts: list[doc.Part] = []
    groups = limit.groups
    most = max(groups.values(), key=len)
    for state, members in sorted(groups.items(), key=lambda group: group[1] is most):
        parts += [doc.Text("; ")] if parts else []
        parts += [doc.Token(state) if limit.name == "mixed_questions" else Name(state), doc.Text(" in ")]
        rest = members is most and len(members) > _MOST_NAMED
        parts += [doc.Text("the others")] if rest else listed([Name(member) for member in members])
    return parts


def _quotable(runs: Sequence[Compared]) -> doc.Table:
    header = "quote without caution | suppress probabilities | answer resolved | reasons"
    return run_table(runs, header, _guidance)


def _guidance(run: Compared) -> list[Value]:
    guidance, name = run.evidence.verdict.guidance, "suppress_abs_probs"
    hides = run.agreed(name, guidance.suppress_abs_probs, Unit.TRUTH, ("measurement_guidance", name))
    reasons = listed([Name(reason.name) for reason in guidance.reasons]) or "none"
    return [not guidance.prefer_ranks, hides or guidance.suppress_abs_probs, gold_resolved(run), reasons]
