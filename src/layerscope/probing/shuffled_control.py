"""The suite asked of a twin with shuffled weights: what lens and milestones find where nothing was learned."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import torch

from layerscope.analysis.curve import Curve, Curves
from layerscope.analysis.milestones import find_milestones, layer_of
from layerscope.errors import ModelError
from layerscope.lenses import LENS_NAMES, bind_lenses
from layerscope.model.causal_lm import CausalLM
from layerscope.model.identity import Identity, check_identity, tolerance_for
from layerscope.model.reproducible import reproducible
from layerscope.model.shuffled_weights import Scope
from layerscope.probing.encode import Encoded
from layerscope.probing.memory_plan import IDENTITY_PROMPTS, Batch
from layerscope.probing.row_table import row_table
from layerscope.probing.run_metadata import Settings
from layerscope.progress import Observer
from layerscope.readout.measure import measure
from layerscope.record.measured import ShuffledPromptRecord, ShuffledWeightsRecord
from layerscope.record.milestone_names import ONSET, STRONG, stable_twin

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


def shuffled_control(
    model: CausalLM,
    encoded: Sequence[Encoded],
    settings: Settings,
    parts: Sequence[Batch],
    scope: Scope,
    watcher: Observer,
) -> ShuffledWeightsRecord:
    """Ask a twin of the model the same prompts, each at its last position, under the headline lens.

    A fitted lens knows the model's own layers and not the twin's, so the logit lens stands for it.

    Args:
        parts: how the prompts are cut for the model, whose every position may be decoded: room enough for the twin.
    """
    headline = settings.protocol.headline if settings.protocol.headline in LENS_NAMES else OUTPUT
    twin = model.shuffled_twin(scope, settings.seed)
    asked = [replace(e, positions=(len(e.token_ids) - 1,)) for e in encoded]
    columns, identity = _measured(twin, asked, _with_headline(settings, headline), parts, watcher)
    rows, _ = row_table(columns, asked, twin)
    curves = Curves.of(rows.filter(prompt_id="pos"), twin.n_layers, twin.d_vocab)
    prompts = tuple(_prompt(curve, curves, settings) for curve in curves if curve.lens == headline)
    return ShuffledWeightsRecord(
        scope=scope,
        seed=settings.seed,
        lens=headline,
        identity_ok=identity.ok,
        n_asked=len(prompts),
        n_answered=sum(prompt.answered is True for prompt in prompts),
        prompts=prompts,
        on_top=_on_top([curve for curve in curves if curve.lens == headline], twin.n_layers),
    )


def _with_headline(settings: Settings, headline: str) -> Settings:
    """The same with another headline lens."""
    return replace(settings, protocol=replace(settings.protocol, headline=headline))


def _measured(
    twin: CausalLM, asked: Sequence[Encoded], settings: Settings, parts: Sequence[Batch], watcher: Observer
) -> tuple[pl.DataFrame, Identity]:
    """The columns of all prompts under the headline lens and the one that ends at the output."""
    names = dict.fromkeys((settings.protocol.headline, OUTPUT))
    lenses = bind_lenses(list(names), final_norm=twin.final_norm, next_norms=twin.next_norms)
    frames: list[pl.DataFrame] = []
    identity: Identity | None = None
    with reproducible(settings.seed, twin.placement.device), torch.inference_mode():
        for i, part in enumerate(parts):
            here = asked[part.prompts]
            residuals = twin.forward(
                [e.token_ids for e in here],
                n_logits=min(IDENTITY_PROMPTS, len(here)) if i == 0 else 0,
                progress=lambda done, total, i=i: watcher.blocks(i * total + done, len(parts) * total),  # type: ignore[misc]
            )
            if identity is None:
                identity = check_identity(
                    twin.unembedding,
                    residuals.last()[: len(residuals.logits)],
                    residuals.logits,
                    tolerance_bits=tolerance_for(twin.placement.dtype),
                )
            columns = measure(
                residuals.select([e.positions for e in here]),
                lenses,
                [e.query for e in here],
                twin.unembedding,
                protocol=settings.protocol,
                trivial=twin.tokens.trivial,
                sweep_bytes=part.sweep_bytes,
                final_is_model=identity.ok,
                progress=lambda done, total, i=i: watcher.vocabulary(i * total + done, len(parts) * total),  # type: ignore[misc]
            )
            frames.append(pl.DataFrame(columns).with_columns(pl.col("prompt") + part.prompts.start))
    if identity is None:
        raise ModelError("There is no prompt to ask the twin with shuffled weights; give at least one fact.")
    return pl.concat(frames), identity


def _prompt(curve: Curve, curves: Curves, settings: Settings) -> ShuffledPromptRecord:
    milestones = find_milestones(curve, settings.protocol.thresholds)
    at_output = curves.get(curve.prompt, OUTPUT)
    return ShuffledPromptRecord(
        fact_key=curve.rows[0]["fact_key"],
        fact_index=curve.prompt.fact_index,
        prompt_variant=curve.prompt.prompt_variant,
        answered=None if at_output is None else at_output.value("is_answer", curve.n_layers),
        first=layer_of(milestones, ONSET),
        stable=layer_of(milestones, stable_twin(ONSET)),
        strong_stable=layer_of(milestones, stable_twin(STRONG)),
    )


def _on_top(curves: Sequence[Curve], n_layers: int) -> dict[str, tuple[int, ...]]:
    counts: dict[str, list[int]] = {}
    for curve in curves:
        of_wording = counts.setdefault(curve.prompt.prompt_variant, [0] * (n_layers + 1))
        for layer in curve.layers(lambda row: row["is_answer"]):
            of_wording[layer] += 1
    return {wording: tuple(by_layer) for wording, by_layer in counts.items()}
