"""Parts of `run.json` measured once and not by row: temperatures, last layer, primary prompt, fitted lenses."""

from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, model_validator

from layerscope.lens_record import (
    BIASED,
    FITTED_NAMES,
    CorpusRecord,
    Count,
    ImportedLens,
    Kind,
    Positive,
    RecordModel,
    Settings,
    Sha256,
    SkipLayers,
)
from layerscope.lens_words import Placement
from layerscope.record.by_layer import ByLayer, CountByLayer
from layerscope.record.parts import Fraction, Utc
from layerscope.record.patching import PatchingRecord
from layerscope.record.routing import RoutingRecord
from layerscope.record.sublayers import SublayersRecord

FORMER_KEYS = {"close_up": "position_readout", "sidecars": "fitted_lenses"}
"""Keys of `measured` up to schema 2.1, and what they are called now."""


def _with_present_keys(absent: object) -> object:
    """Reasons of an older record under the keys of now."""
    return {FORMER_KEYS.get(key, key): why for key, why in absent.items()} if isinstance(absent, dict) else absent


def _each_kind_once(lenses: tuple["FittedLensRecord", ...]) -> tuple["FittedLensRecord", ...]:
    kinds = [lens.kind for lens in lenses]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"each kind of fitted lens should be there once, but there are {', '.join(kinds)}")
    return lenses


