"""What a chart over layers can show: the columns, what they are called, their unit and their axis."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from layerscope.errors import RunError


@dataclass(frozen=True)
class Quantity:
    """A column of the rows, in words."""

    column: str
    label: str
    """In a legend."""


@dataclass(frozen=True)
class Metric:
    """A chart's vertical axis, and the columns on it."""

    name: str
    title: str
    axis: str
    """The axis title, with its unit."""
    means: str
    """What it is, in a sentence."""
    quantities: tuple[Quantity, ...]
    log: bool = False
    domain: tuple[float, float] | None = None
    """The axis' ends; None leaves them to the data."""
    from_zero: bool = True
    probability: bool = True
    """Whether it hangs on how the head scales its logits; ranks do not."""
    unit: str = ""
    """After a number in a sentence: ` bits`."""


def _one(
    name: str, title: str, axis: str, means: str, *, log: bool = False, domain: tuple[float, float] | None = None,
    from_zero: bool = True, probability: bool = True, unit: str = "",
) -> Metric:  # fmt: skip
    return Metric(name, title, axis, means, (Quantity(name, title),), log, domain, from_zero, probability, unit)


_COSINES = (
    Quantity("cos_to_final", "to the model's own logits"),
    Quantity("cos_to_answer", "to the answer"),
    Quantity("cos_to_prompt_max", "to the nearest prompt token"),
)
_METRICS = (
    _one("entropy_bits", "Entropy by layer", "entropy (bits)",
         "Entropy of the distribution over the vocabulary.", unit=" bits"),
    _one("kl_to_final_bits", "Distance from the model's own output", "KL to final (bits)",
         "KL divergence from the lens' distribution to the model's own output.", unit=" bits"),
    _one("answer_rank", "Rank of the answer by layer", "rank of the answer (log, 1 = first)",
         "Rank of the answer's first token; rank 1 is the largest logit.", log=True, probability=False),
    _one("p_answer", "Probability of the answer by layer", "probability of the answer",
         "Probability of the answer's first token.", domain=(0.0, 1.0)),
    Metric("masses", "Answer and echo of the prompt", "probability mass",
           "Probability of the answer, and of the prompt's own content words together.",
           (Quantity("p_answer", "answer"), Quantity("echo_mass_prompt", "echo of the prompt")), domain=(0.0, 1.0)),
    Metric("cosines", "Cosines by layer", "cosine",
           "Cosine with the model's own logits, and with the answer's and the nearest prompt token's vector.",
           _COSINES, from_zero=False, probability=False),
    _one("p_top1", "Probability of the top token by layer", "probability of the top token",
         "Probability of the most likely token.", domain=(0.0, 1.0)),
    _one("echo_mass_prompt", "Echo of the prompt by layer", "probability mass",
         "Probability of the prompt's distinct content tokens together.", domain=(0.0, 1.0)),
    *(_one(q.column, f"Cosine {q.label}", f"cosine {q.label}", f"Cosine of the row {q.label}.",
           from_zero=False, probability=False) for q in _COSINES),
)  # fmt: skip
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _METRICS})
"""What `trajectories` and `facts` draw, by name: columns of the rows, and `masses` and `cosines` of several."""


def metric_of(name: str) -> Metric:
    """The metric of that name.

    Raises:
        RunError: there is none; the choices are listed.
    """
    if name not in METRICS:
        raise RunError(f"There is no chart of '{name}' by layer; choose from {', '.join(METRICS)}.")
    return METRICS[name]
