"""Two models of one shape held against each other: a base, and what somebody made of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl
import torch

from layerscope.analysis.model_diff import (
    Compared,
    FactDiff,
    ModelDiff,
    ModuleDiff,
    NoiseFloor,
    OutputDiff,
    SuiteDiff,
    onset_for_good,
    output_diff,
)
from layerscope.analysis.verdict_json import plain
from layerscope.diffing.by_layer import LayerRows, by_layer
from layerscope.diffing.divergences import Heads
from layerscope.diffing.inputs import FROM, DiffInputs, diff_inputs, tokens_differ
from layerscope.diffing.options import DiffOptions
from layerscope.diffing.streams import Streams, both_streams
from layerscope.errors import ModelError
from layerscope.lens_record import utc_stamp
from layerscope.model.causal_lm import CausalLM
from layerscope.model.identity import TOLERANCE_BITS, TOLERANCE_BITS_BF16, check_identity
from layerscope.model.options import OpenOptions
from layerscope.model.placement import shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.model.residuals import Residuals
from layerscope.options import keywords
from layerscope.probing.encode import Encoded
from layerscope.probing.opening import opened
from layerscope.probing.outputs import with_outputs
from layerscope.progress import Observer, Silent
from layerscope.record.diff_rows import FILE, diff_frame
from layerscope.record.store import new_folder
from layerscope.suite import Suite

NOISE_SEQUENCES = 2
"""How many of the sequences the base reads once more, each alone."""


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
        return json.dumps(plain(self.summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write a folder, whole or not at all: `diff.json` and `diff.parquet`.

        Raises:
            RunError: the folder is already there, or cannot be written.
        """
        file = (
            BytesIO()
        )  # through memory: written by Polars itself, a full disk would come as an error without a number
        self.rows.write_parquet(file, compression="zstd")
        with new_folder(Path(path)) as folder:
            (folder / "diff.json").write_text(self.json, encoding="utf-8")
            (folder / FILE).write_bytes(file.getvalue())


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
    found = diff_inputs(base, variant, request, suite)
    for model in (base, variant):
        for note in model.notes:
            watcher.plan(f"{model.id}: {note}")
    n_texts = f"{len(found.sequences)} sequences of {found.sequences.shape[1]} tokens, {len(found.prompts)} prompts"
    watcher.plan(f"{base.id} and {variant.id} side by side: {n_texts}; every layer at {len(found.rows)} positions")
    ran_out = "The memory ran out while both models ran; give a smaller --memory, or less text."
    with shortage_explained(ran_out), reproducible(request.seed, base.placement.device), torch.inference_mode():
        streams = both_streams(base, variant, found, modules=request.modules, progress=watcher.blocks)
        _check_finite(streams, base, variant)
        _check_outputs(streams, base, variant)
        heads = Heads(base, variant)
        found = replace(found, prompts=_judged(found, streams, base))
        layers = by_layer(streams, heads, _asked(found), watcher.vocabulary)
        output = _output(streams, heads)
        noise = _noise(base, found, streams, heads) if request.noise_floor else None
    n_text = found.n_text_rows
    summary = ModelDiff(
        layerscope_version=version("layerscope"),
        created_utc=utc_stamp(datetime.now(UTC)),
        base=_compared(base),
        variant=_compared(variant),
        text=found.names,
        output=output,
        layers=tuple(rows.summary(layer, slice(0, n_text)) for layer, rows in enumerate(layers)),
        n_rows=n_text,
        modules=_modules(streams, n_text),
        suite=None if suite is None else _suite(suite, found, layers, base),
        noise=noise,
        notes=tuple(_notes(base, variant, found, heads)),
    )
    return DiffResult(summary, _table(found, layers))


def _both(request: DiffRequest) -> tuple[CausalLM, CausalLM]:
    """Both models, opened apart even where they are one."""
    opening = {option.name: getattr(request, option.name) for option in fields(OpenOptions)}
    of_variant = opening | {
        "revision": request.variant_revision or (request.revision if request.variant is None else None)
    }
    if request.variant is None and request.adapter is None and request.variant_revision is None:
        raise ModelError("Name the variant too, or an adapter or revision of the base that is held against it.")
    plain_options = OpenOptions(**(opening | {"adapter": None}))
    base = opened(request.base, plain_options)
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


def _judged(found: DiffInputs, streams: Streams, base: CausalLM) -> tuple[Encoded, ...]:
    """The prompts with what the base says after them, each answer in the form that is judged."""
    if not found.prompts:
        return ()
    last = streams.base[-1, found.n_text_rows :].to(base.placement.device)
    nothing = torch.empty(0, base.d_vocab, device=last.device)
    said = Residuals(last[:, None, None], (1,) * len(last), nothing)
    return tuple(with_outputs(found.prompts, said, base, final_is_model=True, form_of_model=True))


