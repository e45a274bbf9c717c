"""What a run was made of, for its record: model, suite, lenses, health, machine."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Literal

import polars as pl
import torch

from layerscope.lens_record import utc_stamp
from layerscope.lenses import Lens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.identity import Identity
from layerscope.model.tokens import Alignment
from layerscope.probing.encode import Encoded
from layerscope.probing.whole_answers import unread
from layerscope.record import parts
from layerscope.record.measured import MeasuredRecord
from layerscope.record.protocol import Protocol
from layerscope.record.run_record import SCHEMA_VERSION, RunRecord
from layerscope.suite import Suite


@dataclass(frozen=True)
class Settings:
    """What was asked for, beside model and suite."""

    protocol: Protocol
    lenses: tuple[Lens, ...]
    positions: str
    top_k: int
    seed: int
    second_forward: str = "auto"


def run_metadata(
    model: CausalLM,
    suite: Suite,
    encoded: Sequence[Encoded],
    settings: Settings,
    *,
    identity: Identity,
    health: pl.DataFrame,
    measured: MeasuredRecord,
    planned_bytes: int,
    created: datetime,
    timings: parts.TimingsRecord,
) -> RunRecord:
    """Everything of a run that is not a row.

    Args:
        health: by row `prompt, lens, layer, is_next, any_nan, any_inf, max_abs_logit, min_prob`.
        planned_bytes: working memory that was planned.
        created: when the run began, in UTC.
    """
    unresolved = [e.prompt.text for e in encoded if not any(a.first_id is not None for a in e.answers)]
    numeric = _numeric_health(health, settings.protocol.headline)
    flags: dict[str, Literal[True] | str] = {}
    if unresolved:
        flags["gold_alignment_partial"] = f"{len(unresolved)} of {len(encoded)} prompts have no answer that aligns"
    if n_unread := unread(model, encoded, settings.protocol):
        flags["whole_answer_not_read"] = (
            f"{n_unread} of {len(encoded)} prompts have an answer that cannot be read to its end: it is too long for "
            "the model's context, or has tokens that the model does not know"
        )
    if not identity.ok:
        flags["identity_failed"] = identity.note
    if numeric.any_nan or numeric.any_inf:
        flags["numeric_health_caution"] = f"{len(numeric.layers_flagged)} (lens, layer) pairs are not finite"
    if model.tokens.bos_rule == "always" and model.tokens.bos_id is None:
        flags["bos_missing"] = model.tokens.bos_note
    without_norm = sum(path is None for path in model.architecture.input_norms)
    if without_norm and not model.family_verified:
        flags["next_norm_not_found"] = (
            f"no norm was found in front of {without_norm} of {model.n_layers} blocks; next_norm decodes like raw there"
        )
    if not model.family_verified:
        flags["family_not_verified"] = f"no test compares '{model.family}' with Transformers; the identity check judges"
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        source="layerscope",
        run_id=f"run-{created:%Y%m%d-%H%M%S}",
        created_utc=utc_stamp(created),
        layerscope_version=version("layerscope"),
        protocol=_protocol(settings),
        model=_model(model),
        suite=_suite(suite, encoded, model),
        lens_sources={lens.name: tuple(map(lens.source, range(model.n_layers + 1))) for lens in settings.lenses},
        identity=_identity(identity),
        numeric_health=numeric,
        flags=flags,
        measured=measured,
        provenance=_provenance(model, settings.seed, planned_bytes),
        positions=settings.positions,
        top_k=settings.top_k,
        timings=timings,
    )


def _protocol(settings: Settings) -> parts.ProtocolRecord:
    protocol = settings.protocol
    return parts.ProtocolRecord.of(
        protocol,
        lenses=tuple(lens.name for lens in settings.lenses),
        headline_lens=protocol.headline,
        lens_head_transform=protocol.lens_transform,
        thresholds=protocol.thresholds.as_dict(),
    )


def _model(model: CausalLM) -> parts.ModelRecord:
    transform = parts.HeadTransformRecord.of(model.architecture.transform, bias=model.unembedding.bias is not None)
    return parts.ModelRecord.of(
        model,
        revision=model.source.revision,
        commit=model.source.commit,
        n_parameters=model.architecture.n_parameters,
        tied_unembedding=model.architecture.tied,
        bytes_on_disk=model.checkpoint.bytes_on_disk,
        head_transform=transform,
        tokenizer_sha256=model.tokens.sha256,
        bos=parts.BosRecord(rule=model.tokens.bos_rule, id=model.tokens.bos_id, note=model.tokens.bos_note),
    )


def _suite(suite: Suite, encoded: Sequence[Encoded], model: CausalLM) -> parts.SuiteRecord:
    strings = model.tokens.display({i for e in encoded for i in e.token_ids})
    resolved = [any(a.first_id is not None for a in e.answers) for e in encoded]
    return parts.SuiteRecord.of(
        suite,
        prompts=tuple(
            parts.PromptRecord.of(
                e.prompt,
                token_ids=e.token_ids,
                tokens=tuple(strings[i] for i in e.token_ids),
                decoded_positions=e.positions,
                answers=tuple(map(_alignment, e.answers)),
                contrast=tuple(map(_alignment, e.contrast)),
            )
            for e in encoded
        ),
        gold_alignment_rate=sum(resolved) / len(resolved) if resolved else None,
    )


def _alignment(alignment: Alignment) -> parts.AlignmentRecord:
    return parts.AlignmentRecord.of(alignment, ok=alignment.status == "ok")


def _identity(identity: Identity) -> parts.IdentityRecord:
    fitted = identity.fitted
    return parts.IdentityRecord.of(
        identity,
        explanation=identity.note if fitted is not None or identity.fitted_bias else None,
        fitted_scale=None if fitted is None else fitted.scale,
        fitted_softcap=None if fitted is None else fitted.softcap,
    )


def _numeric_health(rows: pl.DataFrame, headline: str) -> parts.NumericHealthRecord:
    """Non-finite rows by lens and layer; extremes at the first prompt's last position under the headline lens."""
    flagged = (
        rows.group_by("lens", "layer", maintain_order=True)
        .agg(pl.col("any_nan").any(), pl.col("any_inf").any())
        .filter(pl.col("any_nan") | pl.col("any_inf"))
    )
    primary = rows.filter((pl.col("prompt") == 0) & pl.col("is_next") & (pl.col("lens") == headline))
    return parts.NumericHealthRecord(
        any_nan=bool(rows["any_nan"].any()),
        any_inf=bool(rows["any_inf"].any()),
        max_abs_logit_p99=primary["max_abs_logit"].quantile(0.99, interpolation="linear"),
        min_prob_p01=primary["min_prob"].quantile(0.01, interpolation="linear"),
        layers_flagged=tuple(parts.LayerFlag(**row) for row in flagged.iter_rows(named=True)),
    )


def _provenance(model: CausalLM, seed: int, planned_bytes: int) -> parts.ProvenanceRecord:
    device = model.placement.device
    return parts.ProvenanceRecord(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        torch=torch.__version__,
        **{name: version(name) for name in ("transformers", "safetensors", "polars", "numpy")},
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        dtype_compute=model.placement.dtype_name,
        dtype_unembed="float32",
        seed=seed,
        threads=torch.get_num_threads(),
        deterministic_algorithms=True,
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        cuda_version=torch.version.cuda if device.type == "cuda" else None,
        cudnn_version=str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        if device.type == "cuda"
        else None,
        memory_budget_bytes=model.placement.memory,
        memory_planned_bytes=planned_bytes,
    )
