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
from layerscope.model.answer_forms import Alignment
from layerscope.model.causal_lm import CausalLM
from layerscope.model.identity import Identity
from layerscope.model.tokens import Tokens
from layerscope.probing.encode import Encoded
from layerscope.probing.whole_answers import unread
from layerscope.record import parts
from layerscope.record.measured import MeasuredRecord
from layerscope.record.protocol import Protocol
from layerscope.record.run_record import SCHEMA_VERSION, RunRecord
from layerscope.suite import Suite

FORM_FACTOR = 10
"""Ranks of an answer's two forms that differ by more than this factor are worth a word."""
_SHOWN = 40
"""Characters of a prompt's end that a flag shows."""


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
    numeric = _numeric_health(health, settings.protocol.headline)
    flags = _reading_flags(model.tokens, encoded, settings.protocol)
    if n_unread := unread(model, encoded, settings.protocol):
        flags["whole_answer_not_read"] = (
            f"{n_unread} of {len(encoded)} prompts have an answer that was not read to its end: it is too long for the "
            "model's context, has tokens that the model does not know, or goes on the prompt's last word"
        )
    ablation = _ablation(model)
    if ablation is not None:
        flags["model_ablated"] = f"{ablation.words}; every number is of the model without it, not of {ablation.base_id}"
    if not identity.ok:
        flags["identity_failed"] = identity.note
    if numeric.any_nan or numeric.any_inf:
        flags["numeric_health_caution"] = f"{len(numeric.layers_flagged)} (lens, layer) pairs are not finite"
    without_norm = sum(path is None for path in model.architecture.input_norms)
    if without_norm and not model.family_verified:
        flags["next_norm_not_found"] = (
            f"no norm that can be read was found in front of {without_norm} of {model.n_layers} blocks; next_norm "
            "decodes like raw there"
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
        identity=_identity(identity, ablated=ablation is not None),
        numeric_health=numeric,
        flags=flags,
        measured=measured,
        provenance=_provenance(model, settings.seed, planned_bytes),
        positions=settings.positions,
        top_k=settings.top_k,
        timings=timings,
    )


def bos_against_family(tokens: Tokens, encoded: Sequence[Encoded]) -> str | None:
    """What is said where a tokenizer begins prompts otherwise than the table of families; None where it does not.

    Chats begin as their template has them.
    """
    if not tokens.begins.against_family or all(e.chat is not None for e in encoded):
        return None
    if tokens.begins.ids:
        return (
            "BOS in front of prompts, as the model's own tokenizer has it; models of its architecture as a rule have "
            "none (--bos no overrules it)"
        )
    return (
        "no BOS in front of prompts, as the model's own tokenizer has it; models of its architecture as a rule have "
        "one (--bos yes overrules it)"
    )


def _reading_flags(tokens: Tokens, encoded: Sequence[Encoded], protocol: Protocol) -> dict[str, Literal[True] | str]:
    """What is to be said of how prompts and answers were put into tokens."""
    asked = [e for e in encoded if e.prompt.answers]
    n_unresolved = sum(not e.has_aligned_answer for e in asked)
    flags: dict[str, Literal[True] | str] = {}
    if n_unresolved:
        flags["gold_alignment_partial"] = f"{n_unresolved} of {len(asked)} prompts have no answer that aligns"
    if tokens.begins.rule == "always" and tokens.bos_id is None:
        flags["bos_missing"] = tokens.begins.note
    if against := bos_against_family(tokens, encoded):
        flags["bos_against_family"] = against
    n_with_bos = sum(e.chat is None and tokens.n_special(tokens.context_ids(e.text)) > 0 for e in encoded)
    if n_with_bos:
        flags["bos_in_text"] = (
            f"{n_with_bos} of {len(encoded)} prompts begin with BOS as written, and no other was put in front"
        )
    if protocol.form_of_model and (forms := _forms_that_matter(encoded)):
        flags["answer_form_matters"] = forms
    return flags


def _forms_that_matter(encoded: Sequence[Encoded]) -> str | None:
    """What is said of answers whose two forms lie far apart, where another rule would have judged the other one.

    That a model prefers the form after a space by far is so of nearly every plain sentence, and no caution.
    """
    telling = [(e, answer) for e in encoded for answer in e.answers[:1] if _surprises(answer)]
    if not telling:
        return None
    prompt, answer = telling[0]
    judged, other = answer.judged_form, answer.other_form
    if judged is None or other is None:
        return None
    end = prompt.text if len(prompt.text) <= _SHOWN else f"...{prompt.text[-_SHOWN:]}"
    words = (
        f"after {end!r}, {answer.string!r} is judged {parts.FORM_IN_WORDS[judged.variant]} (rank {judged.rank}); "
        f"{parts.FORM_IN_WORDS[other.variant]} it has rank {other.rank}"
    )
    n_others = len({id(e) for e, _ in telling}) - 1
    return words if not n_others else f"{words}; the like holds of {n_others} more prompt{'s' if n_others > 1 else ''}"


def _surprises(answer: Alignment) -> bool:
    judged, other = answer.judged_form, answer.other_form
    if judged is None or other is None or judged.rank is None or other.rank is None:
        return False
    apart = max(judged.rank, other.rank) > FORM_FACTOR * min(judged.rank, other.rank)
    return apart and (judged.variant == "no_space" or other.rank < judged.rank)


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
        notes=model.notes,
        head_transform=transform,
        tokenizer_sha256=model.tokens.sha256,
        bos=parts.BosRecord.of(model.tokens.begins, id=model.tokens.bos_id),
        ablation=_ablation(model),
    )


def _ablation(model: CausalLM) -> parts.AblationRecord | None:
    ablation = model.ablation
    if ablation is None:
        return None
    return parts.AblationRecord(
        base_id=model.id.removesuffix(f"-{ablation.name}"),
        parts=tuple(parts.AblatedPartRecord.of(part) for part in ablation.parts),
        by=ablation.by,
    )


def _suite(suite: Suite, encoded: Sequence[Encoded], model: CausalLM) -> parts.SuiteRecord:
    strings = model.tokens.display({i for e in encoded for i in e.token_ids})
    resolved = [e.has_aligned_answer for e in encoded if e.prompt.answers]
    return parts.SuiteRecord.of(
        suite,
        prompts=tuple(
            parts.PromptRecord.of(
                e.prompt,
                text=e.text,
                token_ids=e.token_ids,
                tokens=tuple(strings[i] for i in e.token_ids),
                decoded_positions=e.positions,
                answers=tuple(map(_alignment, e.answers)),
                contrast=tuple(map(_alignment, e.contrast)),
                judge=e.judge,
                chat=e.chat,
                subject_end=e.subject_end,
                output=e.output,
            )
            for e in encoded
        ),
        gold_alignment_rate=sum(resolved) / len(resolved) if resolved else None,
    )


def _alignment(alignment: Alignment) -> parts.AlignmentRecord:
    forms = tuple(parts.AnswerFormRecord.of(form) for form in alignment.forms)
    return parts.AlignmentRecord.of(alignment, ok=alignment.status == "ok", forms=forms)


def _identity(identity: Identity, *, ablated: bool) -> parts.IdentityRecord:
    fitted = identity.fitted
    note = f"{identity.note} That is the ablated model, whose own output it was compared with." if ablated else None
    return parts.IdentityRecord.of(
        identity,
        explanation=identity.note if fitted is not None or identity.fitted_bias else None,
        fitted_scale=None if fitted is None else fitted.scale,
        fitted_softcap=None if fitted is None else fitted.softcap,
        **({} if note is None else {"note": note}),
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
