"""What runs with replaced residuals gave: whether the state that a lens reads is the one that the model uses."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from layerscope.lens_record import Count, RecordModel
from layerscope.record.by_layer import ByLayer, CountByLayer


class PatchCurveRecord(RecordModel):
    """One pair patched at one position, by layer from 0 to n_layers; null where the output is not finite."""

    position: Literal["subject", "next"] = Field(
        description="`subject`: the subject's last token; `next`: the prompt's last token, where the answer is said."
    )
    effect: ByLayer = Field(
        description="(LD_patched - LD_base) / (LD_source - LD_base), before any softcap: 0 is nothing, 1 is the source."
    )
    logit_difference: ByLayer = Field(
        description="LD: logit of the base's answer less that of the source's, head transform included, in nats."
    )
    p_base_answer: ByLayer = Field(description="Probability of the base's answer.")
    p_source_answer: ByLayer = Field(description="Probability of the source's answer.")
    rank_base_answer: CountByLayer = Field(description="Rank of the base's answer, from 1.")
    rank_source_answer: CountByLayer = Field(description="Rank of the source's answer, from 1.")
    kl_to_source_bits: ByLayer = Field(description="KL(patched || source) over the vocabulary, in bits.")
    kl_from_base_bits: ByLayer = Field(description="KL(base || patched) over the vocabulary, in bits.")
    total_variation: ByLayer = Field(description="Total variation from the base's distribution, 0 to 1.")
    entropy_bits: ByLayer = Field(description="Entropy of the patched run's output, in bits.")
    top1_id: CountByLayer = Field(description="The most likely token.")


class PatchedPairRecord(RecordModel):
    """Two facts of one template, of which the source's residuals were written into the base's run."""

    base: Count = Field(description="`fact_index` of the fact that is run.")
    source: Count = Field(description="`fact_index` of the fact whose residuals are written.")
    base_answer_id: Count = Field(description="The base's answer, its first token.")
    source_answer_id: Count = Field(description="The source's answer, its first token.")
    alignment: Literal["position", "from_the_right"] = Field(
        description="`position`: both prompts have as many tokens, and each residual goes to its own position; "
        "`from_the_right`: they have not, and only what comes after both subjects is patched."
    )
    logit_difference_base: float = Field(description="LD of the base's own run, in nats.")
    logit_difference_source: float = Field(description="LD of the source's own run, in nats.")
    entropy_base_bits: float = Field(ge=0, description="Entropy of the base's output, in bits.")
    entropy_source_bits: float = Field(ge=0, description="Entropy of the source's output, in bits.")
    curves: tuple[PatchCurveRecord, ...] = Field(description="One for each position that was patched.")


def _no_fact_with_itself(pairs: tuple[PatchedPairRecord, ...]) -> tuple[PatchedPairRecord, ...]:
    if any(pair.base == pair.source for pair in pairs):
        raise ValueError("a pair should be of two facts, but base and source are the same")
    return pairs


class PatchingRecord(RecordModel):
    """Every pair of a suite that was patched, with controls."""

    prompt_variant: str = Field(description="The wording whose facts were paired.")
    pairs: Annotated[tuple[PatchedPairRecord, ...], AfterValidator(_no_fact_with_itself)] = Field(
        description="Each ordered pair; both directions of a pair are two of them."
    )
    left_out: dict[str, Count] = Field({}, description="Facts or pairs that were not patched: how many, by reason.")
    reason: str | None = Field(None, description="Why there is no pair; null where there is one.")
    self_patch_logit_change: float | None = Field(
        None, ge=0, description="Largest change of any logit where a run's own residual is written into it."
    )
    random_effect: ByLayer = Field(
        (), description="Median effect at `next` of a random step as long as the one to the source, by layer."
    )
    n_random: Count = Field(0, description="How many pairs that median is over.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "PatchingRecord":
        if bool(self.pairs) == (self.reason is not None):
            raise ValueError("a reason should be given exactly where there is no pair")
        return self
