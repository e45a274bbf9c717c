"""What attention, MLPs and heads add to the answer's logit: direct logit attribution, and what is read between them."""

from typing import Literal

from pydantic import Field, model_validator

from layerscope.lens_record import Count, Positive, RecordModel
from layerscope.record.by_layer import ByLayer, CountByLayer
from layerscope.record.write_patching import WritePatchingRecord


class CheckedSumRecord(RecordModel):
    """A sum that has to hold, at the case that comes nearest to what rounding explains, or lies furthest beyond."""

    sum: Literal["writes", "shares", "steps", "heads", "neurons"] = Field(
        description="`writes`: embedding and writes are the final residual; `shares`: shares and constant are the "
        "model's own logit difference; `steps`: the lens at the embedding and every step are it too; `heads`: heads "
        "and the biases behind them are their attention's share; `neurons`: the same of their MLP's."
    )
    error: float = Field(
        ge=0, description="How far it misses: in nats; of `writes`, as a share of the residual's largest entry."
    )
    bound: float = Field(ge=0, description="What rounding explains, in the same unit: ten standard deviations.")
    n: Positive = Field(description="How many cases: prompts; of `heads` and `neurons`, blocks of all prompts.")
    ok: bool = Field(description="Whether no case is beyond its bound.")


class WriterRecord(RecordModel):
    """What attention, or the MLP, of every block adds: means over prompts, by layer; null at layer 0."""

    dla: ByLayer = Field(
        description="Share of the final logit difference before any softcap, in nats: the write's, with the final "
        "norm's scale as it is for the whole residual."
    )
    n_positive: CountByLayer = Field(description="In how many prompts that share is above zero.")
    step: ByLayer = Field(
        description="By how much the logit lens' logit difference changes with the write, each state under its own "
        "norm, in nats; empty where no state between attention and MLP is known."
    )


class HeadsRecord(RecordModel):
    """Each head's share: means over prompts; by layer, of which layer 0 has no head, then by head, counted from 0."""

    dla: tuple[tuple[float, ...], ...] = Field(description="Share of the final logit difference, in nats.")
    n_positive: tuple[tuple[Count, ...], ...] = Field(description="In how many prompts it is above zero.")
    biases: ByLayer = Field(
        description="Share of the biases behind the heads, or of what stands for an ablated attention, in nats."
    )


class NeuronRecord(RecordModel):
    """A neuron of an MLP, as its last matrix reads it."""

    layer: Positive = Field(description="The layer that its block writes.")
    neuron: Count = Field(description="Which of the block's, counted from 0.")
    dla: float = Field(description="Share of the final logit difference, in nats: mean over prompts.")
    n_positive: Count = Field(description="In how many prompts it is above zero.")


class WordingWritersRecord(RecordModel):
    """The prompts of one wording at their last token: means over them, which add up as each prompt's own shares do."""

    prompt_id: str = Field(description="As in the rows.")
    prompt_variant: str = Field(description="As in the rows.")
    n: Positive = Field(description="How many prompts.")
    logit_difference: float = Field(
        description="Logit of the answer less that of its rival, scale included and before any softcap, in nats: the "
        "sum of all shares."
    )
    embedding: float = Field(description="Share of layer 0, whatever a family adds or multiplies there, in nats.")
    constant: float = Field(description="What biases of the final norm and of the head add, in nats.")
    attention: WriterRecord = Field(description="Of every block.")
    mlp: WriterRecord = Field(description="Of every block.")
    heads: HeadsRecord | None = Field(None, description="Of every block; null where heads are not told apart.")
    neurons: tuple[NeuronRecord, ...] = Field(
        (), description="Those with the largest shares by size, largest first; empty where they were not asked for."
    )
    lens_logit_difference: ByLayer = Field(
        description="Of the logit lens at layers 0 to n_layers, before any softcap, in nats."
    )

    @model_validator(mode="after")
    def _has_as_many_layers_everywhere(self) -> "WordingWritersRecord":
        n = len(self.lens_logit_difference)
        of = {"attention": self.attention.dla, "mlp": self.mlp.dla} | (
            {} if self.heads is None else {"heads": self.heads.dla}
        )
        for name, values in of.items():
            if len(values) != n:
                raise ValueError(f"{name} has {len(values)} layers, but lens_logit_difference has {n}")
        return self


class AnswerAndRivalRecord(RecordModel):
    """What one prompt's logit difference is between."""

    prompt_id: str = Field(description="As in the rows.")
    prompt_variant: str = Field(description="As in the rows.")
    fact_index: Count | None = Field(None, description="As in the rows; null for a control.")
    answer_id: Count = Field(description="The accepted answer that ranks best at the output.")
    answer: str = Field(description="The same for people.")
    rival_id: Count = Field(description="The most likely other token at the output.")
    rival: str = Field(description="The same for people.")
    logit_difference: float = Field(description="Before any softcap, in nats.")
    logit_difference_capped: float | None = Field(
        None, description="The same behind the softcap, in nats; null where the model has none."
    )


class PatchAgreementRecord(RecordModel):
    """Whether blocks that write the answer are those that bring it in by patching."""

    prompt_variant: str = Field(description="The wording that was patched.")
    n_facts: Positive = Field(description="How many facts were patched and attributed; shares are means over them.")
    n_blocks: Positive = Field(description="How many blocks are ranked.")
    spearman: float = Field(
        ge=-1,
        le=1,
        description="Rank correlation, over blocks, of the share of attention and MLP together with the median effect "
        "of a patch at `next` behind the block less that in front of it.",
    )


class SublayersRecord(RecordModel):
    """Which attention, MLP and head wrote the answer."""

    order: Literal["sequential", "parallel"] | None = Field(
        None,
        description="Whether a block's MLP reads the state that its attention has written to, or the same state; null "
        "where that is not known.",
    )
    mid_reason: str | None = Field(None, description="Why there is no state between; null where there is one.")
    heads_reason: str | None = Field(None, description="Why heads are not told apart; null where they are.")
    prompts: tuple[AnswerAndRivalRecord, ...] = Field(
        description="Prompts whose answer is known; `sublayers.parquet` has the shares of each."
    )
    wordings: tuple[WordingWritersRecord, ...] = Field((), description="Means over the prompts of each wording.")
    left_out: dict[str, Count] = Field({}, description="Prompts that were left out: how many, by reason.")
    reason: str | None = Field(None, description="Why there is no prompt; null where there is one.")
    patching: PatchAgreementRecord | None = Field(
        None, description="Shares beside effects of patching; null where either was not measured."
    )
    write_patching: WritePatchingRecord | None = Field(
        None,
        description="What becomes of answers when one write at a time is another fact's; null where that was not run.",
    )
    write_patching_reason: str | None = Field(None, description="Why it was not, or could not be; null where it was.")
    sums: tuple[CheckedSumRecord, ...] = Field((), description="What has to add up, and whether it does.")

    def of_wording(self, prompt_id: str, prompt_variant: str) -> WordingWritersRecord | None:
        """Means over the prompts of a wording; None where it has none whose answer is known."""
        named = (w for w in self.wordings if (w.prompt_id, w.prompt_variant) == (prompt_id, prompt_variant))
        return next(named, None)

    @property
    def adds_up(self) -> bool:
        """Whether every sum holds that has to."""
        return all(checked.ok for checked in self.sums)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "SublayersRecord":
        if bool(self.prompts) == (self.reason is not None):
            raise ValueError("a reason should be given exactly where there is no prompt")
        if sum(wording.n for wording in self.wordings) != len(self.prompts):
            raise ValueError("the wordings should be of all prompts together")
        return self
