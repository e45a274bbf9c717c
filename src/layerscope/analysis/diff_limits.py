"""Limits that a comparison of two models has to keep, for checks that run by themselves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from layerscope.analysis.model_diff import ModelDiff
from layerscope.analysis.run_diff import RunDiff
from layerscope.errors import RunError


def _share_of_flips(found: ModelDiff | RunDiff) -> float | None:
    suite = found.suite
    return None if suite is None or not suite.judged else (suite.n_lost + suite.n_won) / len(suite.judged)


def _perplexity_ratio(found: ModelDiff) -> float:
    ratio = found.output.perplexity_ratio
    return inf if ratio is None else ratio


MEASURES: Mapping[str, Callable[[ModelDiff], float | None]] = {
    "kl_mean": lambda found: found.output.kl_mean_bits,
    "kl_median": lambda found: found.output.kl_median_bits,
    "kl_p99": lambda found: found.output.kl_p99_bits,
    "kl_max": lambda found: found.output.kl_max_bits,
    "top1_changed": lambda found: 1 - found.output.top1_agreement,
    "perplexity_ratio": _perplexity_ratio,
    "flips": _share_of_flips,
    "injected": lambda found: found.worst_blocks[0].injected,
}
"""What can be limited, by name: divergences in bits; shares of positions or prompts; the largest injected error."""


def _top1_changed(found: RunDiff) -> float | None:
    last = found.last_layer
    return None if last is None or last.top1_agreement is None else 1 - last.top1_agreement


OF_RUNS: Mapping[str, Callable[[RunDiff], float | None]] = {
    "top1_changed": _top1_changed,
    "flips": _share_of_flips,
}
"""Of those what two runs tell: at the last layer under the headline lens, and of the facts that both judge."""


@dataclass(frozen=True)
class Exceeded:
    """A limit that is not kept."""

    measure: str
    value: float
    limit: float


def parse_limits(text: str) -> dict[str, float]:
    """Limits as they are written on a command line: `kl_mean=0.05,flips=0.02`.

    Raises:
        RunError: no such measure, one that is named twice, or no number at least 0.
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, written = (side.strip() for side in part.partition("="))
        if name not in MEASURES:
            raise RunError(f"There is no limit on '{name}'; choose from {', '.join(MEASURES)}.")
        if name in limits:
            raise RunError(f"The limit on '{name}' is given twice; give one.")
        try:
            limit = float(written)
        except ValueError:
            limit = -1.0
        if not limit >= 0:
            raise RunError(f"The limit on {name} should be a number of at least 0, but is '{written}'.")
        limits[name] = limit
    return limits


def check_asked(limits: Mapping[str, float], *, suite: bool) -> None:
    """Whether what is limited will be measured, before it is.

    Raises:
        RunError: a limit on facts, of which none are asked.
    """
    if "flips" in limits and not suite:
        raise _not_measured("flips")


def check_of_runs(limits: Mapping[str, float]) -> None:
    """Whether two runs tell what is limited.

    Raises:
        RunError: a limit on what needs both models.
    """
    for name in limits:
        if name not in OF_RUNS:
            raise RunError(
                f"A limit on {name} needs two models, and these are two runs, which keep no whole distributions; of "
                f"them choose {' or '.join(OF_RUNS)}."
            )


def exceeded(found: ModelDiff | RunDiff, limits: Mapping[str, float]) -> list[Exceeded]:
    """Limits that are not kept.

    Raises:
        RunError: what is limited was not measured.
    """
    over = []
    for name, limit in limits.items():
        value = MEASURES[name](found) if isinstance(found, ModelDiff) else OF_RUNS[name](found)
        if value is None:
            raise _not_measured(name)
        if value > limit:
            over.append(Exceeded(name, value, limit))
    return over


def _not_measured(name: str) -> RunError:
    why = (
        "no prompt with an answer was asked" if name == "flips" else "no last layer under one headline lens is in both"
    )
    return RunError(f"A limit on {name} was given, but {why}; leave the limit out, or compare what has it.")
