"""`run.json`: everything of a run that is not a row; `run.schema.json` beside this module says the same for others."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from layerscope.lens_record import Positive, RecordModel
from layerscope.record.measured import MeasuredRecord, TunedVariantRecord
from layerscope.record.parts import (
    IdentityRecord,
    ModelRecord,
    NumericHealthRecord,
    ProblemRecord,
    PromptRecord,
    ProtocolRecord,
    ProvenanceRecord,
    SuiteRecord,
    TimingsRecord,
    Utc,
)
from layerscope.record.prompt_key import PromptKey

SchemaVersion: TypeAlias = Literal["2.6"]
SCHEMA_VERSION: SchemaVersion = "2.6"
"""Of `run.json` and `rows.parquet` together: the first number changes when an older reader would misread a folder."""
READABLE_VERSIONS = (SCHEMA_VERSION, "2.5", "2.4", "2.3", "2.2", "2.1", "2.0")
"""All are read. 2.5 has no writes put into other runs; 2.4 no shares of attention and MLPs and no Jacobian lens either;
2.3 no patched runs. Up to 2.2 a record says less of answers and of how prompts begin, and a table lacks six columns;
2.1 has two keys of `measured` by other names; 2.0 has no fitted lenses either."""


def _raised(version: object) -> object:
    """The version of now for an older one that can be read."""
    return SCHEMA_VERSION if version in READABLE_VERSIONS else version


class RunRecord(RecordModel):
    """Everything of a run that is not a row: `run.json`."""

    model_config = ConfigDict(json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"})

    schema_version: Annotated[SchemaVersion, BeforeValidator(_raised)] = Field(
        description="Version of this format; it holds for the rows too."
    )
    run_id: str = Field(description="Names the run wherever it is cited.", min_length=1)
    source: Literal["layerscope", "published"] = Field(
        description="Whether layerscope measured it, or it was read from files in the published format."
    )
    created_utc: Utc | None = Field(None, description="When the run began: ISO 8601, in UTC.")
    layerscope_version: str | None = Field(None, description="The layerscope that measured.")
    protocol: ProtocolRecord = Field(description="The definitions in force.")
    model: ModelRecord = Field(description="The model, its checkpoint and its tokenizer.")
    suite: SuiteRecord = Field(description="What was asked, in the model's own tokens.")
    lens_sources: dict[str, tuple[str | None, ...]] = Field(
        description="For each lens, the norm or map it applied at layers 0 to n_layers; null where it was not recorded."
    )
    identity: IdentityRecord | None = Field(None, description="Whether the last layer is the model itself.")
    numeric_health: NumericHealthRecord | None = Field(None, description="Whether all numbers were finite.")
    flags: dict[str, Literal[True] | str] = Field(
        description="Cautions by name: true, or the reason in words. A caution that does not hold is absent."
    )
    measured: MeasuredRecord = Field(description="What was measured beside the rows and cannot be had from them.")
    provenance: ProvenanceRecord | None = Field(None, description="With what the numbers were computed.")
    positions: str | None = Field(None, description="Which positions were asked to be decoded.")
    top_k: Positive | None = Field(None, description="Most likely tokens listed in each row.")
    timings: TimingsRecord | None = Field(None, description="How long the stages took.")
    problems: tuple[ProblemRecord, ...] = Field((), description="What was missing or damaged when files were read.")

    def prompt(self, key: PromptKey | None) -> PromptRecord | None:
        """A prompt as the model saw it; None where it is not recorded."""
        if key is None:
            return None
        if self.prompts_by_key[0] is not self.suite.prompts:  # a copy with another suite has what was kept
            del self.__dict__["prompts_by_key"]
        return self.prompts_by_key[1].get(key)

    @cached_property
    def prompts_by_key(self) -> tuple[tuple[PromptRecord, ...], dict[PromptKey, PromptRecord]]:
        """The prompts as they stand in the suite, and by key."""
        return self.suite.prompts, {prompt.key: prompt for prompt in reversed(self.suite.prompts)}

    @property
    def probabilities_stand(self) -> bool:
        """Whether nothing speaks against the decoded distributions being the model's own at the last layer."""
        return self.identity is None or self.identity.ok

    @property
    def ranks_stand(self) -> bool:
        """A missing scale or softcap changes no order, anything else may; with nothing finite, nothing was compared."""
        identity = self.identity
        if identity is None:
            return True
        explained = identity.fitted_scale is not None or identity.fitted_softcap is not None
        return identity.ok or explained or identity.kl_bits is None

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
        for name, by_layer in self._by_layer_of_the_tuned_lens():
            if len(by_layer) != n_rows:
                raise ValueError(f"tuned_variants.{name} has {len(by_layer)} layers, but the model has {n_rows}")
        return self

    def _by_layer_of_the_tuned_lens(self) -> Iterator[tuple[str, Sequence[object]]]:
        variants = self.measured.tuned_variants
        if variants is None:
            return
        if variants.temperatures:
            yield "temperatures", variants.temperatures
        for name in ("rotation_only", "temperature_only", "bias_only"):
            part: TunedVariantRecord | None = getattr(variants, name)
            if part is not None:
                yield f"{name}.kl_to_final_bits", part.kl_to_final_bits
                yield f"{name}.answer_rank", part.answer_rank


def schema_text() -> str:
    """What `run.schema.json` should hold."""
    return json.dumps(RunRecord.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
