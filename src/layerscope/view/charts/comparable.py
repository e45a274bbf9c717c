"""Which milestones of several runs may stand side by side, and what speaks against the others."""

from collections import Counter
from collections.abc import Callable, Sequence

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.comparability import differences, question
from layerscope.analysis.facts import fact_passes
from layerscope.record.milestone_names import ONSET, RANK_WITHIN, MilestoneName, stable_twin

SEMANTIC = (ONSET, RANK_WITHIN)
"""How names of milestones begin that are about the answer."""


_CONDITIONS = {
    "bos": "prompts begin",
    "prompts": "asked in",
    "answer_forms": "answers judged",
    "dtypes": "computed in",
    "transformers": "Transformers",
}
"""What each condition of `layerscope.analysis.comparability` is about, in words."""


def obstacles(runs: Sequence[AnalysedRun]) -> list[dict[str, str]]:
    """For each run what makes its layers unlike those of most others, by what it is about: `protocol`.

    Where runs are split evenly, the first given sets the measure.
    """
    kinds: dict[str, Callable[[AnalysedRun], str]] = {
        "protocol": _protocol,
        "thresholds": _thresholds,
        "facts": _facts,
        "stack": lambda run: run.record.measured.stack or "not recorded",
    }
    reasons: list[dict[str, str]] = [{} for _ in runs]
    for name, value_of in kinds.items():
        values = [value_of(run) for run in runs]
        usual = Counter(values).most_common(1)[0][0]
        for of_run, value in zip(reasons, values, strict=True):
            if value != usual:
                of_run[name] = _differs(name, value, usual)
    for of_run, differing in zip(reasons, differences([run.record for run in runs]), strict=True):
        of_run |= {
            name: f"{_CONDITIONS[name]} {value}, but {usual} in most runs here"
            for name, (value, usual) in differing.items()
        }
    return reasons


def reason_against(run: AnalysedRun, milestone: str, mixtures: dict[str, str]) -> str | None:
    """Why a milestone of a run does not compare; None where nothing is known against it."""
    return "; ".join([*mixtures.values(), *_own_reasons(run, milestone)]) or None


def _own_reasons(run: AnalysedRun, milestone: str) -> list[str]:
    diagnostics, semantic = run.verdict.diagnostics, milestone.startswith(SEMANTIC)
    cautions = {reason.name for reason in run.verdict.guidance.reasons}
    last = diagnostics.last_layer
    rests_on_ranks = milestone in (ONSET, stable_twin(ONSET), MilestoneName.ONSET_RUN2) or milestone.startswith(
        RANK_WITHIN
    )
    reasons = []
    if not (run.record.ranks_stand if rests_on_ranks else run.record.probabilities_stand):
        reasons.append("the last layer, decoded, is not the model's own output")
    if semantic and run.record.suite.gold_alignment_rate not in (None, 1.0):
        reasons.append("some answers could not be told in the model's tokens")
    if semantic and "decoding_point_sensitive" in cautions:
        reasons.append("the layer hangs on which norm decodes it")
    if milestone.startswith("first_kl_below") and last is not None and last.warn_high_last_layer_kl:
        reasons.append("lens and head differ at the last layer")
    return reasons


def _differs(name: str, value: str, usual: str) -> str:
    if name in ("thresholds", "facts"):
        return {"thresholds": "other thresholds", "facts": "asked other facts"}[name] + " than most runs here"
    return f"{name} {value}, but {usual} in most runs here"


def _protocol(run: AnalysedRun) -> str:
    protocol = run.record.protocol
    return f"{protocol.name} {protocol.version} under {protocol.headline_lens}"


def _thresholds(run: AnalysedRun) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in sorted(run.record.protocol.thresholds.items()))


def _facts(run: AnalysedRun) -> str:
    keys = set(fact_passes(run.verdict.curves.passes))
    prompts = [p for p in run.record.suite.prompts if p.key in keys]
    return "; ".join(sorted(f"{question(p)} -> {p.answers[0].string.strip() if p.answers else None}" for p in prompts))
