"""Two models of one shape held against each other: a base, and what somebody made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import torch

from layerscope.analysis.model_diff import Compared, ModelDiff, ModuleDiff
from layerscope.analysis.verdict_json import json_text
from layerscope.diffing.at_output import Noise, OutputRows, noise_of, output_rows
from layerscope.diffing.by_layer import LayerRows, by_layer
from layerscope.diffing.divergences import Heads
from layerscope.diffing.facts import asked_ids, judged_prompts, suite_diff
from layerscope.diffing.inputs import DiffInputs, diff_inputs, tokens_differ
from layerscope.diffing.options import DiffOptions
from layerscope.diffing.streams import Part, Streams, both_streams, parts_of
from layerscope.errors import ModelError
from layerscope.lens_record import utc_stamp
from layerscope.model.causal_lm import CausalLM
from layerscope.model.identity import TOLERANCE_BITS, TOLERANCE_BITS_BF16, check_identity
from layerscope.model.options import OpenOptions
from layerscope.model.placement import place, shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.model.two_models import check_same_shape
from layerscope.options import keywords
from layerscope.probing.encode import Encoded
from layerscope.probing.opening import opened
from layerscope.progress import Observer, Silent
from layerscope.record.diff_rows import FILE, diff_frame
from layerscope.record.rows import table_bytes
from layerscope.record.store import new_folder
from layerscope.report.sentences.lines import plural


@dataclass(frozen=True, kw_only=True)
class DiffRequest(DiffOptions):
    """The two models that are held against each other, and how."""

    base: str | Path | CausalLM = field(kw_only=False)
    """A folder with config.json, tokenizer and *.safetensors, a GGUF file, a Hub id, or an open model."""
    variant: str | Path | CausalLM | None = field(default=None, kw_only=False)
    """Another of the same shape, or the folder of an adapter; None: the base itself, at another revision or with an
    adapter."""
    observer: Observer | None = None
    """Is told the plan and the progress."""


@dataclass(frozen=True)
class DiffResult:
    """A comparison with what it rests on."""

    summary: ModelDiff
    rows: pl.DataFrame
    """The columns of `layerscope.record.diff_rows.DIFF_COLUMNS`."""

    @property
    def json(self) -> str:
        """The summary as JSON."""
        return json_text(self.summary)

    def save(self, path: str | Path) -> None:
        """Write a folder, whole or not at all: `diff.json` and `diff.parquet`.

        Raises:
            RunError: the folder is already there, or cannot be written.
        """
        with new_folder(Path(path)) as folder:
            (folder / "diff.json").write_text(self.json, encoding="utf-8")
            (folder / FILE).write_bytes(table_bytes(self.rows))


@keywords(DiffRequest)
def diff(request: DiffRequest) -> DiffResult:
    """Hold a variant of a model against its base, at the output and block by block.

    Raises:
        LayerscopeError: whatever cannot be done, each by its own class (see `layerscope.errors`).
        ModelError: the two are not of one shape, or no variant is named.
    """
    suite = request.read_suite()
    base, variant = _both(request)
    watcher = request.observer or Silent()
    check_same_shape(base, variant, (base.id, variant.id))
    found = diff_inputs(base, variant, request, suite)
    for model in (base, variant):
        for note in model.notes:
            watcher.plan(f"{model.id}: {note}")
    parts = parts_of(base, variant, found)
    watcher.plan(_plan(base, variant, found, parts))
    ran_out = "The memory ran out while both models ran; give a smaller --memory, or less text."
    heads, n_blocks = Heads(base, variant), base.n_layers
    measured = []
    with shortage_explained(ran_out), reproducible(request.seed, base.placement.device), torch.inference_mode():
        for done, part in enumerate(parts):
            read = both_streams(
                base,
                variant,
                part,
                modules=request.modules,
                progress=lambda i, _, k=done: watcher.blocks(k * n_blocks + i, len(parts) * n_blocks),  # type: ignore[misc]
            )
            measured.append(_measured(base, variant, read, heads, request, watcher.vocabulary))
    layers = _layers(measured)
    n_text, n_ids = found.n_text_rows, heads.n_ids
    judged = [prompt for part in measured for prompt in part.prompts]
    noise = [one for part in measured for one in part.noise]
    summary = ModelDiff(
        layerscope_version=version("layerscope"),
        created_utc=utc_stamp(datetime.now(UTC)),
        base=_compared(base),
        variant=_compared(variant),
        text=found.names,
        output=OutputRows.joined([part.output for part in measured if part.output is not None]).summary(),
        layers=tuple(rows.summary(layer, slice(0, n_text)) for layer, rows in enumerate(layers)),
        n_rows=n_text,
        modules=_modules(measured),
        suite=None if suite is None else suite_diff(suite.name, judged, layers, found.prompt_rows, n_ids, base),
        noise=Noise.floor(noise) if noise else None,
        notes=tuple(_notes(base, variant, found, heads)),
    )
    return DiffResult(summary, _table(found, layers, base))


def _plan(base: CausalLM, variant: CausalLM, found: DiffInputs, parts: Sequence[Part]) -> str:
    n, width = found.sequences.shape
    passes = f"; the weights are read {len(parts)} times" if len(parts) > 1 else ""
    return (
        f"{base.id} and {variant.id} side by side: {n} {plural('sequence', n)} of {width} tokens, "
        f"{len(found.prompts)} {plural('prompt', len(found.prompts))}; every layer at {len(found.rows)} "
        f"positions{passes}"
    )


@dataclass(frozen=True)
class _Measured:
    """All numbers of a part of the texts."""

    layers: list[LayerRows] | None
    """None where no position of it is looked at."""
    output: OutputRows | None
    """None where it has no sequences."""
    prompts: list[Encoded]
    """With what the base says."""
    modules: dict[tuple[int, str], torch.Tensor]
    """By layer and path: what a linear layer changes, at every position of text that is looked at."""
    noise: list[Noise]


def _measured(
    base: CausalLM,
    variant: CausalLM,
    streams: Streams,
    heads: Heads,
    request: DiffRequest,
    progress: Callable[[int, int], None],
) -> _Measured:
    _check_finite(streams, base, variant)
    _check_outputs(streams, base, variant)
    part, prompts = streams.part, judged_prompts(streams, base)
    return _Measured(
        layers=by_layer(streams, heads, asked_ids(streams, prompts, heads), progress) if part.rows else None,
        output=output_rows(streams, heads) if part.sequences else None,
        prompts=prompts,
        modules={at: errors[: part.n_text_rows] for at, errors in streams.modules.items()},
        noise=noise_of(base, streams, heads) if request.noise_floor else [],
    )


def _layers(measured: Sequence[_Measured]) -> list[LayerRows]:
    """Every layer's measures at every position that is looked at."""
    parts = [part.layers for part in measured if part.layers is not None]
    return [LayerRows.joined(of_layer) for of_layer in zip(*parts, strict=True)]


