"""Parts of `run.json`: what was measured, with what, and how; model, suite, checks, machine.

What is null in a run that was read from published files is what those do not say.
"""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from layerscope.lens_record import Count, Positive, RecordModel, Sha256
from layerscope.record.prompt_key import PromptKey


def _utc(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError("the time should be in UTC, as in 2026-03-01T09:30:00Z")
    return text


Utc = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"), AfterValidator(_utc)]
Seconds = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ProtocolRecord(RecordModel):
    """The bundle of definitions by which everything was measured."""

    name: str = Field(description="Name of the bundle: `standard` or `published`.")
    version: str = Field(description="Version of the bundle; two runs compare only under one version.")
    lenses: tuple[str, ...] = Field(description="Lenses that were decoded, as in the column `lens`.", min_length=1)
    headline_lens: str = Field(description="The lens that plain names such as L_semantic mean.")
    lens_head_transform: bool = Field(description="Whether lens logits pass the model's own logit scale and softcap.")
    thresholds: dict[str, float] = Field(description="Every threshold by name; in bits where the name says so.")


class HeadTransformRecord(RecordModel):
    """What the head does to its logits: softcap * tanh(scale * z / softcap)."""

    scale: float | None = Field(None, description="Factor on the logits; null where there is none.")
    softcap: float | None = Field(None, description="Bound on the logits' size, in logits; null where there is none.")
    bias: bool = Field(description="Whether the head adds a bias for each vocabulary id.")


class BosRecord(RecordModel):
    """How a prompt begins."""

    rule: Literal["always", "never", "tokenizer"] = Field(
        description="The rule that was used; `tokenizer`: as the model's own tokenizer has it."
    )
    source: Literal["tokenizer", "family", "option"] | None = Field(
        None, description="Whose rule it is: the tokenizer's, a table of families', or the user's."
    )
    family_rule: Literal["always", "never", "tokenizer"] | None = Field(
        None, description="What the table of families says of this model; null where it does not know it."
    )
    id: Count | None = Field(None, description="Token id put in front of every prompt; null where none is.")
    ids: tuple[Count, ...] = Field((), description="All ids put in front of a prompt, in their order.")
    note: str = Field(description="The rule and its outcome in words.")


class AblatedPartRecord(RecordModel):
    """A part of a block that was put out of action."""

    site: Literal["attn", "mlp", "head", "neurons"] = Field(description="What it is.")
    layer: Positive = Field(description="The layer that its block writes; the first block is that of layer 1.")
    indices: tuple[Count, ...] = Field((), description="Which heads or neurons of it, counted from 0.")

    @property
    def words(self) -> str:
        """For people: `head 12.7`, `attention 12`."""
        if self.site == "head":
            return f"head {self.layer}.{self.indices[0]}"
        if self.site == "neurons":
            which = ", ".join(map(str, self.indices))
            return f"neuron{'s' if len(self.indices) > 1 else ''} {which} of layer {self.layer}"
        return f"{'attention' if self.site == 'attn' else 'MLP'} {self.layer}"


class AblationRecord(RecordModel):
    """What was put out of action: every number of the run is of the model without it."""

    base_id: str = Field(description="Id of the model as it is.")
    parts: tuple[AblatedPartRecord, ...] = Field(min_length=1, description="Which parts.")
    by: Literal["zero", "mean"] = Field(
        description="What stands for them: zero, or their mean over all tokens of the run's own prompts."
    )

    @property
    def words(self) -> str:
        """For people: `head 12.7 and MLP 30 set to zero`."""
        named = [part.words for part in self.parts]
        listed = ", ".join(named[:-1]) + (" and " if named[1:] else "") + named[-1]
        return f"{listed} set to {'zero' if self.by == 'zero' else 'the mean over the prompts'}"


class ModelRecord(RecordModel):
    """Which model was read."""

    id: str = Field(
        pattern=r"^[^/\\]+(/[^/\\]+)?$", description="Hub id, or the name of the model's folder; never a path."
    )
    revision: str | None = Field(None, description="Branch, tag or commit that was asked for.")
    commit: str | None = Field(None, description="Commit that was read; null for a local folder.")
    family: str | None = Field(None, description="Architecture by its name in Transformers, such as `qwen3`.")
    family_verified: bool | None = Field(None, description="Whether tests hold this family equal to Transformers.")
    n_layers: Positive = Field(description="Number of blocks; rows have layers 0 to n_layers.")
    d_model: Positive = Field(description="Width of the residual stream.")
    n_heads: Positive | None = Field(None, description="Attention heads of a block; null where it has none.")
    d_vocab: Positive = Field(description="Number of logits, ids without a token included.")
    n_parameters: Positive | None = Field(None, description="Number of parameters, tied ones counted once.")
    tied_unembedding: bool | None = Field(None, description="Whether embedding and unembedding are one matrix.")
    stored_dtype: str | None = Field(None, description="Number format of the checkpoint's weights.")
    bytes_on_disk: Count | None = Field(None, description="Size of the checkpoint's weights, in bytes.")
    notes: tuple[str, ...] = Field(
        (), description="What was taken off names, set aside or applied when its files were read, in sentences."
    )
    head_transform: HeadTransformRecord | None = Field(None, description="What the model does to its logits.")
    fingerprint: Sha256 | None = Field(
        None, description="SHA-256 of unembedding and final norm, which a fitted lens depends on."
    )
    tokenizer_sha256: Sha256 | None = Field(None, description="SHA-256 of the tokenizer.")
    bos: BosRecord | None = Field(None, description="What every prompt is made to begin with.")
    ablation: AblationRecord | None = Field(
        None, description="Which parts of its blocks were put out of action; null of a model as it is."
    )
    trust_remote_code: bool | None = Field(None, description="Whether code that came with the checkpoint was run.")


AnswerForm = Literal["with_space", "no_space", "as_written"]
"""How an answer follows its prompt: after a space, without one, or with the space that the suite wrote."""
FORM_IN_WORDS: dict[str, str] = {
    "with_space": "after a space",
    "no_space": "without a space",
    "as_written": "as it is written",
}
"""The forms for people."""


class AnswerFormRecord(RecordModel):
    """An answer in one of its forms, and what the model itself makes of that form's first token."""

    variant: AnswerForm = Field(description="How the answer joins the prompt.")
    answer_ids: tuple[Count, ...] = Field(
        (), description="Its token ids behind the prompt's; empty where the prompt's own would change."
    )
    pieces: tuple[str, ...] = Field((), description="Token strings of at most the first four.")
    apart: bool = Field(
        False,
        description="Whether it was tokenised apart from the prompt, whose closing white space would merge with it.",
    )
    white_space_skipped: bool = Field(
        False, description="Whether its first token is white space alone, which would tell nothing."
    )
    reason: str | None = Field(
        None, description="Why it cannot be judged at the prompt's last position; null where it can."
    )
    logit: float | None = Field(None, description="Of its first token at the model's output, in logits.")
    rank: Positive | None = Field(None, description="Rank of that token there, from 1.")


class AlignmentRecord(RecordModel):
    """Where an answer begins: its ids after the prompt, or why there are none."""

    string: str = Field(description="The answer as the suite has it.")
    status: Literal["ok", "unresolved"] = Field(description="Whether the answer's tokens extend the prompt's.")
    ok: bool = Field(description="The same as a truth value.")
    variant: AnswerForm | Literal["unknown"] = Field(description="How the answer joins the prompt.")
    chosen_by: Literal["model", "suite", "rule"] | None = Field(
        None, description="Who chose that form: the model's own logits, the suite or its user, or the protocol's rule."
    )
    forms: tuple[AnswerFormRecord, ...] = Field((), description="Every form that was looked at.")
    first_id: Count | None = Field(None, description="The token id that stands for the answer; null if unresolved.")
    answer_ids: tuple[Count, ...] = Field(description="All token ids of the answer.")
    pieces: tuple[str, ...] = Field(description="Token strings of at most the first four ids.")
    several_pieces: bool = Field(description="Whether only a first piece is judged, which other words may share.")
    reason: str | None = Field(None, description="Why it is unresolved; null if it is not.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "AlignmentRecord":
        first = self.answer_ids[0] if self.answer_ids else None
        stated = (self.ok, self.first_id, self.several_pieces, self.reason is None)
        due = (self.status == "ok", first, len(self.answer_ids) > 1, self.ok)
        if stated != due or self.ok != bool(self.answer_ids):
            raise ValueError(f"(ok, first_id, several_pieces, no reason) is {stated}; status and answer_ids say {due}")
        return self


Judge = Literal["first_piece", "whole", "model_top1"]
"""What milestones of a prompt are about: its answer's first token, the whole answer, or what the model itself says."""


class MessageRecord(RecordModel):
    """One message of a chat."""

    role: str = Field(description="Who speaks, as the chat template calls it.")
    content: str = Field(description="What is said.")


class ChatRecord(RecordModel):
    """How a prompt was made from messages, by the tokenizer's own chat template."""

    messages: tuple[MessageRecord, ...] = Field(description="What was rendered.", min_length=1)
    continue_final_message: bool = Field(False, description="Whether the model continues the last message.")
    template_options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Further arguments of the template."
    )


class OutputRecord(RecordModel):
    """What the model itself says at the last position of a prompt."""

    source: Literal["decoded", "model"] | None = Field(
        None,
        description="`decoded`: from the last residual through final norm and head, which is the model's own output "
        "where the identity check holds; `model`: the logits of the model's own code, taken where that check fails.",
    )
    entropy_bits: float | None = Field(None, ge=0, description="Of its distribution, in bits.")
    top_ids: tuple[Count, ...] = Field((), description="Its most likely tokens, most likely first.")
    top_tokens: tuple[str, ...] = Field((), description="The same for people.")
    top_probs: tuple[Fraction, ...] = Field((), description="Their probabilities.")
    answer_id: Count | None = Field(None, description="The accepted answer that ranks best; null without one.")
    answer_rank: Positive | None = Field(None, description="Its rank, from 1.")
    p_answer: Fraction | None = Field(None, description="Its probability.")


class PromptRecord(RecordModel):
    """One prompt as the model saw it."""

    prompt_id: str = Field(description="`pos` for a fact, `ctl` for a control, as in the rows.")
    prompt_variant: str = Field(description="Which wording, as in the rows.")
    fact_key: str | None = Field(None, description="Which fact, as in the rows; null for a control.")
    fact_index: Count | None = Field(None, description="Place of the fact, as in the rows; null for a control.")
    text: str | None = Field(None, description="The prompt's text.")
    subject: str | None = Field(None, description="What it is about, as it stands in the text; null if unknown.")
    token_ids: tuple[Count, ...] | None = Field(
        None, description="What the model was given, BOS included.", min_length=1
    )
    tokens: tuple[str, ...] | None = Field(None, description="The same for people.")
    decoded_positions: tuple[Count, ...] = Field(description="Positions that have rows, counted from 0.")
    answers: tuple[AlignmentRecord, ...] = Field(description="Accepted answers, the gold one first.")
    contrast: tuple[AlignmentRecord, ...] = Field((), description="Of a control: answers it is compared with.")
    judge: Judge = Field("first_piece", description="What its milestones are about.")
    chat: ChatRecord | None = Field(None, description="How it was made from messages; null for plain text.")
    subject_end: Count | None = Field(None, description="Position of the subject's last token; null if unknown.")
    output: OutputRecord | None = Field(None, description="What the model itself says there.")

    @property
    def judged_answer(self) -> AlignmentRecord | None:
        """The accepted answer that ranks best at the output; the first one with ids where that is not known."""
        best = None if self.output is None else self.output.answer_id
        aligned = [answer for answer in self.answers if answer.ok]
        listed = iter(aligned or self.answers)
        return next((answer for answer in aligned if answer.first_id == best), next(listed, None))

    @property
    def key(self) -> PromptKey:
        """What tells it apart from the others."""
        return PromptKey(self.fact_index, self.prompt_id, self.prompt_variant)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "PromptRecord":
        if self.token_ids is None:
            return self
        if self.tokens is not None and len(self.tokens) != len(self.token_ids):
            raise ValueError(f"there are {len(self.token_ids)} token_ids, but {len(self.tokens)} tokens")
        if any(position >= len(self.token_ids) for position in self.decoded_positions):
            raise ValueError(f"decoded_positions reach beyond the prompt's {len(self.token_ids)} tokens")
        return self


class SuiteRecord(RecordModel):
    """What was asked."""

    name: str = Field(description="Name of the suite.")
    description: str = Field(description="What it asks, in words.")
    sha256: Sha256 | None = Field(None, description="Of its prompts alone: equal for equal questions.")
    prompts: tuple[PromptRecord, ...] = Field(description="In the order of the rows.")
    gold_alignment_rate: Fraction | None = Field(
        None, description="Share of prompts whose gold answer is resolved; null without prompts."
    )


class IdentityRecord(RecordModel):
    """Whether the last layer, decoded by us, is the model's own output."""

    ok: bool = Field(description="Whether it is, up to rounding; where not, no probability may be headlined.")
    kl_bits: float | None = Field(
        None, ge=0, description="Largest KL(decoded || model) of the prompts, in bits; null if nothing was finite."
    )
    max_abs_logit_difference: float | None = Field(
        None, ge=0, description="Largest difference of a logit, in logits; null if nothing was finite."
    )
    tolerance_bits: float = Field(ge=0, description="Largest divergence that counts as rounding, in bits.")
    n_prompts: Count = Field(description="How many prompts were compared.")
    explanation: str | None = Field(None, description="What accounts for a failure; null without one.")
    fitted_scale: float | None = Field(None, description="Logit scale that would mend it; null without one.")
    fitted_softcap: float | None = Field(None, description="Softcap that would mend it, in logits; null without one.")
    fitted_bias: bool = Field(description="Whether a bias by vocabulary id would mend it.")
    note: str = Field(description="The outcome in one sentence.")


class LayerFlag(RecordModel):
    """A layer at which something was not finite."""

    layer: Count = Field(description="As in the rows.")
    lens: str = Field(description="As in the rows.")
    any_nan: bool = Field(description="Whether residual, decoded row or logits have a NaN.")
    any_inf: bool = Field(description="Whether residual, decoded row or logits have an infinity.")


class NumericHealthRecord(RecordModel):
    """Whether all numbers were finite, and how near to the edge they came."""

    any_nan: bool = Field(description="Whether any layer of any lens had a NaN.")
    any_inf: bool = Field(description="Whether any layer of any lens had an infinity.")
    max_abs_logit_p99: float | None = Field(
        None, ge=0, description="99th percentile over layers of the largest logit by size, in logits."
    )
    min_prob_p01: Fraction | None = Field(
        None, description="1st percentile over layers of the least probability; 0 means underflow."
    )
    layers_flagged: tuple[LayerFlag, ...] = Field((), description="Where; those rows have no metrics.")


class ProvenanceRecord(RecordModel):
    """With what the numbers were computed. No host, user or folder is named."""

    python: str = Field(description="Version of Python.")
    platform: str = Field(description="Operating system and processor architecture alone.")
    torch: str = Field(description="Version of PyTorch.")
    transformers: str | None = Field(None, description="Version of Transformers.")
    safetensors: str | None = Field(None, description="Version of safetensors.")
    polars: str | None = Field(None, description="Version of Polars.")
    numpy: str | None = Field(None, description="Version of NumPy.")
    device: str = Field(description="Where it was computed: `cpu`, `cuda` or `mps`.")
    device_name: str | None = Field(None, description="The device's model name; null where it says none.")
    dtype_compute: str = Field(description="Number format of the blocks' arithmetic.")
    dtype_unembed: str | None = Field(None, description="Number format of the unembedding's arithmetic.")
    seed: int = Field(description="Seed of every generator.")
    threads: Positive | None = Field(None, description="Threads of the tensor library.")
    deterministic_algorithms: bool = Field(description="Whether only repeatable algorithms were allowed.")
    cudnn_benchmark: bool | None = Field(None, description="Whether cuDNN chose algorithms by their speed.")
    cuda_version: str | None = Field(None, description="Version of CUDA; null on a CPU.")
    cudnn_version: str | None = Field(None, description="Version of cuDNN; null on a CPU.")
    memory_budget_bytes: Count | None = Field(None, description="How much memory might be used, in bytes.")
    memory_planned_bytes: Count | None = Field(None, description="How much the plan meant to use, in bytes.")


class ProblemRecord(RecordModel):
    """Something that a file should have held and did not."""

    file: str = Field(description="Name of the file, without its folder.")
    row: Count | None = Field(None, description="Data row in it, counted from 0; null where no one row is meant.")
    message: str = Field(description="What was expected, what came, and what was done about it.", min_length=1)


class TimingsRecord(RecordModel):
    """Wall-clock seconds of the stages."""

    start_s: Seconds = Field(description="Opening model and tokenizer, in seconds.")
    forward_s: Seconds = Field(description="The pass through the model, in seconds.")
    sweep_s: Seconds = Field(description="The sweep over the unembedding, in seconds.")
    sweep_engine: Literal["compiled", "torch"] | None = Field(
        None,
        description="What took the sweep's statistics: compiled loops, or torch's operations one by one; the slower "
        "where there are several batches.",
    )
    product_library: Literal["mkl", "onednn"] | None = Field(
        None, description="Which of torch's CPU libraries made float32 products; null on other devices than a CPU."
    )
    sweep_gflops: float | None = Field(
        None,
        description="Billions of floating-point operations a second of the sweep's own products, over all the time in "
        "which rows were read out through the unembedding.",
    )
    peak_gflops: float | None = Field(
        None,
        description="The same of one large float32 product on this machine, measured once and kept in the user's cache "
        "folder; null on other devices than a CPU.",
    )
    calibration_s: Seconds | None = Field(None, description="Fitting a ridge lens for this probe, in seconds.")
    control_s: Seconds | None = Field(None, description="All about a twin with shuffled weights, in seconds.")
    patching_s: Seconds | None = Field(None, description="Runs with residuals replaced, in seconds.")
    sublayers_s: Seconds | None = Field(None, description="What attention, MLPs and heads add, in seconds.")
    total_s: Seconds = Field(description="From the start until everything was measured, in seconds.")