def _asked(found: DiffInputs) -> torch.Tensor:
    """The token of every row whose rank is told: of a sequence what follows, of a prompt its answer, or what the base
    says where none aligns."""
    following = [int(found.sequences[row.text, row.position + 1]) for row in found.rows[: found.n_text_rows]]
    return torch.tensor([*following, *(_answer_id(prompt) or _base_says(prompt) for prompt in found.prompts)])


def _answer_id(prompt: Encoded) -> int | None:
    return None if prompt.output is None else prompt.output.answer_id


def _base_says(prompt: Encoded) -> int:
    assert prompt.output is not None, "residuals that are not finite were refused"
    return prompt.output.top_ids[0]


def _output(streams: Streams, heads: Heads) -> OutputDiff:
    """What both say at every position of the sequences."""
    found: dict[str, list[torch.Tensor]] = {}
    for chunk in heads.chunks(len(streams.following)):
        base, variant = heads.base(streams.base_final[chunk]), heads.variant(streams.variant_final[chunk])
        following = streams.following[chunk]
        here = {
            "kl": base.kl_bits(variant),
            "js": base.js_bits(variant),
            "base": base.log_probs_of(following),
            "variant": variant.log_probs_of(following),
            "base_top1": base.top1,
            "variant_top1": variant.top1,
        }
        for name, values in here.items():
            found.setdefault(name, []).append(values)
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    numbers = {name: v.double().numpy() if v.is_floating_point() else v.numpy() for name, v in joined.items()}
    return output_diff(
        numbers["kl"],
        numbers["js"],
        (numbers["base"], numbers["variant"]),
        (numbers["base_top1"], numbers["variant_top1"]),
        streams.following.numpy(),
    )


def _noise(base: CausalLM, found: DiffInputs, streams: Streams, heads: Heads) -> NoiseFloor:
    """The base once more over some of the sequences, each alone."""
    n = len(streams.base_final) // len(found.sequences)
    kl, change = [], []
    for i, ids in enumerate(found.sequences[:NOISE_SEQUENCES].tolist()):
        alone = base.forward([ids], n_logits=1).of_prompt(0).cpu()
        final = alone[-1, FROM : FROM + n]
        for chunk in heads.chunks(n):
            beside = streams.base_final[i * n : (i + 1) * n][chunk]
            kl.append(heads.base(beside).kl_bits(heads.base(final[chunk])))
        rows = [(k, row.position) for k, row in enumerate(found.rows[: found.n_text_rows]) if row.text == i]
        if rows:
            places, positions = (list(values) for values in zip(*rows, strict=True))
            kept = streams.base[:, places]
            change.append((alone[:, positions] - kept).norm(dim=-1) / kept.norm(dim=-1))
    bits = torch.cat(kl)
    largest = float(torch.cat(change, 1).median(1).values.max()) if change else 0.0
    return NoiseFloor(len(bits), float(bits.mean()), float(bits.max()), largest)


def _modules(streams: Streams, n_text: int) -> tuple[ModuleDiff, ...]:
    found = (
        ModuleDiff(layer, path, float(np.median(errors[:n_text].double().numpy())))
        for (layer, path), errors in streams.modules.items()
    )
    return tuple(sorted(found, key=lambda module: (-module.injected, module.layer, module.module)))


def _suite(suite: Suite, found: DiffInputs, layers: Sequence[LayerRows], base: CausalLM) -> SuiteDiff:
    last, first = layers[-1], found.n_text_rows
    tops = {int(of[row]) for of in (last.base_top1_id, last.variant_top1_id) for row in range(first, len(found.rows))}
    answers = {answer for answer in map(_answer_id, found.prompts) if answer is not None}
    strings = base.tokens.display(sorted(tops | answers))
    prompts = []
    for i, prompt in enumerate(found.prompts):
        row, answer = first + i, _answer_id(prompt)
        known = answer is not None
        ranks = [[int(of[row]) for of in (layer.base_rank, layer.variant_rank)] for layer in layers]
        prompts.append(
            FactDiff(
                prompt=prompt.text,
                kl_bits=float(last.kl_bits[row]),
                base_top1=strings[int(last.base_top1_id[row])],
                variant_top1=strings[int(last.variant_top1_id[row])],
                answer=strings[answer] if answer is not None else None,
                base_rank=ranks[-1][0] if known else None,
                variant_rank=ranks[-1][1] if known else None,
                base_onset=onset_for_good([rank for rank, _ in ranks]) if known else None,
                variant_onset=onset_for_good([rank for _, rank in ranks]) if known else None,
            )
        )
    return SuiteDiff(suite.name, tuple(prompts))


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


def _table(found: DiffInputs, layers: Sequence[LayerRows]) -> pl.DataFrame:
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
    return diff_frame(columns)
