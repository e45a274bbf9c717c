"""What may not be compared between the runs, and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerscope.analysis.comparability import CONDITIONS, NOT_RECORDED, Condition, question
from layerscope.analysis.diagnostics import protocol_in_force
from layerscope.record.parts import PromptRecord
from layerscope.report.synthesis.compared import Compared

Scope: TypeAlias = Literal["layers", "probabilities", "divergences", "facts", "numbers"]


@dataclass(frozen=True)
class Limit:
    """One obstacle between runs, or within one of them."""

    name: str
    """`mixed_protocols`."""
    scope: Scope
    """What it bears on."""
    by_run: Mapping[str, str]
    """What holds of each run concerned, in words, by the run's name."""

    @property
    def groups(self) -> dict[str, list[str]]:
        """The runs concerned by what holds of them."""
        by_state: dict[str, list[str]] = {}
        for run, state in self.by_run.items():
            by_state.setdefault(state, []).append(run)
        return by_state

    @property
    def is_mixture(self) -> bool:
        """Whether it lies between runs."""
        return self.name.startswith("mixed_")

    @property
    def stands(self) -> bool:
        """Whether any run is concerned; of a mixture, whether what is known of the runs differs."""
        return len(set(self.by_run.values()) - {NOT_RECORDED}) > (1 if self.is_mixture else 0)


def limits(runs: Sequence[Compared]) -> tuple[Limit, ...]:
    """All that stand in the way, mixtures first."""
    kinds: tuple[tuple[str, Scope, Callable[[Compared], str | None]], ...] = (
        ("mixed_protocols", "layers", _protocol),
        ("mixed_thresholds", "layers", _thresholds_apart(runs)),
        ("mixed_norm_strategies", "layers", lambda run: run.strategy or NOT_RECORDED),
        ("mixed_stacks", "layers", lambda run: run.evidence.record.measured.stack or NOT_RECORDED),
        ("mixed_questions", "layers", _question),
        ("mixed_facts", "facts", _facts),
        *((f"mixed_{each.name}", each.bears_on, _condition(each)) for each in CONDITIONS),
        ("identity_failed", "layers", _identity),
        ("unresolved_gold", "layers", _gold),
        ("decoding_point_sensitive", "layers", _decoding_point),
        ("suppressed_probabilities", "probabilities", _suppressed),
        ("high_last_layer_kl", "divergences", _high_kl),
        ("norm_not_recorded", "layers", _no_norm),
        ("no_raw_lens", "layers", _no_raw_lens),
    )
    tried = [
        Limit(name, scope, {run.name: words for run in runs if (words := state(run)) is not None})
        for name, scope, state in kinds
    ]
    return tuple(limit for limit in tried if limit.stands)


def reasons_of(run: Compared, obstacles: Sequence[Limit]) -> list[str]:
    """What stands in the way of one run's values: `mixed_protocols: standard under logit`."""
    return [f"{limit.name}: {limit.by_run[run.name]}" for limit in obstacles if run.name in limit.by_run]


def layers_compare(runs: Sequence[Compared], obstacles: Sequence[Limit]) -> bool:
    """Whether nothing that is known stands between these runs' layers."""
    mixed = [limit for limit in obstacles if limit.scope == "layers" and limit.is_mixture]
    return all(len({limit.by_run[run.name] for run in runs} - {NOT_RECORDED}) <= 1 for limit in mixed)


def primary_prompt(run: Compared) -> PromptRecord | None:
    """The primary prompt as the model saw it; None where it is not recorded."""
    primary = run.evidence.primary
    return run.evidence.record.prompt(primary)


def gold_resolved(run: Compared) -> bool | None:
    """Whether the answer of the primary prompt could be told in the model's tokens; None where nothing is recorded."""
    prompt = primary_prompt(run)
    return None if prompt is None or not prompt.answers else prompt.answers[0].ok


def warns(run: Compared) -> bool | None:
    """Whether the last layer under the headline lens is far from the model's own output; None where not measured."""
    last = run.diagnostics.last_layer
    return None if last is None else last.warn_high_last_layer_kl


def _protocol(run: Compared) -> str:
    protocol = run.evidence.record.protocol
    return f"{protocol.name} version {protocol.version} under {protocol.headline_lens}"


def _thresholds_apart(runs: Sequence[Compared]) -> Callable[[Compared], str]:
    """What a run says of the thresholds that are not the same in all of them."""
    flat = [protocol_in_force(run.evidence.record).thresholds.as_dict() for run in runs]
    apart = [
        name
        for name in dict.fromkeys(key for thresholds in flat for key in thresholds)
        if len({thresholds.get(name) for thresholds in flat}) > 1
    ]
    by_name = dict(zip((run.name for run in runs), flat, strict=True))
    return lambda run: ", ".join(f"{name} {by_name[run.name].get(name, 'none')}" for name in apart)


def _condition(condition: Condition) -> Callable[[Compared], str | None]:
    return lambda run: condition.state(run.evidence.record)


def _question(run: Compared) -> str:
    prompt = primary_prompt(run)
    if prompt is None:
        return NOT_RECORDED
    answer = prompt.answers[0].string if prompt.answers else NOT_RECORDED
    return f"{question(prompt)} -> {answer}"


def _facts(run: Compared) -> str:
    facts = run.diagnostics.micro_suite.facts
    return ", ".join(fact.fact_key or f"fact {fact.fact_index}" for fact in facts) if len(facts) > 1 else "one fact"


def _identity(run: Compared) -> str | None:
    identity = run.evidence.record.identity
    return None if identity is None or identity.ok else "the last layer, decoded, is not the model's own output"


def _gold(run: Compared) -> str | None:
    rate = run.evidence.record.suite.gold_alignment_rate
    if gold_resolved(run) is False:
        return "the primary answer could not be told in the model's tokens"
    return None if rate is None or rate >= 1 else "some answers could not be told in the model's tokens"


def _decoding_point(run: Compared) -> str | None:
    named = any(reason.name == "decoding_point_sensitive" for reason in run.evidence.verdict.guidance.reasons)
    return "the semantic layer hangs on which norm decodes it" if named else None


def _suppressed(run: Compared) -> str | None:
    guidance = run.evidence.verdict.guidance
    return ", ".join(reason.name for reason in guidance.reasons) if guidance.suppress_abs_probs else None


def _high_kl(run: Compared) -> str | None:
    return "lens and head differ at the last layer" if warns(run) else None


def _no_norm(run: Compared) -> str | None:
    return None if run.strategy else "the files do not say which norm was applied"


def _no_raw_lens(run: Compared) -> str | None:
    full = run.diagnostics.raw_full
    return "no raw lens over all layers, so no tier" if full is None or full.whole.n_layers == 0 else None