def _both(request: DiffRequest) -> tuple[CausalLM, CausalLM]:
    """Both models, opened apart even where they are one."""
    opening = {option.name: getattr(request, option.name) for option in fields(OpenOptions)}
    of_variant = opening | {
        "revision": request.variant_revision or (request.revision if request.variant is None else None)
    }
    if request.variant is None and request.adapter is None and request.variant_revision is None:
        raise ModelError("Name the variant too, or an adapter or revision of the base that is held against it.")
    if not isinstance(request.base, CausalLM) and not isinstance(request.variant, CausalLM):
        # Both hold weights and activations at once, each its half of what there is.
        of_both = place(request.device, request.dtype, request.memory).memory
        opening, of_variant = opening | {"memory": of_both // 2}, of_variant | {"memory": of_both // 2}
    base = opened(request.base, OpenOptions(**(opening | {"adapter": None})))
    variant = request.base if request.variant is None else request.variant
    if isinstance(variant, CausalLM):
        if variant is request.base:
            raise ModelError("Base and variant are one open model; open it twice, for both run at once.")
        return base, opened(variant, OpenOptions(**(of_variant | {"revision": None})))
    return base, CausalLM.open(variant, **of_variant)


def _check_finite(streams: Streams, base: CausalLM, variant: CausalLM) -> None:
    for model, of in ((base, (streams.base, streams.base_final)), (variant, (streams.variant, streams.variant_final))):
        broken = next((layer for layer, rows in enumerate(of[0]) if not rows.isfinite().all()), None)
        if broken is not None or not of[1].isfinite().all():
            where = "the last layer" if broken is None else f"layer {broken}"
            raise ModelError(
                f"{model.id} has residuals that are not finite, at {where} first; nothing can be compared."
            )


def _check_outputs(streams: Streams, base: CausalLM, variant: CausalLM) -> None:
    """Whether the last layer, decoded, is what each model itself says."""
    assert streams.logits is not None and streams.first is not None, "the first text has been read"
    for model, row, logits in zip((base, variant), streams.first, streams.logits, strict=True):
        exact = model.placement.dtype == torch.float32
        identity = check_identity(
            model.unembedding,
            row[None].to(model.placement.device),
            logits[None],
            tolerance_bits=TOLERANCE_BITS if exact else TOLERANCE_BITS_BF16,
        )
        if not identity.ok:
            raise ModelError(
                f"The last layer of {model.id} does not decode to the model's own logits ({identity.note}), so nothing "
                "that is decoded here could be trusted."
            )


def _modules(measured: Sequence[_Measured]) -> tuple[ModuleDiff, ...]:
    errors: dict[tuple[int, str], list[torch.Tensor]] = {}
    for part in measured:
        for at, values in part.modules.items():
            errors.setdefault(at, []).append(values)
    found = [
        ModuleDiff(layer, path, float(np.median(torch.cat(values).double().numpy())))
        for (layer, path), values in errors.items()
    ]
    return tuple(sorted(found, key=lambda module: (-module.injected, module.layer, module.module)))


def _compared(model: CausalLM) -> Compared:
    adapter = None if model.adapter is None else model.adapter.name
    return Compared(model.id, model.stored_dtype, model.fingerprint, model.blocks_fingerprint, adapter)


def _notes(base: CausalLM, variant: CausalLM, found: DiffInputs, heads: Heads) -> list[str]:
    notes = [f"{model.id}: {note}" for model in (base, variant) for note in model.notes]
    differ = tokens_differ(found, variant)
    if differ:
        notes.append(
            f"The variant's own tokenizer gives other tokens for {differ} of {len(found.prompts)} prompts; both models "
            "read the base's."
        )
    if not heads.all_shared:
        notes.append(
            f"The base has {base.d_vocab} logits and the variant {variant.d_vocab}; both distributions are over the "
            f"first {heads.n_ids}."
        )
    if base.family != variant.family:
        notes.append(f"The base is of the family {base.family}, the variant of {variant.family}.")
    return notes


def _table(found: DiffInputs, layers: Sequence[LayerRows], base: CausalLM) -> pl.DataFrame:
    n, texts = len(found.rows), found.token_ids
    one: dict[str, list[int | bool]] = {
        "text": [row.text for row in found.rows],
        "is_prompt": [row.text >= len(found.sequences) for row in found.rows],
        "position": [row.position for row in found.rows],
        "token_id": [texts[row.text][row.position] for row in found.rows],
    }
    columns: dict[str, list[object]] = {name: [*values] * len(layers) for name, values in one.items()}
    columns["layer"] = [layer for layer in range(len(layers)) for _ in range(n)]
    for measure in fields(LayerRows):
        by_rows = [getattr(rows, measure.name) for rows in layers]
        columns[measure.name] = [v for values in by_rows for v in ([None] * n if values is None else values.tolist())]
    names = {"token": "token_id", "base_top1": "base_top1_id", "variant_top1": "variant_top1_id"}
    strings = base.tokens.display(sorted({int(str(i)) for ids in names.values() for i in columns[ids]}))
    columns |= {name: [strings[int(str(i))] for i in columns[ids]] for name, ids in names.items()}
    return diff_frame(columns)
