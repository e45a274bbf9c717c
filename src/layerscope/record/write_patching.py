"""What becomes of the answer when one write of a run is another fact's: medians over pairs, beside shares."""

from pydantic import Field, model_validator

from layerscope.lens_record import Count, Positive, RecordModel
from layerscope.record.by_layer import ByLayer, CountByLayer


class WriteEffectsRecord(RecordModel):
    """The writes of attention, or of the MLP, of every block: medians over pairs, by layer; null at layer 0."""

    next: ByLayer = Field(description="Effect where the write at the prompt's last token is the source's.")
    n_positive: CountByLayer = Field(description="In how many pairs that effect is above zero.")
    n_known: CountByLayer = Field(description="In how many pairs it is known at all.")
    direct: ByLayer = Field(
        description="What of it the write does by itself, read by the head with the final norm's scale held; the rest "
        "is what later blocks and the norm make of it."
    )
    subject: ByLayer = Field(
        description="Effect where the write at the subject's last token is the source's; empty where no pair has it at "
        "one place."
    )


class HeadEffectRecord(RecordModel):
    """One head: the median over pairs of what its write at the prompt's last token does."""

    layer: Positive = Field(description="The layer that its block writes.")
    head: Count = Field(description="Which of the block's, counted from 0.")
    share: float = Field(description="Its share of the answers' lead, in nats: mean over the pairs' bases.")
    effect: float = Field(description="Effect where what it adds is the source's.")
    n_positive: Count = Field(description="In how many pairs that effect is above zero.")


class WritePatchingRecord(RecordModel):
    """Pairs of facts of which one write at a time was put from the source's run into the base's."""

    prompt_variant: str = Field(description="The wording whose facts were paired.")
    n_pairs: Positive = Field(
        description="How many pairs, of those whose residuals were patched; taken evenly over the facts that are bases."
    )
    n_facts: Positive = Field(description="How many facts those pairs are of.")
    n_pairs_left: Count = Field(description="How many of those pairs were left out, for there are enough.")
    n_subject_pairs: Count = Field(description="How many pairs were patched at the subject too.")
    n_patches: Positive = Field(description="How many runs with one write replaced.")
    attention: WriteEffectsRecord = Field(description="Of every block.")
    mlp: WriteEffectsRecord = Field(description="Of every block.")
    heads: tuple[HeadEffectRecord, ...] = Field(
        (), description="Those with the largest shares by size, largest first; empty where heads are not told apart."
    )
    spearman_of_shares: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Rank correlation, over attention and MLP of every block, of the mean share of the pairs' bases "
        "with the median effect at `next`; null where all of one are equal.",
    )
    spearman_of_direct: float | None = Field(
        None, ge=-1, le=1, description="The same of the median direct part with the median effect."
    )
    self_patch_logit_change: float | None = Field(
        None, ge=0, description="Largest change of any logit where a run's own write is put into it."
    )

    @model_validator(mode="after")
    def _has_as_many_layers_everywhere(self) -> "WritePatchingRecord":
        lengths = {
            len(values)
            for of in (self.attention, self.mlp)
            for values in (of.next, of.n_positive, of.n_known, of.direct)
        } | {len(of.subject) for of in (self.attention, self.mlp) if of.subject}
        if len(lengths) != 1:
            raise ValueError(f"effects should be of equally many layers everywhere, but are of {sorted(lengths)}")
        return self
