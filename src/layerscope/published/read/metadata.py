"""From the JSON of a published run to the parts of our record: model, suite, checks, machine, what was measured."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from layerscope.analysis.curve_shapes import stretches
from layerscope.errors import RunError
from layerscope.published import members
from layerscope.published.layout import HEADLINE, PUBLISHED_LENS_NAMES, stem_of
from layerscope.published.read.csv_table import PRIMARY
from layerscope.published.read.document import Block
from layerscope.published.read.merge import FromJson, Merged
from layerscope.record.measured import (
    CopyMaskRecord,
    FittedLensRecord,
    LastLayerRecord,
    MeasuredRecord,
    NormTemperatureRecord,
    PredictionRecord,
    SecondForwardRecord,
    TunedVariantsRecord,
    UnembedBiasRecord,
)
from layerscope.record.parts import (
    AlignmentRecord,
    LayerFlag,
    ModelRecord,
    NumericHealthRecord,
    PromptRecord,
    ProvenanceRecord,
    SuiteRecord,
)
from layerscope.record.prompt_key import PromptKey

CONTROL = PromptKey(None, "ctl", "orig")
_TOO_MANY_LAYERS = 10_000
_TEMPERATURES = (0.2, 5.0)
"""Bounds of the range in which norm temperatures were searched."""
_FILLER = " simply"
"""The last word of every published prompt but those without filler."""
_OURS = {published: ours for ours, published in PUBLISHED_LENS_NAMES.items()}


# Model


def model_record(document: Block, stem: str, layers_of_rows: int | None) -> ModelRecord:
    """Which model was read.

    Raises:
        RunError: d_model or d_vocab is not to be had: tables do not say them.
    """
    stats, name = document.block("model_stats"), document.block("diagnostics").text("model")
    n_layers, d_model, d_vocab = (stats.whole(key) for key in ("num_layers", "d_model", "d_vocab"))
    if n_layers is not None and not 0 < n_layers < _TOO_MANY_LAYERS:
        stats.wrong("num_layers", f"is {n_layers}, which no model has; left out")
        n_layers = None
    if n_layers is None and layers_of_rows is not None:
        n_layers = layers_of_rows
        stats.wrong("num_layers", f"is missing; {n_layers} was taken, the last layer to which rows reach without a gap")
    if n_layers is None or d_model is None or d_vocab is None:
        raise RunError(
            f"{document.file}: `model_stats` should give num_layers, d_model and d_vocab, but gives "
            f"{n_layers}, {d_model} and {d_vocab}; tables do not say them, so take the JSON from a whole copy."
        )
    sizes: dict[str, object] = {"n_layers": n_layers, "d_model": d_model, "d_vocab": d_vocab}
    sizes["n_heads"] = stats.whole("n_heads") or None
    model = stats.part(ModelRecord, {"id": _model_id(document, name, stem), **sizes})
    if model is None:
        raise RunError(f"{document.file}: {document.problems[-1].message}; take the JSON from a whole copy.")
    return model


def _model_id(document: Block, name: str | None, stem: str) -> str:
    if name is not None and re.fullmatch(r"[^/\\]+(/[^/\\]+)?", name):
        return name
    diagnostics = document.block("diagnostics")
    diagnostics.wrong("model", f"is {'missing' if name is None else 'no id'}; {stem!r} was taken from the file's name")
    return stem


def numeric_health(document: Block) -> NumericHealthRecord | None:
    """Whether all numbers of the primary prompt's norm sweep were finite."""
    health = document.block("diagnostics").block("numeric_health")
    if not health.members:
        return None
    flags = []
    for flagged in health.blocks("layers_flagged"):
        values = flagged.values(LayerFlag, members.LAYER_FLAG)
        lens = str(values["lens"] or "norm")
        flags.append(flagged.part(LayerFlag, {**values, "lens": _OURS.get(lens, lens)}))
    values = health.values(NumericHealthRecord, members.NUMERIC_HEALTH)
    return health.part(NumericHealthRecord, values | {"layers_flagged": tuple(f for f in flags if f is not None)})


def lens_source(document: Block, lens: str, n_layers: int) -> tuple[str | None, ...]:
    """What the lens applied at each layer; the JSON says it of the norm lens alone, and the raw one applies nothing."""
    if lens == "raw":
        return ("raw",) * (n_layers + 1)
    sources: list[str | None] = [None] * (n_layers + 1)
    if lens == HEADLINE:
        for layer, block in _norms(document, n_layers):
            sources[layer] = block.text("ln_source")
    return tuple(sources)


