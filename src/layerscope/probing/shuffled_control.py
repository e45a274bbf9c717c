"""The suite asked of a twin with shuffled weights: what lens and milestones find where nothing was learned."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import polars as pl

from layerscope.analysis.milestones import layer_of
from layerscope.errors import ModelError
from layerscope.lenses import LENS_NAMES
from layerscope.model.options import OpenOptions
from layerscope.model.shuffled_weights import Scope
from layerscope.probing.options import ProbeOptions
from layerscope.record.measured import ShuffledPromptRecord, ShuffledWeightsRecord
from layerscope.record.milestone_names import ONSET, STRONG, stable_twin
from layerscope.record.prompt_key import PromptKey
from layerscope.record.run_record import RunRecord
from layerscope.run import Run

OUTPUT = "logit"
"""The lens that is the model itself at the last layer."""
_SCOPES: dict[str, Scope | None] = {
    "none": None,
    "shuffled-weights": "blocks",
    "shuffled-weights:blocks": "blocks",
    "shuffled-weights:all": "all",
}


def control_scope(control: str) -> Scope | None:
    """Which matrices of a twin are shuffled; None where no twin is asked for.

    Raises:
        ModelError: there is no such control.
    """
    if control not in _SCOPES:
        raise ModelError(f"There is no control '{control}'; choose from {', '.join(_SCOPES)}.")
    return _SCOPES[control]


def asked_of_twin(options: ProbeOptions, headline: str) -> dict[str, Any]:
    """How a twin is probed: as its model, but at last positions and under the headline lens alone.

    How the model was opened holds for the twin already. A fitted lens knows the model's own layers and not the twin's,
    so the logit lens stands for it; it is read in any case, for at the last layer it is the output.
    """
    opening = {option.name for option in fields(OpenOptions)}
    same = {field.name: getattr(options, field.name) for field in fields(ProbeOptions) if field.name not in opening}
    lenses = dict.fromkeys((headline if headline in LENS_NAMES else OUTPUT, OUTPUT))
    return same | {
        "lenses": tuple(lenses),
        "lens_dir": None,
        "calibrate": None,
        "tokens": None,
        "positions": "last",
        "second_forward": "off",
        "control": "none",
        "causal": False,
        "sublayers": False,
        "neurons": False,
        "ablate": None,
    }


def with_twin(record: RunRecord, twin: Run, scope: Scope) -> RunRecord:
    """A run's record with what its twin's run found, and the time that it took."""
    measured = record.measured.model_copy(update={"shuffled_weights": twin_record(twin, scope)})
    timings, spent = record.timings, twin.record.timings
    if timings is not None and spent is not None:
        total = timings.total_s + spent.total_s
        timings = timings.model_copy(update={"control_s": spent.total_s, "total_s": total})
    return record.model_copy(update={"measured": measured, "timings": timings})


def twin_record(twin: Run, scope: Scope) -> ShuffledWeightsRecord:
    """What a twin's run found."""
    record, lens = twin.record, twin.record.protocol.headline_lens
    facts = [prompt.key for prompt in record.suite.prompts if prompt.key.is_fact]
    prompts = tuple(_prompt(twin, key) for key in facts)
    return ShuffledWeightsRecord(
        scope=scope,
        seed=0 if record.provenance is None else record.provenance.seed,
        lens=lens,
        identity_ok=record.probabilities_stand,
        n_asked=len(prompts),
        n_answered=sum(prompt.answered is True for prompt in prompts),
        prompts=prompts,
        on_top=_on_top(twin.judged_rows.filter(lens=lens, is_next=True), facts, record.model.n_layers),
    )


def _prompt(twin: Run, key: PromptKey) -> ShuffledPromptRecord:
    rows = key.rows_of(twin.rows)
    milestones = twin.milestones.of(prompt=key)
    return ShuffledPromptRecord(
        fact_key=rows["fact_key"][0],
        fact_index=key.fact_index,
        prompt_variant=key.prompt_variant,
        answered=twin.diagnostics.outputs[key].answered,
        first=layer_of(milestones, ONSET),
        stable=layer_of(milestones, stable_twin(ONSET)),
        strong_stable=layer_of(milestones, stable_twin(STRONG)),
    )


def _on_top(rows: pl.DataFrame, facts: Sequence[PromptKey], n_layers: int) -> dict[str, tuple[int, ...]]:
    """For each wording, how many answers lead, by layer."""
    counts = {}
    for wording in dict.fromkeys(key.prompt_variant for key in facts):
        leading = rows.filter("is_answer", prompt_id="pos", prompt_variant=wording)["layer"].to_list()
        counts[wording] = tuple(leading.count(layer) for layer in range(n_layers + 1))
    return counts