def _ascending(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    ends = [end for pair in ranges for end in pair]
    if any(first > last for first, last in ranges) or ends != sorted(ends):
        raise ValueError("ranges of ids should be [first, last] pairs in ascending order")
    return ranges


class NormTemperatureRecord(RecordModel):
    """The temperature at which each layer's headline distribution comes nearest to the model's own."""

    lens: str = Field(description="The lens whose logits were divided.")
    method: Literal["exact", "grid"] = Field(description="`grid`: best of 25 log-spaced values, as published.")
    calibration: str = Field(description="Which texts the temperatures were fitted on, in words.")
    n_rows: Positive | None = Field(None, description="How many positions of those texts.")
    tau_per_layer: ByLayer = Field(description="One temperature a layer, within [0.2, 5.0].")
    bound_hits: Count | None = Field(None, description="How many of them stand on a bound, which then decided them.")


class LastLayerRecord(RecordModel):
    """The primary prompt's last layer under the headline lens, beside the model's own output."""

    kl_to_final_bits: float | None = Field(None, ge=0, description="KL(lens || model), in bits.")
    top1_agree: bool | None = Field(None, description="Whether both have the same most likely token.")
    p_top1_lens: Fraction | None = Field(None, description="Probability of the lens' most likely token.")
    p_top1_model: Fraction | None = Field(None, description="Probability of the model's most likely token.")
    p_answer_lens: Fraction | None = Field(None, description="Of the answer under the lens.")
    answer_rank_lens: Positive | None = Field(None, description="Of the answer under the lens.")
    temp_est: float | None = Field(None, description="Best of 25 log-spaced divisors in [0.1, 10] of the lens' logits.")
    kl_after_temp_bits: float | None = Field(None, ge=0, description="The divergence it leaves, in bits.")
    temp_est_refined: float | None = Field(None, description="Best divisor near that one, searched without a grid.")
    kl_after_temp_refined_bits: float | None = Field(None, ge=0, description="The divergence it leaves, in bits.")
    scale: float | None = Field(None, description="Logit scale that the model declares.")
    softcap: float | None = Field(None, description="Softcap that the model declares, in logits.")
    kl_after_scale_bits: float | None = Field(None, ge=0, description="Divergence after that scale alone, in bits.")
    kl_after_softcap_bits: float | None = Field(None, ge=0, description="After that softcap alone, in bits.")
    kl_after_scale_then_softcap_bits: float | None = Field(None, ge=0, description="After both, in bits.")


class ViewRecord(RecordModel):
    """The primary prompt's last position through one view at every layer."""

    view: str = Field(description="A lens, or `post_ln2`: the second norm of the block that wrote last.")
    answer_rank: CountByLayer = Field(description="Rank of the answer, from 1.")
    p_answer: ByLayer = Field(description="Its probability.")
    top1_id: CountByLayer = Field(description="The most likely token.")
    p_top1: ByLayer = Field(description="Its probability.")


class OverlapRecord(RecordModel):
    """How alike two views rank the vocabulary, at every layer."""

    view: str = Field(description="The view whose top tokens `spearman_top50_ref` follows.")
    against: str = Field(description="The other view.")
    jaccard_10: ByLayer = Field(description="Shared share of both sets of ten most likely ids.")
    jaccard_50: ByLayer = Field(description="The same of fifty.")
    spearman_top50_union: ByLayer = Field(description="Over both top-50 lists; an id missing from one has rank 51.")
    spearman_top50_ref: ByLayer = Field(description="Over the view's top-50 ids and their ranks under the other.")


class ScaledRecord(RecordModel):
    """The headline lens' logits multiplied by a scale near 1."""

    scale: float = Field(gt=0, description="The factor.")
    p_answer: ByLayer = Field(description="The answer's probability then.")


class RepeatabilityRecord(RecordModel):
    """Every layer of the primary prompt decoded a second time, row by row."""

    status: Literal["ok", "skipped", "unavailable"] = Field(description="Whether it was done.")
    reason: str | None = Field(None, description="Why not; null where it was done.")
    rank_dev: CountByLayer = Field((), description="By layer: |rank of the first top token in the second - 1|.")
    top1_flip: tuple[bool | None, ...] = Field((), description="By layer: whether the top token changed.")


class PositionReadoutRecord(RecordModel):
    """What was looked at closely: the primary prompt at its last position."""

    headline: str = Field(description="The view that `answer_gap`, `scaled` and `repeatability` are about.")
    views: tuple[ViewRecord, ...] = Field(description="Through every view.")
    overlaps: tuple[OverlapRecord, ...] = Field(description="Between pairs of views.")
    answer_gap: ByLayer = Field(description="Answer's logit less the largest other one, in logits (nats).")
    scaled: tuple[ScaledRecord, ...] = Field(description="The answer at scales near 1.")
    repeatability: RepeatabilityRecord = Field(description="Whether a second decode agrees.")


class SecondForwardRecord(RecordModel):
    """The primary prompt sent through the model once more, under the headline lens; by layer."""

    mode: Literal["auto", "always", "off", "skipped_deterministic"] = Field(description="What was asked for or done.")
    answer_rank: CountByLayer = Field((), description="Rank of the answer; empty where no second pass was made.")
    p_answer: ByLayer = Field((), description="Its probability.")
    answer_logit_gap: ByLayer = Field((), description="Its lead, in logits; null unless its rank is 1.")
    top_ids: tuple[tuple[Count, ...], ...] = Field((), description="The ten most likely ids.")


class PredictionRecord(RecordModel):
    """A distribution of the model's own head at the last position of a prompt."""

    prompt: str | None = Field(None, description="The prompt; null for the primary one.")
    temperature: float = Field(1.0, gt=0, description="What the logits were divided by.")
    entropy_bits: float = Field(ge=0, description="In bits.")
    top_ids: tuple[Count, ...] | None = Field(None, description="Most likely first; null where only text is known.")
    top_tokens: tuple[str, ...] = Field(description="The same for people.")
    top_probs: tuple[Fraction, ...] = Field(description="Of each of them.")
    answer_rank: Positive | None = Field(None, description="Rank of the primary prompt's answer; null elsewhere.")
    p_answer: Fraction | None = Field(None, description="Its probability.")


class CopyMaskRecord(RecordModel):
    """Ids that never count as an echo of the prompt: blank or ASCII punctuation; under protocol standard special
    tokens as well."""

    size: Count = Field(description="How many.")
    id_ranges: Annotated[tuple[tuple[Count, Count], ...], AfterValidator(_ascending)] = Field(
        description="The ids as [first, last] ranges."
    )
    sample: tuple[str, ...] = Field(description="Texts of the first sixteen.")

    @property
    def ids(self) -> list[int]:
        """Every one of them, ascending."""
        return [i for first, last in self.id_ranges for i in range(first, last + 1)]


class UnembedBiasRecord(RecordModel):
    """The head's bias by vocabulary id."""

    present: bool = Field(description="Whether it has one.")
    l2_norm: float = Field(ge=0, description="Euclidean norm, in logits; 0 without one.")
    max_abs: float = Field(ge=0, description="Largest size, in logits; 0 without one.")


class HeldOutRecord(RecordModel):
    """Mean KL(model || lens) over text that nothing was chosen by, in bits, by layer."""

    n_positions: Count | None = Field(None, description="Positions of that text.")
    logit_bits: ByLayer = Field(description="Of the logit lens.")
    lens_bits: ByLayer = Field(description="Of the fitted lens as it was kept.")
    bias_bits: ByLayer = Field((), description="Of a bias and a temperature alone; empty where none was measured.")
    closed_form_bits: ByLayer = Field((), description="Of the ridge regression; empty where none was measured.")
    logit_top1: ByLayer = Field(
        (), description="Share of positions with the model's first token on top of the logit lens; empty as above."
    )
    lens_top1: ByLayer = Field((), description="The same of the fitted lens.")


class SkipLayersRecord(RecordModel, SkipLayers):
    """The last blocks replaced by the translator of the layer before them, on held-out text."""

    perplexity_lens: float = Field(gt=0, description="Of the lens at that layer.")
    perplexity_model: float = Field(gt=0, description="Of the model itself.")


class TunedFitRecord(RecordModel):
    """An affine map for each layer, and how it was found; by layer from 0 to n_layers, null where there is none."""

    placement: Placement | None = Field(None, description="Whether it is applied before or after the final norm.")
    rank: Count | None = Field(
        None, description="Of the linear part: d_model where it is a full matrix, 0 where there is none."
    )
    temperatures: ByLayer = Field(
        description="What each layer's row is divided by before it is unembedded; 1 at the last."
    )
    map_norms: ByLayer = Field((), description="Frobenius norm of each linear part; 0 is a map that never moved.")
    bias_norms: ByLayer = Field((), description="Euclidean norm of each bias.")
    first_position: Count | None = Field(None, description="Positions of a sequence before it were not fitted to.")
    n_moments: Count | None = Field(None, description="Positions that the closed form rests on.")
    n_refined: Count | None = Field(None, description="Positions that refinement drew from.")
    n_ids: Count | None = Field(None, description="Ids that a step drew; null where it visited the whole vocabulary.")
    n_select: Count | None = Field(None, description="Positions by which it was stopped.")
    held_out: HeldOutRecord | None = Field(None, description="What it is worth on other text.")
    skip_layers: tuple[SkipLayersRecord, ...] = Field((), description="With the last blocks replaced, on that text.")


class RidgeFitRecord(RecordModel):
    """The ridge regression of the final residual on each layer's own; by layer from 0 to n_layers, null at the last."""

    placement: Placement | None = Field(None, description="Whether it is applied before or after the final norm.")
    penalties: ByLayer = Field((), description="As shares of the median eigenvalue of the inputs' covariance.")
    map_norms: ByLayer = Field((), description="Frobenius norm of each linear part.")
    bias_norms: ByLayer = Field((), description="Euclidean norm of each bias.")
    first_position: Count | None = Field(None, description="Positions of a sequence before it were not fitted to.")
    n_moments: Count | None = Field(None, description="Positions that the regression rests on.")
    n_select: Count | None = Field(None, description="Positions by which its penalty was chosen.")
    held_out: HeldOutRecord | None = Field(None, description="What it is worth on other text.")


class JacobianFitRecord(RecordModel):
    """The mean Jacobian of the last block's output by each layer's residual; by layer from 0, null where none is."""

    method: Literal["chain", "exact", "imported"] = Field(
        description="`chain`: the product of every block's mean; `exact`: pulled back through all blocks."
    )
    target_layer: Count | None = Field(None, description="Whose residual is differentiated; null where nobody says.")
    seq_len: Positive | None = Field(None, description="Positions of a prompt, BOS included.")
    first_position: Count | None = Field(None, description="Positions of a prompt before it were not counted.")
    n_prompts: Count | None = Field(None, description="Prompts that were averaged.")
    n_probe_rows: Count | None = Field(None, description="Output features whose rows were computed exactly.")
    n_probe_prompts: Count | None = Field(None, description="Prompts on which they were.")
    norms: ByLayer = Field((), description="Frobenius norm over the root of d_model: 1 for the identity.")
    betas: ByLayer = Field((), description="Relative bias of the chain by exact rows; above 0.1 it is approximate.")
    sigmas: ByLayer = Field((), description="Relative spread between prompts by exact rows.")
    corrected_errors: ByLayer = Field(
        (), description="Relative standard error of a chain without bias; above 0.1 it is approximate."
    )
    n_corrected_rows: Count | None = Field(None, description="Exact rows a prompt by which the bias was taken away.")
    held_out: HeldOutRecord | None = Field(None, description="What it is worth on other text.")

    @property
    def approximate(self) -> tuple[int, ...]:
        """Layers at which the chain is further off than claims allow: by its bias, or by its noise once corrected."""
        off = (*enumerate(self.betas), *enumerate(self.corrected_errors))
        return tuple(sorted({layer for layer, value in off if value is not None and value > BIASED}))


class PrismFitRecord(RecordModel):
    """One standardisation and rotation for all layers, and how it was found."""

    method: Literal["procrustes_to_final", "by_rank"] | None = Field(
        None, description="What the rotation brings together."
    )
    pairing: Literal["cross_covariance", "by_rank"] | None = Field(None, description="Which directions go to which.")
    k: Count | None = Field(None, description="Dimensions of the subspace.")
    k_asked: Count | None = Field(None, description="How many were asked for.")
    rank_effective: Count | None = Field(None, description="Numerical rank of what was fitted to.")
    stream: str | None = Field(None, description="The lens whose rows are standardised and rotated.")
    rows: tuple[Count, ...] = Field((), description="Layers that vectors were taken from.")
    layers: tuple[str, ...] = Field((), description="The same as blocks: `embed`, then the block that wrote.")
    vectors: Count | None = Field(None, description="How many vectors were taken.")
    distinct_vectors: Count | None = Field(None, description="How many of them differ.")
    orthogonality_error: float | None = Field(None, ge=0, description="Frobenius norm of Q^T Q - I.")
    held_out: HeldOutRecord | None = Field(None, description="What it is worth on other text.")


class FittedLensRecord(RecordModel):
    """A fitted lens: whether it was read through, and what its own record says of it."""

    kind: Kind = Field(description="Which lens.")
    status: Literal["loaded", "missing", "refused", "off"] = Field(
        description="`refused`: found, but of another model or damaged; `off`: not asked for."
    )
    path: str | None = Field(
        None, pattern=r"^[^/\\]+$", description="Name of its folder, never a path; null where none was looked at."
    )
    reason: str | None = Field(None, description="Why it was not loaded; null where it was.")
    weights_sha256: Sha256 | None = Field(None, description="Of its weights.")
    fitted_to: str | None = Field(None, description="Id of the model that it was fitted to.")
    created_utc: Utc | None = Field(None, description="When it was fitted or imported.")
    corpus: CorpusRecord | None = Field(None, description="On which text; null for a lens fitted elsewhere.")
    settings: Settings | None = Field(None, description="How; null for a lens fitted elsewhere.")
    tuned: TunedFitRecord | None = Field(None, description="Of a tuned lens.")
    prism: PrismFitRecord | None = Field(None, description="Of a prism lens.")
    ridge: RidgeFitRecord | None = Field(None, description="Of a ridge lens.")
    jacobian: JacobianFitRecord | None = Field(None, description="Of a Jacobian lens.")
    imported: ImportedLens | None = Field(None, description="Of a lens fitted elsewhere.")
    notes: tuple[str, ...] = Field((), description="What its own record warns of, in sentences.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "FittedLensRecord":
        if (self.status == "loaded") != (self.reason is None):
            raise ValueError(f"status is {self.status!r}; a reason should be given exactly where it is not 'loaded'")
        if any(getattr(self, kind) is not None for kind in FITTED_NAMES if kind != self.kind):
            raise ValueError(f"a fitted lens of kind {self.kind!r} should have no part about another kind")
        return self


class TunedVariantRecord(RecordModel):
    """The tuned lens with a part of it taken away."""

    kl_to_final_bits: ByLayer = Field(description="KL(lens || model) in bits; null at layer 0 and where not finite.")
    answer_rank: CountByLayer = Field(description="Rank of the answer, from 1; null in the same places.")


class TunedVariantsRecord(RecordModel):
    """The primary prompt's last position under parts of the tuned lens; by layer from 0 to n_layers, 0 being null."""

    temperatures: ByLayer = Field(
        (), description="What the tuned lens divides its rows by; empty where files do not say."
    )
    rotation_only: TunedVariantRecord = Field(description="Its map and bias, with a temperature of 1.")
    temperature_only: TunedVariantRecord = Field(
        description="The headline lens' row over the tuned lens' temperature, then unembedded."
    )
    bias_only: TunedVariantRecord | None = Field(
        None,
        description="The tuned lens with its linear part replaced by its mean effect, x + c + mean A with the mean of "
        "the fit's inputs; null where that mean is not known, as for an imported lens.",
    )


class ShuffledPromptRecord(RecordModel):
    """A prompt about a fact, as the twin with shuffled weights takes it."""

    fact_key: str | None = Field(description="Which fact, as in the rows.")
    fact_index: Count | None = Field(description="Place of the fact, as in the rows.")
    prompt_variant: str = Field(description="Which wording, as in the rows.")
    answered: bool | None = Field(description="Whether the answer has rank 1 at the output; null if unresolved.")
    first: Count | None = Field(description="First layer at which it has rank 1; null where there is none.")
    stable: Count | None = Field(description="First layer from which it has rank 1 to the output.")
    strong_stable: Count | None = Field(description="The same with the strong gate at every layer from there on.")


class ShuffledWeightsRecord(RecordModel):
    """The suite asked of a twin of the model whose matrices hold their entries in random order."""

    scope: Literal["blocks", "all"] = Field(
        description="Which matrices: those of the blocks, or embedding and unembedding too; vectors are kept."
    )
    seed: int = Field(description="What decided the order.")
    lens: str = Field(description="Through which lens its layers were read: the headline lens, unless that is fitted.")
    identity_ok: bool = Field(description="Whether its last layer, decoded by us, is its own output.")
    n_asked: Count = Field(description="Prompts about facts, controls not counted.")
    n_answered: Count = Field(description="How many of them have the answer at rank 1 at the output.")
    prompts: tuple[ShuffledPromptRecord, ...] = Field(description="Each of them, in the order of the rows.")
    on_top: dict[str, tuple[Count, ...]] = Field(
        description="For each wording, how many answers have rank 1, by layer from 0 to n_layers."
    )


class MeasuredRecord(RecordModel):
    """Everything that was measured beside the rows; a block that is null has its reason in `absent`."""

    stack: Literal["pre_norm", "post_norm"] | None = Field(
        None, description="Whether blocks read the stream through a norm, or norm what they have written."
    )
    first_block_norm: str | None = Field(None, description="Kind of the first block's norm: RMSNorm or LayerNorm.")
    final_norm: str | None = Field(None, description="Kind of the norm before the head.")
    unembed_bias: UnembedBiasRecord | None = Field(None, description="The head's bias.")
    copy_mask: CopyMaskRecord | None = Field(None, description="Ids that never count as an echo.")
    norm_temperature: NormTemperatureRecord | None = Field(None, description="Temperatures by layer.")
    last_layer: LastLayerRecord | None = Field(None, description="The last layer beside the model's own output.")
    position_readout: PositionReadoutRecord | None = Field(
        None,
        validation_alias=AliasChoices("position_readout", "close_up"),
        description="The primary prompt's last position through several views.",
    )
    second_forward: SecondForwardRecord | None = Field(None, description="The primary prompt sent through again.")
    final_prediction: PredictionRecord | None = Field(None, description="The model's own output for it.")
    temperature_exploration: tuple[PredictionRecord, ...] = Field((), description="The same at other temperatures.")
    test_prompts: tuple[PredictionRecord, ...] = Field((), description="Further prompts, head alone.")
    fitted_lenses: Annotated[tuple[FittedLensRecord, ...], AfterValidator(_each_kind_once)] = Field(
        (),
        validation_alias=AliasChoices("fitted_lenses", "sidecars"),
        description="Fitted lenses, read through or not; each kind once.",
    )
    tuned_variants: TunedVariantsRecord | None = Field(
        None, description="The primary prompt under parts of the tuned lens."
    )
    shuffled_weights: ShuffledWeightsRecord | None = Field(
        None, description="The suite asked of a twin with shuffled weights; null where no such control was asked for."
    )
    patching: PatchingRecord | None = Field(
        None, description="Runs with residuals of other facts written into them; null where none were asked for."
    )
    sublayers: SublayersRecord | None = Field(
        None, description="What attention, MLPs and heads add to the answers' leads; null where that was not asked for."
    )
    routing: RoutingRecord | None = Field(
        None,
        description="Which blocks send tokens to experts; null where none calls its experts by their numbers, as in a "
        "dense model, in families that run every token through all experts, and in runs before this was recorded.",
    )
    absent: Annotated[dict[str, str], BeforeValidator(_with_present_keys)] = Field(
        {}, description="For each block that is null or empty, the reason in words."
    )