def _norms(document: Block, n_layers: int) -> Iterator[tuple[int, Block]]:
    """What is said of the norm at each layer."""
    for block in document.block("diagnostics").block("normalization_provenance").blocks("per_layer"):
        layer = block.whole("layer")
        if layer is not None and 0 <= layer <= n_layers:
            yield layer, block


def flags(document: Block) -> dict[str, Literal[True] | str]:
    """Cautions by name."""
    block = document.block("diagnostics").block("flags")
    cautions: dict[str, Literal[True] | str] = {}
    for name, value in block.members.items():
        if value is True or isinstance(value, str):
            cautions[name] = value
        elif value is not False and value is not None:
            block.wrong(name, f"should be true or a reason, but is {value!r}; left out")
    return cautions


def provenance(document: Block) -> ProvenanceRecord | None:
    """With what the numbers were computed; null before generation H, the first to give it."""
    env = document.block("provenance").block("env")
    if not env.members:
        return None
    cudnn = env.members.get("cudnn")
    table = [member for member in members.ENVIRONMENT if member.key != "cudnn"]  # a number or a text
    values = env.values(ProvenanceRecord, table)
    values |= {
        "platform": _platform(env.text("platform")),
        "dtype_compute": _dtype(env.text("dtype_compute")),
        "dtype_unembed": _dtype(document.block("diagnostics").text("unembed_dtype")),
        "cudnn_version": None if cudnn is None else str(cudnn),
    }
    return env.part(ProvenanceRecord, values)


def _platform(platform: str | None) -> str | None:
    """Operating system and processor architecture alone: the rest can name a host's kernel."""
    if platform is None:
        return None
    machine = re.search(r"x86_64|amd64|aarch64|arm64|i[3-6]86|ppc64le|s390x|riscv64", platform, re.IGNORECASE)
    return " ".join([re.split(r"[-\s]", platform, maxsplit=1)[0], *([machine[0]] if machine else [])])


def _dtype(dtype: str | None) -> str | None:
    return None if dtype is None else dtype.removeprefix("torch.")


# Prompts and answers


def alignments(document: Block) -> dict[PromptKey, AlignmentRecord]:
    """The gold answer of every prompt for which the JSON gives one."""
    by_prompt: dict[PromptKey, AlignmentRecord | None] = {}
    diagnostics, control = document.block("diagnostics"), document.block("control_prompt")
    primary = _alignment(document.block("gold_answer"), diagnostics)
    # Before generation I, one alignment stood for both wordings of the only fact.
    by_prompt |= {PRIMARY: primary, PromptKey(0, "pos", "no_filler"): primary}
    by_prompt[CONTROL] = _alignment(control.block("gold_answer"), control)
    for block in diagnostics.blocks("gold_alignment_prompts"):
        prompt_id, variant = block.text("prompt_id"), block.text("prompt_variant")
        if prompt_id is not None and variant is not None:
            index = block.whole("fact_index") if "fact_index" in block.members else 0
            prompt = PromptKey(index if prompt_id == "pos" else None, prompt_id, variant)
            by_prompt[prompt] = _alignment(block, block) or by_prompt.get(prompt)
    return {prompt: alignment for prompt, alignment in by_prompt.items() if alignment is not None}


def _alignment(gold: Block, outcome: Block) -> AlignmentRecord | None:
    """An answer's ids from `gold`; why there are none from `outcome`, whose `gold_alignment` is a text or an object."""
    string = gold.text("string")
    if string is None:
        return None
    status = outcome.members.get("gold_alignment")
    reason = status if isinstance(status, str) else None
    if isinstance(status, dict):
        reason = outcome.block("gold_alignment").text("reason") or outcome.block("gold_alignment").text("status")
    ids, pieces = (gold.items(key) or [] for key in ("answer_ids", "pieces"))
    if not ids:
        reason = gold.text("reason") or reason
    elif gold.whole("first_id") != ids[0]:
        gold.wrong("first_id", f"is {gold.whole('first_id')}, but answer_ids begin with {ids[0]}; these were taken")
    values: dict[str, object] = {
        "string": string,
        "status": "ok" if ids else "unresolved",
        "ok": bool(ids),
        "variant": gold.text("variant") or "unknown",
        "first_id": ids[0] if ids else None,
        "answer_ids": tuple(ids),
        "pieces": tuple(pieces[:4]),
        "several_pieces": len(ids) > 1,
        "reason": None if ids else reason or "the file gives no reason",
    }
    return gold.part(AlignmentRecord, values)


