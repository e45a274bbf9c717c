"""What a fitted lens says of itself: `lens.json`, beside its weights."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from layerscope.lens_words import Placement

FORMAT = "layerscope-lens"
SCHEMA_VERSION = "1.3"
READABLE_VERSIONS = (SCHEMA_VERSION, "1.2", "1.1", "1.0")
"""All are read; 1.2 says neither whether its model was ablated or shuffled, nor what a Jacobian lens is worth with its
weights shuffled, nor how fits to halves of its prompts compare; 1.1 has no Jacobian lens, and 1.0 besides no ridge
lens, and no refinement on drawn ids."""

ANSWER_ROWS_FORMAT = "layerscope-answer-rows"
ANSWER_ROWS_VERSION = "1.0"

Kind: TypeAlias = Literal["tuned", "prism", "ridge", "jacobian"]
FITTED_NAMES: tuple[Kind, ...] = ("tuned", "prism", "ridge", "jacobian")
"""Fitted lenses by their names, which are their kinds."""
SplitName: TypeAlias = Literal["fit", "select", "held_out"]
"""Tokens that are fitted to, tokens by which ridge and stopping are chosen, tokens that only measure."""
Count: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[int, Field(ge=1)]
Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
R = TypeVar("R", bound="_Record")


def utc_stamp(time: datetime) -> str:
    """A time in UTC as records write it: `2026-03-01T09:30:00Z`."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


class _Record(BaseModel):
    """A part of `lens.json`: nothing unknown, nothing changed afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls: type[R], source: object, **differing: object) -> R:
        """A record of an object whose attributes have the fields' names; fields that differ from it are given."""
        same = {
            name: getattr(source, name) for name in cls.model_fields if name not in differing and hasattr(source, name)
        }
        return cls.model_validate(same | differing)


class RecordModel(_Record):
    """A part of `run.json` or of both: besides, nothing converted, and no NaN or infinity."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


# What a run's record repeats of a lens it was read through


class TextSource(RecordModel):
    """One file or data set that a lens was fitted on."""

    name: str = Field(description="File name without its folder, or the data set's id with its revision.")
    format: Literal["txt", "jsonl", "parquet", "datasets"] = Field(description="How it was read.")
    n_documents: Count = Field(
        description="Read from it, before any budget was reached; repeated ones count, blank ones do not."
    )
    sha256: Sha256 = Field(description="Over the documents that were read, in order.")


class SplitRecord(RecordModel):
    """Size of one part of that text, counted."""

    n_documents: Count = Field(description="Documents.")
    n_tokens: Count = Field(description="Tokens of them, BOS not counted.")
    n_sequences: Count = Field(description="Sequences they were packed to.")


class CorpusRecord(RecordModel):
    """The text that a lens was fitted on; every number is counted while it is read."""

    sources: tuple[TextSource, ...] = Field(description="Where it was read from.")
    sha256: Sha256 = Field(description="Over the packed ids of all parts.")
    n_documents: Count = Field(description="Documents that were read.")
    n_repeated: Count = Field(description="Documents left out, because they had been read before word for word.")
    seq_len: Positive = Field(description="Positions of a sequence, BOS included.")
    bos: bool = Field(description="Whether every sequence starts with BOS.")
    splits: dict[SplitName, SplitRecord] = Field(
        description="Text that was fitted to, by which something was chosen, and that only measured."
    )


class Settings(RecordModel):
    """How a fit was made; two fits with equal settings, text and model give equal weights."""

    seed: int = Field(description="Seed of every generator.")
    device: str = Field(description="Where it was computed.")
    dtype: str = Field(description="Number format of the blocks' arithmetic.")
    threads: Positive = Field(description="Threads of the tensor library.")
    torch: str = Field(description="Version of PyTorch.")
    layerscope: str = Field(description="Version of layerscope.")


class ImportedLens(RecordModel):
    """Where a lens came from that was fitted elsewhere."""

    format: Literal["tuned-lens", "jacobian-lens"] = Field(description="The format of its files.")
    name: str = Field(description="Name of its file or folder, without a path.")
    sha256: Sha256 = Field(description="Of the file that held its weights.")


class SkipLayers(_Record):
    """The last blocks replaced by the translator of the layer before them, on held-out text."""

    blocks: Positive = Field(description="How many blocks were skipped.")
    layer: Count = Field(description="The layer that was decoded: n_layers less the blocks.")
    n_tokens: Count = Field(description="How many tokens were predicted.")
    perplexity_lens: float = Field(description="Of the lens at that layer.")
    perplexity_model: float = Field(description="Of the model itself.")

    @property
    def relative_loss(self) -> float:
        """By what share the perplexity grows."""
        return (self.perplexity_lens - self.perplexity_model) / self.perplexity_model


# What `lens.json` alone says


class FittedModel(_Record):
    """The model that a lens belongs to."""

    id: str
    commit: str | None
    family: str
    n_layers: int
    d_model: int
    d_vocab: int
    fingerprint: str
    """sha256 over final norm and unembedding."""
    blocks_fingerprint: str | None = None
    """sha256 over samples of every block's weights; None where it was not taken."""
    tokenizer_sha256: str
    changed: str | None = None
    """What was done to the model after it was read, as what follows its name: `has parts put out of action (...)`, `has
    shuffled weights (...)`; None where nothing was."""


