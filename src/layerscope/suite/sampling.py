"""Some of a suite's facts: the first, or a sample that is the same on every machine."""

import hashlib
from dataclasses import replace

from layerscope.errors import SuiteError
from layerscope.suite.suite import Suite


def some_facts(suite: Suite, *, limit: int | None = None, sample: int | None = None, seed: int = 316) -> Suite:
    """The first `limit` facts, or `sample` facts drawn with `seed`; each with all its variants, in the suite's order.

    A control stays as long as some fact with the answers that it is compared with stays. The suite's description and
    notes say what was taken. The whole suite, as it is, where it has no more facts than that.

    Raises:
        SuiteError: both are given, or less than one fact is asked for.
    """
    if limit is not None and sample is not None:
        raise SuiteError("A limit takes the first facts and a sample any; give one of the two.")
    wanted = limit if limit is not None else sample
    if wanted is None:
        return suite
    if wanted < 1:
        raise SuiteError(f"At least one fact has to be asked, but {wanted} came as the number of them.")
    numbers = tuple(dict.fromkeys(prompt.fact_index for prompt in suite.prompts if prompt.fact_index is not None))
    total = len(numbers)
    if wanted >= total:
        return suite
    kept = range(wanted) if sample is None else _drawn(total, wanted, seed)
    what = (
        f"the first {wanted} of {total} facts"
        if sample is None
        else f"{wanted} of {total} facts, sampled with seed {seed}"
    )
    new_index = {numbers[fact]: i for i, fact in enumerate(kept)}
    facts = tuple(
        replace(prompt, fact_index=new_index[prompt.fact_index])
        for prompt in suite.prompts
        if prompt.fact_index is not None and prompt.fact_index in new_index
    )
    answers = {prompt.answers for prompt in facts}
    controls = tuple(prompt for prompt in suite.prompts if prompt.fact_index is None)
    kept_controls = tuple(prompt for prompt in controls if prompt.contrast in answers)
    notes = [f"suite {suite.name}: {what}"]
    if dropped := len(controls) - len(kept_controls):
        subject = "1 control is" if dropped == 1 else f"{dropped} controls are"
        notes.append(f"suite {suite.name}: {subject} left out, since the fact that it would be compared with is")
    description = f"{suite.description.removesuffix('.')} ({what})" if suite.description else what
    return Suite(suite.name, description, facts + kept_controls, (*suite.notes, *notes))


def _drawn(total: int, wanted: int, seed: int) -> list[int]:
    """Facts by number, in order. A larger sample of the same seed holds the smaller one, and no library's own
    generator, which may change, decides."""

    def lot(fact: int) -> bytes:
        return hashlib.sha256(f"{seed} {fact}".encode()).digest()

    return sorted(sorted(range(total), key=lot)[:wanted])