def suite_record(
    document: Block, merged: Merged, answers: Mapping[PromptKey, AlignmentRecord], fact_keys: Mapping[PromptKey, str]
) -> SuiteRecord:
    """The prompts, as far as rows and JSON give them."""
    prompts = tuple(_prompt(document, merged, prompt, answers, fact_keys) for prompt in merged.last)
    name = {1: "berlin", 5: "capitals"}.get(len(merged.facts), "unknown")
    if PRIMARY not in answers or answers[PRIMARY].string != "Berlin":
        name = "unknown"
    rate = document.block("diagnostics").number("gold_alignment_rate")
    if rate is not None and not 0 <= rate <= 1:
        document.block("diagnostics").wrong("gold_alignment_rate", f"should be a share, but is {rate}; left out")
        rate = None
    facts = f"{len(merged.facts)} fact{'' if len(merged.facts) == 1 else 's'}"
    description = f"Prompts of a published run about {facts}, in the order of its tables."
    return SuiteRecord(name=name, description=description, prompts=prompts, gold_alignment_rate=rate)


def _prompt(
    document: Block,
    merged: Merged,
    prompt: PromptKey,
    answers: Mapping[PromptKey, AlignmentRecord],
    fact_keys: Mapping[PromptKey, str],
) -> PromptRecord:
    tokens = sorted((position, token) for (key, position), token in merged.tokens.items() if key == prompt)
    whole = [position for position, _ in tokens] == list(range(len(tokens))) and len(tokens) == merged.last[prompt] + 1
    # A control is compared with the answer of the primary fact.
    contrast = (answers[PRIMARY],) if prompt.prompt_id == "ctl" and PRIMARY in answers else ()
    return PromptRecord(
        prompt_id=prompt.prompt_id,
        prompt_variant=prompt.prompt_variant,
        fact_key=fact_keys.get(prompt),
        fact_index=prompt.fact_index,
        text=_prompt_text(document, prompt, fact_keys),
        tokens=tuple(token for _, token in tokens) if whole else None,
        decoded_positions=merged.positions(prompt),
        answers=(answers[prompt],) if prompt in answers else (),
        contrast=contrast,
    )


def _prompt_text(document: Block, prompt: PromptKey, fact_keys: Mapping[PromptKey, str]) -> str | None:
    """The JSON has the primary prompt's and the control's; the others follow from how the prompts are made."""
    primary = document.block("prompt").text("context_prompt")
    if prompt == CONTROL:
        return document.block("control_prompt").text("context_prompt")
    if prompt.prompt_id != "pos" or prompt.prompt_variant not in ("orig", "no_filler") or primary is None:
        return None
    text = primary
    if prompt.fact_index != PRIMARY.fact_index:
        # Facts differ in the country alone, which is the first half of `Germany→Berlin`.
        old, new = (fact_keys.get(key, "").partition("→")[0] for key in (PRIMARY, prompt))
        if not old or not new or text.count(old) != 1:
            return None
        text = text.replace(old, new)
    if prompt.prompt_variant == "orig":
        return text
    return text.removesuffix(_FILLER) if text.endswith(_FILLER) else None


# What was measured beside the rows


def measured_record(
    document: Block, n_layers: int, lenses: tuple[FittedLensRecord, ...], variants: TunedVariantsRecord | None
) -> MeasuredRecord:
    """Every block that published files have; of the others, that they do not."""
    diagnostics = document.block("diagnostics")
    values: dict[str, object] = {
        "unembed_bias": diagnostics.block("unembed_bias").part_of(UnembedBiasRecord, members.UNEMBED_BIAS),
        "copy_mask": _copy_mask(diagnostics.block("copy_mask")),
        "norm_temperature": _norm_temperature(diagnostics, n_layers),
        "last_layer": diagnostics.block("last_layer_consistency").part_of(LastLayerRecord, members.LAST_LAYER),
        "position_readout": None,
        "second_forward": _second_forward(diagnostics.block("repeatability_forward")),
        "final_prediction": _prediction(document.block("final_prediction"))
        if document.has("final_prediction")
        else None,
        "temperature_exploration": _predictions(document, "temperature_exploration"),
        "test_prompts": _predictions(document, "test_prompts"),
        "fitted_lenses": lenses,
        "tuned_variants": variants,
    }
    absent = {name: "the published file does not hold it" for name, value in values.items() if not value}
    absent["position_readout"] = "published files hold summaries of it alone, not the numbers of every layer"
    architecture = document.block("model_stats").text("architecture")
    return MeasuredRecord.model_validate(
        values
        | {
            "stack": architecture if architecture in ("pre_norm", "post_norm") else None,
            "first_block_norm": diagnostics.text("first_block_ln1_type"),
            "final_norm": diagnostics.text("final_ln_type"),
            "absent": absent,
        }
    )