class LayerFit(_Record):
    """One translator: how it was found, and what it is worth on text that nothing was chosen by."""

    layer: int
    ridge: float | None
    """Chosen penalty, as a share of the median eigenvalue of the inputs' covariance."""
    start: Literal["identity", "bias", "closed_form"]
    """What refinement began from: the best of these on the `select` part."""
    steps: int
    best_step: int
    """The step whose parameters were kept; 0 is the start."""
    stopped: Literal["budget", "no_improvement", "diverged"]
    map_norm: float
    """Frobenius norm of the linear part, which is zero for a lens that never moved."""
    bias_norm: float
    temperature: float
    logit_bits: float
    """Mean KL(model || lens) in bits over held-out positions: of the logit lens,"""
    bias_bits: float
    """of a bias and a temperature alone,"""
    closed_form_bits: float
    """of the ridge regression,"""
    tuned_bits: float
    """and of the lens as it is kept."""


class TunedFit(_Record):
    """An affine map for each layer."""

    placement: Placement
    rank: int
    """Of the linear part; `d_model` where it is a full matrix, 0 where there is a bias alone."""
    temperatures: tuple[float, ...]
    """By layer from 0 to n_layers, 1 at the last."""
    first_position: int | None
    """Positions of a sequence before this one are not fitted to and not measured; None where nobody says."""
    steps: int | None = None
    """Of the refinement, at most,"""
    batch: int | None = None
    """with so many positions each,"""
    rate: float | None = None
    """the first of them this share of the way to go."""
    ids: int | None = None
    """Ids that a step draws; None where each visits the whole vocabulary."""
    n_moments: int | None
    """Positions that the closed form rests on."""
    n_refined: int | None
    """Positions that refinement draws from,"""
    n_select: int | None
    """by which it is stopped,"""
    n_held_out: int | None
    """and at which the result is measured."""
    layers: tuple[LayerFit, ...]
    """Empty for an imported lens."""
    skip_layers: tuple[SkipLayers, ...]


class RidgeLayer(_Record):
    """One layer's regression, and what it is worth on text that nothing was chosen by."""

    layer: int
    ridge: float
    """Chosen penalty, as a share of the median eigenvalue of the inputs' covariance."""
    map_norm: float
    """Frobenius norm of the linear part."""
    bias_norm: float
    logit_bits: float
    """Mean KL(model || lens) in bits over held-out positions: of the logit lens,"""
    ridge_bits: float
    """and of this one."""


class RidgeFit(_Record):
    """An affine map for each layer, each the ridge regression of the final residual on the layer's own."""

    placement: Placement
    first_position: int
    """Positions of a sequence before this one are not fitted to and not measured."""
    n_moments: int
    """Positions that the regression rests on,"""
    n_select: int
    """by which its penalty is chosen,"""
    n_held_out: int
    """and at which the result is measured."""
    layers: tuple[RidgeLayer, ...]


