"""What a fitted lens says of itself: `lens.json`, beside its weights."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

FORMAT = "layerscope-lens"
SCHEMA_VERSION = "1.0"

Kind: TypeAlias = Literal["tuned", "prism"]
FITTED_NAMES: tuple[Kind, ...] = ("tuned", "prism")
"""Fitted lenses by their names, which are their kinds."""
Placement: TypeAlias = Literal["raw", "normed"]
"""What a translator is applied to: the residual before the final norm, or the normed vector after it."""
SplitName: TypeAlias = Literal["fit", "select", "held_out"]
"""Tokens that are fitted to, tokens by which ridge and stopping are chosen, tokens that only measure."""


def utc_stamp(time: datetime) -> str:
    """A time in UTC as records write it: `2026-03-01T09:30:00Z`."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextSource(_Record):
    """One file or data set that text was read from."""

    name: str
    """File name without its folder, or the data set's id with its revision."""
    format: Literal["txt", "jsonl", "parquet", "datasets"]
    n_documents: int
    """Read from it before the budget was reached; repeated ones count, blank ones do not."""
    sha256: str
    """Over the documents that were read, in order."""


class SplitRecord(_Record):
    """Size of one part of a corpus, counted."""

    n_documents: int
    n_tokens: int
    """Of its documents, BOS not counted."""
    n_sequences: int


class CorpusRecord(_Record):
    """The text that a lens was fitted on; every number is counted while it is read."""

    sources: tuple[TextSource, ...]
    sha256: str
    """Over the packed ids of all parts."""
    n_documents: int
    n_repeated: int
    """Documents that had been read before word for word, and were left out."""
    seq_len: int
    """Positions of a sequence, BOS included."""
    bos: bool
    """Whether every sequence starts with BOS."""
    splits: dict[SplitName, SplitRecord]


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


class SkipLayers(_Record):
    """The last blocks replaced by the translator, on held-out text."""

    blocks: int
    """How many blocks are skipped: the residual after `n_layers - blocks` of them is decoded."""
    layer: int
    n_tokens: int
    perplexity_lens: float
    perplexity_model: float

    @property
    def relative_loss(self) -> float:
        """By what share the perplexity grows."""
        return (self.perplexity_lens - self.perplexity_model) / self.perplexity_model


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


class ImportedFrom(_Record):
    """Where a lens came from that was fitted elsewhere."""

    format: Literal["tuned-lens", "jacobian-lens"]
    name: str
    sha256: str
    """Of the file that held its weights."""
    stated: dict[str, str | int | float | bool | None]
    """What its own files say of it, unchecked."""


class Settings(_Record):
    """How a fit was asked for; two fits with equal settings, text and model give equal weights."""

    seed: int
    device: str
    dtype: str
    """In which the blocks computed."""
    threads: int
    torch: str
    layerscope: str


class LensRecord(_Record):
    """Everything that a sidecar says beside its weights."""

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
    imported: ImportedFrom | None
    notes: tuple[str, ...]
    """What a reader has to know, in sentences: a reduced k, a stopped fit, a text that is too short."""


@dataclass(frozen=True)
class LensFolder:
    """A fitted lens on disk of which only the record was read."""

    record: LensRecord
    folder: Path