def _copy_mask(mask: Block) -> CopyMaskRecord | None:
    ids = mask.items("ignored_token_ids")
    if ids is None:
        return None
    if any(type(i) is not int for i in ids):
        mask.wrong("ignored_token_ids", "should hold whole numbers alone; left out")
        return None
    ranges = tuple((run[0], run[-1]) for run in stretches(i for i in ids if isinstance(i, int)))
    size = sum(last - first + 1 for first, last in ranges)
    if mask.whole("size") != size:
        mask.wrong("size", f"is {mask.whole('size')}, but there are {size} ids; these were counted")
    sample = tuple(mask.items("ignored_token_str_sample") or ())
    return mask.part(CopyMaskRecord, {"size": size, "id_ranges": ranges, "sample": sample})


def _norm_temperature(diagnostics: Block, n_layers: int) -> NormTemperatureRecord | None:
    taus = diagnostics.items("tau_norm_per_layer")
    if taus is None:
        return None
    if len(taus) != n_layers + 1:
        message = f"has {len(taus)} values, but the model {n_layers + 1} layers, the embedding included; left out"
        diagnostics.wrong("tau_norm_per_layer", message)
        return None
    values = tuple(float(tau) if type(tau) is int else tau for tau in taus)
    numbers = [tau for tau in values if isinstance(tau, float)]
    hits = sum(any(math.isclose(tau, bound, rel_tol=1e-6) for bound in _TEMPERATURES) for tau in numbers)
    return diagnostics.part(
        NormTemperatureRecord,
        {
            "lens": HEADLINE,
            "method": "grid",
            "calibration": "both wordings of the first fact and the control: prompts of the run itself",
            "tau_per_layer": values,
            "bound_hits": hits,
        },
    )


_MODES = get_args(SecondForwardRecord.model_fields["mode"].annotation)


def _second_forward(block: Block) -> SecondForwardRecord | None:
    mode = block.text("mode")
    if mode is not None and mode not in _MODES:
        block.wrong("mode", f"should be one of {', '.join(_MODES)}, but is {mode!r}; left out")
        return None
    return None if mode is None else block.part(SecondForwardRecord, {"mode": mode})


def _predictions(document: Block, key: str) -> tuple[PredictionRecord, ...]:
    predictions = [_prediction(block) for block in document.blocks(key)]
    return tuple(prediction for prediction in predictions if prediction is not None)


def _prediction(block: Block) -> PredictionRecord | None:
    tokens, probs = [], []
    for i, pair in enumerate(block.items("topk") or []):
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            block.wrong(f"topk[{i}]", "should be a text and a probability; this and what follows were left out")
            break
        tokens.append(pair[0])
        probs.append(float(pair[1]) if type(pair[1]) is int else pair[1])
    temperature = block.number("temperature")
    return block.part(
        PredictionRecord,
        {
            "prompt": block.text("prompt"),
            "temperature": 1.0 if temperature is None else temperature,
            "entropy_bits": block.number("entropy"),
            "top_tokens": tuple(tokens),
            "top_probs": tuple(probs),
        },
    )


# What the rows take from the JSON


def from_json(document: Block, answers: Mapping[PromptKey, AlignmentRecord], n_layers: int) -> FromJson:
    """Answers' ids, norms of residuals, and rows that were not finite."""
    norms: list[float | None] = [None] * (n_layers + 1)
    for layer, block in _norms(document, n_layers):
        norms[layer] = block.number("raw_resid_norm")
    health = numeric_health(document)
    flagged = [] if health is None else [(flag.lens, flag.layer) for flag in health.layers_flagged]
    ids = {prompt: alignment.first_id for prompt, alignment in answers.items()}
    return FromJson(document.file, ids, tuple(norms), frozenset(flagged))


def is_named(document: Block, stem: str) -> bool:
    """Whether the model that the JSON names is the one that the file's name does."""
    name = document.block("diagnostics").text("model")
    return name is None or stem_of(name) == stem