class PrismFit(_Record):
    """One standardisation and rotation for all layers."""

    method: Literal["procrustes_to_final", "by_rank"]
    pairing: Literal["cross_covariance", "by_rank"]
    k: int
    k_asked: int
    rank_effective: int
    """Numerical rank of what was fitted to; `k` is at most this."""
    stream: str
    """The lens whose rows are standardised and rotated, in the fit as in the decode: `logit`."""
    rows: tuple[int, ...]
    """Layers that vectors were taken from."""
    layers: tuple[str, ...]
    """The same as blocks: `embed`, then the index of the block that wrote."""
    vectors: int
    distinct_vectors: int
    reservoir: int
    """Vectors that the subspace was found on."""
    eps: float
    orthogonality_error: float
    """Frobenius norm of Q^T Q - I."""
    held_out_bits: tuple[float, ...]
    """Mean KL(model || prism) over held-out positions by layer, 0 to n_layers."""
    logit_bits: tuple[float, ...]
    """The same of the logit lens."""
    n_held_out: int


BIASED = 0.1
"""Relative bias above which a layer of a chain is only approximate, and nothing should be claimed by it."""


class JacobianLayer(_Record):
    """One layer's mean Jacobian, how far it can be trusted, and what it is worth as a read-out of the next token."""

    layer: int
    norm: float
    """Frobenius norm over the root of d_model: 1 for the identity."""
    beta: float | None
    """Relative bias of the chain: its distance from exact rows on the same prompts, over their norm; None where there
    is no chain or no probe row, and where the chain was corrected, which has no bias."""
    base_beta: float | None = None
    """The same of a chain before it was corrected."""
    corrected_error: float | None = None
    """Relative standard error of a corrected chain, of its prompts and of the rows drawn from them; None without."""
    sigma: float | None
    """Relative spread between prompts, by exact rows; None where they are too few to tell the mean from its spread."""
    standard_error: float | None
    """`sigma` over the root of the number of prompts."""
    half_difference: float | None = None
    """Of fits to two halves of the prompts, their distance over the norm of their mean: twice the standard error of
    what was fitted. None of one prompt, and of a lens fitted elsewhere;"""
    half_cosine: float | None = None
    """the cosine of their entries;"""
    half_agreement: float | None = None
    """and the share of held-out positions where both have the same token on top."""
    logit_bits: float | None
    """Mean KL(model || lens) in bits over held-out positions: of the logit lens,"""
    jacobian_bits: float | None
    """and of this one; None where nothing was measured."""
    logit_top1: float | None
    """Share of held-out positions with the model's own first token on top: of the logit lens,"""
    jacobian_top1: float | None
    """and of this one."""
    shuffled_bits: float | None = None
    """The divergence of a null: this lens with what its matrix adds to the identity written to other features."""

    @property
    def is_approximate(self) -> bool:
        """Whether exact rows show the chain, or its own noise a corrected one, to be further off than claims allow."""
        return max(self.beta or 0.0, self.corrected_error or 0.0) > BIASED

    @property
    def error(self) -> float | None:
        """Relative standard error of what was fitted; None where nothing tells it."""
        return self.standard_error if self.corrected_error is None else self.corrected_error

    def settled(self, at: float) -> bool:
        """Whether standard error and agreement of halves are within a tolerance."""
        error, same = self.error, self.half_agreement
        return error is not None and error <= at and same is not None and same >= 1 - at


class StopRule(_Record):
    """When a fit was to read no more prompts."""

    at: float
    """Once the standard error is at most this, and halves of the prompts agree at all but this share of positions,"""
    first_layer: int
    """at every layer from this one on."""


class ProbeRows(_Record):
    """Rows of the Jacobians that were computed exactly, and are kept beside the lens so that anyone can compute them
    again."""

    rows: tuple[int, ...]
    """Which output features."""
    n_prompts: int
    """Over the first so many of the prompts."""


class Correction(_Record):
    """Exact rows that took a chain's bias away."""

    rows: Positive
    """Of every prompt, drawn at random;"""
    n_prompts: Positive
    """of so many prompts."""


