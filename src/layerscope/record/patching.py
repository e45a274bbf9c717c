"""Which facts had their residuals written into one another's runs; what came of each is a row of `patches.parquet`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from layerscope.lens_record import Count, RecordModel


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


def _no_fact_with_itself(pairs: tuple[PatchedPairRecord, ...]) -> tuple[PatchedPairRecord, ...]:
    if any(pair.base == pair.source for pair in pairs):
        raise ValueError("a pair should be of two facts, but base and source are the same")
    return pairs


class PatchingRecord(RecordModel):
    """Every pair of a suite that was patched, with controls."""

    prompt_variant: str = Field(description="The wording whose facts were paired.")
    positions: Literal["default", "all"] = Field(
        "default",
        description="`default`: the subject's last token and the prompt's last one; `all`: every position from the "
        "first at which both prompts differ.",
    )
    pairs: Annotated[tuple[PatchedPairRecord, ...], AfterValidator(_no_fact_with_itself)] = Field(
        description="Each ordered pair; both directions of a pair are two of them."
    )
    left_out: dict[str, Count] = Field({}, description="Facts or pairs that were not patched: how many, by reason.")
    reason: str | None = Field(None, description="Why there is no pair; null where there is one.")
    self_patch_logit_change: float | None = Field(
        None, ge=0, description="Largest change of any logit where a run's own residual is written into it."
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "PatchingRecord":
        if bool(self.pairs) == (self.reason is not None):
            raise ValueError("a reason should be given exactly where there is no pair")
        return self
