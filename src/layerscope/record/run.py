"""A run as a value: its rows and its record, saved as a folder and read back equal.

The classes below are `run.json`; `run.schema.json` beside this module is the same as a JSON Schema, for other readers.
"""

import io
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerscope.errors import RunError
from layerscope.record.rows import check_rows
from layerscope.record.store import new_folder

SCHEMA_VERSION = "1.0"
"""Of `run.json` and `rows.parquet` together: the first number changes when an older reader would misread a folder."""


def _utc(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError("the time should be in UTC, as in 2026-03-01T09:30:00Z")
    return text


Utc = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"), AfterValidator(_utc)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    """A part of `run.json`: nothing unknown, nothing converted, no NaN or infinity, nothing changed afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ProtocolRecord(_Part):
    """The bundle of definitions by which everything was measured."""

    name: str = Field(description="Name of the bundle: `standard` or `published`.")
    version: str = Field(description="Version of the bundle; two runs compare only under one version.")
    lenses: tuple[str, ...] = Field(description="Lenses that were decoded, as in the column `lens`.", min_length=1)
    headline_lens: str = Field(description="The lens that plain names such as L_semantic mean.")
    lens_head_transform: bool = Field(description="Whether lens logits pass the model's own logit scale and softcap.")
    thresholds: dict[str, float] = Field(description="Every threshold by name; in bits where the name says so.")


class HeadTransformRecord(_Part):
    """What the head does to its logits: softcap * tanh(scale * z / softcap)."""

    scale: float | None = Field(None, description="Factor on the logits; null where there is none.")
    softcap: float | None = Field(None, description="Bound on the logits' size, in logits; null where there is none.")
    bias: bool = Field(description="Whether the head adds a bias for each vocabulary id.")


class BosRecord(_Part):
    """How a prompt begins."""

    rule: Literal["always", "never", "tokenizer"] = Field(description="The family's rule; `tokenizer` leaves it open.")
    id: Count | None = Field(None, description="Token id put in front of every prompt; null where none is.")
    note: str = Field(description="The rule and its outcome in words.")


class ModelRecord(_Part):
    """Which model was read."""

    id: str = Field(
        pattern=r"^[^/\\]+(/[^/\\]+)?$", description="Hub id, or the name of the model's folder; never a path."
    )
    revision: str | None = Field(None, description="Branch, tag or commit that was asked for.")
    commit: str | None = Field(None, description="Commit that was read; null for a local folder.")
    family: str = Field(description="Architecture by its name in Transformers, such as `qwen3`.")
    family_verified: bool = Field(description="Whether tests hold this family equal to Transformers.")
    n_layers: Positive = Field(description="Number of blocks; rows have layers 0 to n_layers.")
    d_model: Positive = Field(description="Width of the residual stream.")
    n_heads: Positive | None = Field(None, description="Attention heads of a block; null where it has none.")
    d_vocab: Positive = Field(description="Number of logits, ids without a token included.")
    n_parameters: Positive = Field(description="Number of parameters, tied ones counted once.")
    tied_unembedding: bool = Field(description="Whether embedding and unembedding are one matrix.")
    stored_dtype: str = Field(description="Number format of the checkpoint's weights.")
    bytes_on_disk: Count = Field(description="Size of the checkpoint's weights, in bytes.")
    head_transform: HeadTransformRecord = Field(description="What the model does to its logits.")
    fingerprint: Sha256 = Field(description="SHA-256 of unembedding and final norm, which a fitted lens depends on.")
    tokenizer_sha256: Sha256 = Field(description="SHA-256 of the tokenizer.")
    bos: BosRecord = Field(description="What every prompt is made to begin with.")
    trust_remote_code: bool = Field(description="Whether code that came with the checkpoint was run.")


class AlignmentRecord(_Part):
    """Where an answer begins: its ids after the prompt, or why there are none."""

    string: str = Field(description="The answer as the suite has it.")
    status: Literal["ok", "unresolved"] = Field(description="Whether the answer's tokens extend the prompt's.")
    ok: bool = Field(description="The same as a truth value.")
    variant: Literal["with_space", "no_space", "unknown"] = Field(description="How the answer joins the prompt.")
    first_id: Count | None = Field(None, description="The token id that stands for the answer; null if unresolved.")
    answer_ids: tuple[Count, ...] = Field(description="All token ids of the answer.")
    pieces: tuple[str, ...] = Field(description="Token strings of at most the first four ids.")
    several_pieces: bool = Field(description="Whether only a first piece is judged, which other words may share.")
    reason: str | None = Field(None, description="Why it is unresolved; null if it is not.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "AlignmentRecord":
        first = self.answer_ids[0] if self.answer_ids else None
        said = (self.ok, self.first_id, self.several_pieces, self.reason is None)
        due = (self.status == "ok", first, len(self.answer_ids) > 1, self.ok)
        if said != due or self.ok != bool(self.answer_ids):
            raise ValueError(f"(ok, first_id, several_pieces, no reason) is {said}; status and answer_ids say {due}")
        return self


class PromptRecord(_Part):
    """One prompt as the model saw it."""

    prompt_id: str = Field(description="`pos` for a fact, `ctl` for a control, as in the rows.")
    prompt_variant: str = Field(description="Which wording, as in the rows.")
    fact_key: str | None = Field(None, description="Which fact, as in the rows; null for a control.")
    fact_index: Count | None = Field(None, description="Place of the fact, as in the rows; null for a control.")
    text: str = Field(description="The prompt's text.")
    token_ids: tuple[Count, ...] = Field(description="What the model was given, BOS included.", min_length=1)
    tokens: tuple[str, ...] = Field(description="The same for people.")
    decoded_positions: tuple[Count, ...] = Field(description="Positions that have rows, counted from 0.")
    answers: tuple[AlignmentRecord, ...] = Field(description="Accepted answers, the gold one first.")
    contrast: tuple[AlignmentRecord, ...] = Field((), description="Of a control: answers it is held against.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "PromptRecord":
        if len(self.tokens) != len(self.token_ids):
            raise ValueError(f"there are {len(self.token_ids)} token_ids, but {len(self.tokens)} tokens")
        if any(position >= len(self.token_ids) for position in self.decoded_positions):
            raise ValueError(f"decoded_positions reach beyond the prompt's {len(self.token_ids)} tokens")
        return self


class SuiteRecord(_Part):
    """What was asked."""

    name: str = Field(description="Name of the suite.")
    description: str = Field(description="What it asks, in words.")
    sha256: Sha256 = Field(description="Of its prompts alone: equal for equal questions.")
    prompts: tuple[PromptRecord, ...] = Field(description="In the order of the rows.")
    gold_alignment_rate: Fraction | None = Field(
        None, description="Share of prompts whose gold answer is resolved; null without prompts."
    )


class IdentityRecord(_Part):
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


class LayerFlag(_Part):
    """A layer at which something was not finite."""

    layer: Count = Field(description="As in the rows.")
    lens: str = Field(description="As in the rows.")
    any_nan: bool = Field(description="Whether residual, decoded row or logits have a NaN.")
    any_inf: bool = Field(description="Whether residual, decoded row or logits have an infinity.")


class NumericHealthRecord(_Part):
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


class ProvenanceRecord(_Part):
    """With what the numbers were computed. No host, user or folder is named."""

    python: str = Field(description="Version of Python.")
    platform: str = Field(description="Operating system and processor architecture alone.")
    torch: str = Field(description="Version of PyTorch.")
    transformers: str = Field(description="Version of Transformers.")
    safetensors: str = Field(description="Version of safetensors.")
    polars: str = Field(description="Version of Polars.")
    numpy: str = Field(description="Version of NumPy.")
    device: str = Field(description="Where it was computed: `cpu`, `cuda` or `mps`.")
    device_name: str | None = Field(None, description="The device's model name; null where it says none.")
    dtype_compute: str = Field(description="Number format of the blocks' arithmetic.")
    dtype_unembed: str = Field(description="Number format of the unembedding's arithmetic.")
    seed: int = Field(description="Seed of every generator.")
    threads: Positive = Field(description="Threads of the tensor library.")
    deterministic_algorithms: bool = Field(description="Whether only repeatable algorithms were allowed.")
    memory_budget_bytes: Count = Field(description="How much memory might be used, in bytes.")
    memory_planned_bytes: Count = Field(description="How much the plan meant to use, in bytes.")


class TimingsRecord(_Part):
    """Wall-clock seconds of the stages."""

    start_s: Seconds = Field(description="Opening model and tokenizer, in seconds.")
    forward_s: Seconds = Field(description="The pass through the model, in seconds.")
    sweep_s: Seconds = Field(description="The sweep over the unembedding, in seconds.")
    total_s: Seconds = Field(description="From the start until everything was measured, in seconds.")


class RunRecord(_Part):
    """Everything of a run that is not a row: `run.json`."""

    model_config = ConfigDict(json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"})

    schema_version: Literal["1.0"] = Field(description="Version of this format; it holds for the rows too.")
    run_id: str = Field(description="Names the run wherever it is cited.", min_length=1)
    created_utc: Utc = Field(description="When the run began: ISO 8601, in UTC.")
    layerscope_version: str = Field(description="The layerscope that measured.")
    protocol: ProtocolRecord = Field(description="The definitions in force.")
    model: ModelRecord = Field(description="The model, its checkpoint and its tokenizer.")
    suite: SuiteRecord = Field(description="What was asked, in the model's own tokens.")
    lens_sources: dict[str, tuple[str, ...]] = Field(
        description="For each lens, the norm or map it applied at layers 0 to n_layers."
    )
    identity: IdentityRecord = Field(description="Whether the last layer is the model itself.")
    numeric_health: NumericHealthRecord = Field(description="Whether all numbers were finite.")
    flags: dict[str, Literal[True] | str] = Field(
        description="Cautions by name: true, or the reason in words. A caution that does not hold is absent."
    )
    provenance: ProvenanceRecord = Field(description="With what the numbers were computed.")
    positions: str = Field(description="Which positions were asked to be decoded.")
    top_k: Positive = Field(description="Most likely tokens listed in each row.")
    timings: TimingsRecord = Field(description="How long the stages took.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "RunRecord":
        lenses, n_rows = self.protocol.lenses, self.model.n_layers + 1
        if self.protocol.headline_lens not in lenses:
            raise ValueError(f"the headline lens {self.protocol.headline_lens!r} is none of the lenses {lenses}")
        if set(self.lens_sources) != set(lenses):
            raise ValueError(f"lens_sources has {sorted(self.lens_sources)}, but the lenses are {sorted(lenses)}")
        for lens, sources in self.lens_sources.items():
            if len(sources) != n_rows:
                raise ValueError(f"lens_sources of {lens!r} has {len(sources)} layers, but the model has {n_rows}")
        return self


@dataclass(frozen=True, eq=False)
class Run:
    """What a run found, and how."""

    rows: pl.DataFrame
    """The columns of `layerscope.record.COLUMNS`; made by `rows_frame`."""
    record: RunRecord
    """Everything that is not a row."""

    def __post_init__(self) -> None:
        """Refuse a table that is not a run's.

        Raises:
            RunError: naming the column.
        """
        check_rows(self.rows)

    def __eq__(self, other: object) -> bool:
        """Equal rows in the same order, absent values being equal to each other, and equal records."""
        if not isinstance(other, Run):
            return NotImplemented
        return self.record == other.record and self.rows.equals(other.rows, null_equal=True)

    def save(self, path: str | Path) -> None:
        """Write the run's folder, whole or not at all.

        Raises:
            RunError: the folder is already there, the disk is full, or the place cannot be written to.
        """
        with new_folder(Path(path)) as folder:
            (folder / "run.json").write_bytes(self.record.model_dump_json(indent=2).encode() + b"\n")
            # Through memory: written by Polars itself, a full disk would come as an error without a number.
            parquet = io.BytesIO()
            self.rows.write_parquet(parquet, compression="zstd")
            (folder / "rows.parquet").write_bytes(parquet.getbuffer())

    @classmethod
    def read(cls, path: str | Path) -> "Run":
        """Read a run's folder, whatever else lies in it.

        Raises:
            RunError: naming file and field: the folder or a file is missing or damaged, another version of the format
                wrote it, or it does not hold what a run holds.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunError(f"{folder}: no such folder; give a run's folder, which holds run.json and rows.parquet.")
        record = _read_record(folder / "run.json")
        rows = _read_rows(folder / "rows.parquet")
        try:
            return cls(rows, record)
        except RunError as error:
            raise RunError(f"{folder / 'rows.parquet'}: {error}") from error


def default_folder_name(record: RunRecord) -> str:
    """`<model>-<suite>-<time>`, fit for any file system: `Qwen3-8B-capitals-20260301T093000Z`."""
    time = datetime.fromisoformat(record.created_utc).strftime("%Y%m%dT%H%M%SZ")
    model, suite = (_file_safe(name) for name in (record.model.id.rsplit("/", 1)[-1], record.suite.name))
    return f"{model}-{suite}-{time}"


def _file_safe(name: str) -> str:
    """Letters, digits, `.`, `_` and `-`, not hidden, and short enough for a folder's name in UTF-8."""
    safe = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    return safe.encode()[:100].decode(errors="ignore") or "_"


def _read_record(path: Path) -> RunRecord:
    """The model classes are the check: they refuse whatever `run.schema.json` refuses, and contradictions besides."""
    text = _bytes_of(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not JSON ({error}); the file is damaged, take it from a copy.") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}: expected a JSON object, found a {type(found).__name__}; this is not a run's record.")
    _check_version(path, found)
    try:
        return RunRecord.model_validate_json(text)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'the record'}: {e['msg']}" for e in error.errors()]
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise RunError(f"{path}: {'; '.join(wrong[:5])}{more}; mend these fields or measure again.") from error


def _check_version(path: Path, found: dict[str, object]) -> None:
    version, writer = found.get("schema_version"), found.get("layerscope_version")
    if not isinstance(version, str):
        raise RunError(f"{path}: field `schema_version` is missing or no text; this is not a run's record.")
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{path}: field `schema_version` is {version}, but this layerscope reads {SCHEMA_VERSION}; "
            f"layerscope {writer if isinstance(writer, str) else 'of another version'} wrote the folder and reads it."
        )


def _read_rows(path: Path) -> pl.DataFrame:
    parquet = _bytes_of(path)
    try:
        return pl.read_parquet(io.BytesIO(parquet))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise RunError(f"{path}: not a whole Parquet file ({error}); it is damaged, take it from a copy.") from error


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({error.strerror}); a run's folder holds run.json and rows.parquet."
        ) from error


def schema_text() -> str:
    """What `run.schema.json` should hold."""
    return json.dumps(RunRecord.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