class JacobianFit(_Record):
    """The mean Jacobian of the last block's output by each layer's residual."""

    method: Literal["chain", "exact", "imported"]
    target_layer: int | None
    """Whose residual is differentiated: n_layers is the last block's output; None where a file does not say."""
    seq_len: int | None
    """Positions of a prompt, BOS included."""
    first_position: int | None
    """Positions before it are counted neither as sources nor as targets; nor is the last."""
    positions_rule: str | None
    """What is averaged and what is summed, in words."""
    n_prompts: int | None
    prompts_sha256: str | None
    """Over their token ids."""
    probe: ProbeRows | None
    correction: Correction | None = None
    """None where the chain was left as it is."""
    stop: StopRule | None = None
    """None where all prompts were to be read."""
    transformers: str | None
    """Version of Transformers."""
    n_held_out: int | None
    """Positions at which the result is measured."""
    layers: tuple[JacobianLayer, ...]
    """Those that have a matrix: 0 to n_layers - 1 of a fit, from 1 on as others publish them."""


class ImportedFrom(ImportedLens):
    """The same, with what its own files say of it, unchecked."""

    model_config = ConfigDict(allow_inf_nan=True)

    stated: dict[str, str | int | float | bool | None]


class LensRecord(_Record):
    """Everything that a lens folder says of its weights: `lens.json`."""

    format: Literal["layerscope-lens"]
    schema_version: str
    kind: Kind
    created_utc: str
    weights_sha256: str
    model: FittedModel
    settings: Settings | None
    corpus: CorpusRecord | None
    tuned: TunedFit | None
    prism: PrismFit | None
    ridge: RidgeFit | None = None
    jacobian: JacobianFit | None = None
    imported: ImportedFrom | None
    notes: tuple[str, ...]
    """What a reader has to know, in sentences: a reduced k, a stopped fit, a text that is too short."""

    @classmethod
    def new(cls, kind: Kind, model: FittedModel, **parts: object) -> "LensRecord":
        """The record of a lens made now, whose weights are not written yet; parts that are not given are None."""
        known = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "kind": kind, "model": model, "weights_sha256": ""}
        absent = dict.fromkeys(("settings", "corpus", "tuned", "prism", "ridge", "jacobian", "imported"))
        return cls.model_validate(absent | known | {"created_utc": utc_stamp(datetime.now(UTC))} | parts)


class AnswerToken(_Record):
    """One token that a suite asks about."""

    token_id: Count
    token: str
    """As the tokenizer writes it."""
    answers: tuple[str, ...]
    """The suite's answers that begin with it, in its form that is judged; several cannot be told apart."""
    n_facts: Positive
    """Facts whose answer begins with it."""
    constant: float
    """What biases of the final norm and the head add to its logit, less the mean over all answers' tokens; nats. No
    part of tracked logits, for the norm's scale in front of them is not known."""


class AnswerLayer(_Record):
    """How much prompts differ at one layer; by answer's token."""

    layer: Count
    sigma: tuple[float | None, ...]
    """Relative spread between prompts; None where they are too few to tell the mean from its spread."""
    standard_error: tuple[float | None, ...]
    """`sigma` over the root of the number of prompts."""


class AnswerRowsRecord(_Record):
    """Everything that a folder of answer rows says of its vectors: `answers.json`."""

    format: Literal["layerscope-answer-rows"]
    schema_version: str
    created_utc: str
    weights_sha256: str
    model: FittedModel
    settings: Settings
    corpus: CorpusRecord
    suite: str
    """Its name,"""
    suite_sha256: Sha256
    """and hash of what it asks."""
    against: Literal["mean_of_answers"]
    """From what each answer is told: the mean over the tokens of all of them."""
    target_layer: Positive
    """Whose residual is differentiated: n_layers is the last block's output."""
    seq_len: Positive
    """Positions of a prompt, BOS included."""
    first_position: Count
    """Positions before it are counted neither as sources nor as targets; nor is the last."""
    positions_rule: str
    """What is averaged and what is summed, in words."""
    n_prompts: Positive
    prompts_sha256: Sha256
    """Over their token ids."""
    stop_at: float | None
    """Standard error at which no more prompts were to be read; None where all were;"""
    stop_from: int | None
    """from this layer on."""
    transformers: str
    """Version of Transformers."""
    answers: tuple[AnswerToken, ...]
    """In the order of the vectors."""
    layers: tuple[AnswerLayer, ...]
    """0 to n_layers - 1."""
    notes: tuple[str, ...]
    """What a reader has to know, in sentences."""


@dataclass(frozen=True)
class LensFolder:
    """A fitted lens on disk of which only the record was read."""

    record: LensRecord
    folder: Path
