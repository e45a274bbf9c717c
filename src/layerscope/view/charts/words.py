"""Sentences about what a chart shows, made from its data."""

from collections.abc import Iterable, Sequence

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.curve_shapes import Points, peak, points, trough
from layerscope.record.prompt_key import PromptKey
from layerscope.report.numbers import amount
from layerscope.report.text import printable


def measured(value: int | float, unit: str) -> str:
    """A number with its unit, in the singular for one."""
    return amount(value) + (unit.removesuffix("s") if value == 1 else unit)


def signed(value: int | float) -> str:
    """A difference with its sign; none has none."""
    return f"{value:+g}" if value else "0"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def course(name: str, curve: Points, unit: str = "", steps: str = "layer") -> str:
    """Where a curve starts and ends, and its extremes where these are no ends."""
    known = points(curve)
    (first, at_first), (last, at_last) = known[0], known[-1]
    if len(known) == 1:
        return f"{name}: {measured(at_first, unit)} at {steps} {first}."
    text = f"{name}: {measured(at_first, unit)} at {steps} {first}, {measured(at_last, unit)} at {steps} {last}"
    ends = {first, last}
    extremes = [
        f"{word} {measured(point[1], unit)} at {steps} {point[0]}"
        for word, point in (("lowest", trough(known)), ("highest", peak(known)))
        if point is not None and point[0] not in ends and amount(point[1]) not in (amount(at_first), amount(at_last))
    ]
    return f"{text}; {', '.join(extremes)}." if extremes else f"{text}."


def prompt_name(run: AnalysedRun, prompt: PromptKey) -> str:
    """What a prompt asks: `Germany→Berlin`, or its answer alone; its wording too where there are several."""
    recorded = run.record.prompt(prompt)
    curve = next(iter(run.verdict.curves.of_prompt.get(prompt, ())), None)
    key = None if curve is None else next(iter(curve.values("fact_key")), None)
    answer = recorded.answers[0].string.strip() if recorded and recorded.answers else None
    name = printable(str(key or answer or prompt.prompt_id))
    label = name if prompt.is_fact else f"control {name}"
    return f"{label} ({prompt.prompt_variant})" if len(run.verdict.curves.variants) > 1 else label


def model_name(run: AnalysedRun) -> str:
    """The model without its owner."""
    return run.record.model.id.rsplit("/", 1)[-1]


def sentences(parts: Iterable[str | None]) -> str:
    """What there is to say, one after the other."""
    return " ".join(part for part in parts if part)
