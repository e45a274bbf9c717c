"""What becomes of every type in two of Transformers' mappings: made tiny, opened by layerscope, held to Transformers.

`REASONS` says why those do not run that do not. `model_types.json` keeps what was found, and docs/models.md shows it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from layerscope.errors import LayerscopeError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.identity import check_identity
from rounding import of_residual
from tiny_models import PROMPTS, Reference, randomise, tiny_tokenizer
from tiny_types import tiny_config

Mapping: TypeAlias = Literal["text", "pictures and text"]
MAPPINGS: dict[Mapping, tuple[Any, dict[str, Any]]] = {
    "text": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "pictures and text": (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
}
CASES = [(mapping, model_type) for mapping, (_, names) in MAPPINGS.items() for model_type in names]

TOLERANCE = of_residual(n_blocks=6, d_model=64)
"""In units of the largest reference value, or of 1 where that is smaller; the largest models here have six blocks."""
FOUND = Path(__file__).with_name("model_types.json")
"""For either mapping what became of each type: `runs`, or a key of `REASONS`."""
DOCS = Path(__file__).parents[1] / "docs" / "models.md"
_OF_TRANSFORMERS = (
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What its classes raise where they cannot be built, saved or read again."""


Kind: TypeAlias = Literal["runs", "runs without identity", "refused", "not built", "not read again"]
"""Residuals and logits are Transformers'; so are they, but the identity check fails; layerscope refuses it;
Transformers cannot build it; Transformers cannot read again what it saves."""


@dataclass(frozen=True)
class Outcome:
    """What became of one type."""

    kind: Kind
    said: str = ""
    """The sentence of the refusal; what Transformers raised, where layerscope refuses the config as well."""


@dataclass(frozen=True)
class Reason:
    """Why some types do not run, or not whole."""

    words: str
    """For people: a row of the table in docs/models.md."""
    kind: Kind
    says: str = ""
    """A part of what was said."""
    text: str = ""
    """Types of the causal mapping, separated by spaces."""
    pictures: str = ""
    """Types of the mapping for pictures and text."""

    def types(self, mapping: Mapping) -> Sequence[str]:
        """Those of one mapping."""
        return (self.text if mapping == "text" else self.pictures).split()


REASONS = {
    "head": Reason(
        "run, but there are further layers between the last norm and the head: the identity check fails, and says so "
        "(encoders, where `is_decoder` makes them decoders)",
        "runs without identity",
        text="bert big_bird camembert data2vec-text electra ernie megatron-bert modernbert-decoder roberta "
        "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod",
    ),
    "mixed end": Reason(
        "run, but the head reads a mixture of several layers' streams: the identity check fails, and says so",
        "runs without identity",
        text="inkling2_text",
        pictures="inkling2",
    ),
    "several streams": Reason(
        "refused: keep several residual streams side by side",
        "refused",
        "residual streams side by side",
        text="deepseek_v4 gemma3n_text hy_v4 qwen4_exp qwen4_exp_text",
        pictures="glm5_next qwen4_exp",
    ),
    "two streams": Reason(
        "refused: keeps two residual streams, which meet in its head", "refused", "reads 128 features", text="reformer"
    ),
    "mapped end": Reason(
        "refused: its head reads another width than its blocks write", "refused", "reads 1664 features", text="rembert"
    ),
    "transposed": Reason(
        "refused: has positions in front of prompts, and two streams", "refused", "tensor [11, 4, 64]", text="xlnet"
    ),
    "other positions": Reason(
        "refused: their blocks read other positions than those of the text",
        "refused",
        "(prompts, positions, features), but it is a tensor",
        text="cpmant prophetnet",
    ),
    "bytes": Reason(
        "refused: reads bytes, through an encoder and a decoder around its blocks",
        "refused",
        "says no number of blocks",
        text="blt",
    ),
    "cycles": Reason(
        "refused: goes through two stacks of blocks again and again",
        "refused",
        "has no list of as many",
        text="hrm_text",
    ),
    "not causal": Reason(
        "refused: tokens see what follows them", "refused", "see what follows them", text="xlm", pictures="paligemma"
    ),
    "encoder-decoder": Reason(
        "refused: encoder-decoders",
        "refused",
        "is an encoder-decoder",
        pictures="florence2 pix2struct pp_formulanet t5gemma2 udop vision-encoder-decoder",
    ),
    "encoder-decoder, not built": Reason(
        "refused: encoder-decoders, whose decoder Transformers cannot build from their config",
        "not built",
        "is an encoder-decoder",
        text="musicgen musicgen_melody",
    ),
    "picture": Reason(
        "refused: cannot be run without a picture",
        "refused",
        "could not be run on text alone",
        pictures="blip blip-2 idefics instructblip instructblipvideo kosmos-2",
    ),
    "actions": Reason(
        "refused: writes a robot's actions, no tokens", "refused", "which of its parts is the language", pictures="pi0"
    ),
    "denoiser": Reason(
        "refused: denoises text, and reads its tokens through a second model",
        "refused",
        "is no part of its language model",
        pictures="diffusion_gemma",
    ),
    "package": Reason(
        "refused where a package is missing that Transformers wants for pictures or sound (timm, scipy)",
        "not built",
        "needs a package that is not installed",
        text="gemma3n",
        pictures="fast_vlm gemma3n inkling_mm_model perception_lm",
    ),
    "drafter": Reason(
        "refused: draft for another model, whose caches they read",
        "not built",
        "producing a cache is different than",
        text="gemma4_assistant gemma4_unified_assistant",
    ),
    "no class": Reason(
        "refused: Transformers' mapping names a class that it does not find",
        "not built",
        "Unrecognized configuration class",
        pictures="evolla",
    ),
    "other config": Reason(
        "not tried: Transformers saves the language model alone under a type that it does not read again",
        "not read again",
        "Unrecognized configuration class",
        text="emu3 mllama",
    ),
    "other names": Reason(
        "not tried: Transformers does not find the weights again under the names that it saves",
        "not read again",
        "keys are missing",
        pictures="shieldgemma2",
    ),
}


def reason_of(mapping: Mapping, model_type: str) -> str | None:
    """The key of the reason that is given for a type; None where none is."""
    return next((key for key, reason in REASONS.items() if model_type in reason.types(mapping)), None)


def verdict(mapping: Mapping, model_type: str, outcome: Outcome) -> str:
    """What became of a type, as it is kept: `runs`, or the key of the reason that is given for it.

    Raises:
        AssertionError: no reason is given, or one that does not hold.
    """
    key = reason_of(mapping, model_type)
    became = f"'{model_type}' ({mapping}): {outcome.kind}; {outcome.said}".rstrip("; ")
    if outcome.kind == "runs":
        assert key is None, f"{became}: it runs, and the reason '{key}' no longer holds; take it out of REASONS."
        return "runs"
    assert key is not None, f"{became}: mend it, or give a reason in REASONS, which has none for it."
    reason = REASONS[key]
    assert outcome.kind == reason.kind and reason.says in outcome.said, (
        f"{became}: the reason '{key}' was given ({reason.kind}: '{reason.says}'); mend it, or give the true one."
    )
    return key


def found() -> dict[Mapping, dict[str, str]]:
    """What became of each type, as it is kept."""
    kept: dict[Mapping, dict[str, str]] = json.loads(FOUND.read_text(encoding="utf-8"))
    return {mapping: kept[mapping] for mapping in MAPPINGS}


def documented(page: str, kept: dict[Mapping, dict[str, str]]) -> str:
    """A page with the table of types as they are kept."""
    begin, end = "<!-- types: begin -->\n", "<!-- types: end -->"
    before, _, rest = page.partition(begin)
    return before + begin + _table(kept) + "\n" + end + rest.partition(end)[2]


def _table(kept: dict[Mapping, dict[str, str]]) -> str:
    """The types by what became of them."""
    run = [
        f"**{list(types.values()).count('runs')} of {len(types)}:** {_listed(types, 'runs')}" for types in kept.values()
    ]
    lines = [
        f"| what becomes of it | {' | '.join(kept)} |",
        "|---|---|---|",
        f"| run: residuals and logits are Transformers' own | {' | '.join(run)} |",
    ]
    for key, reason in REASONS.items():
        lines.append(f"| {reason.words} | {' | '.join(_listed(types, key) for types in kept.values())} |")
    return "\n".join(lines)


def _listed(types: dict[str, str], key: str) -> str:
    return ", ".join(f"`{model_type}`" for model_type, became in sorted(types.items()) if became == key)


def observe(mapping: Mapping, model_type: str, folder: Path) -> Outcome:
    """Make a type tiny in a folder, open it, and hold it to Transformers.

    Raises:
        AssertionError: numbers differ.
        Exception: whatever layerscope raises that is no refusal.
    """
    auto = MAPPINGS[mapping][0]
    config: PreTrainedConfig | None = None
    try:
        config = tiny_config(model_type)
        if mapping == "text" and getattr(config, "is_decoder", None) is False:
            config.is_decoder = True  # else it is an encoder
        _saved(auto, config, folder)
    except _OF_TRANSFORMERS as error:
        return Outcome("not built", _refused_too(config, folder) or _in_short(error))
    try:
        resident, loading = _loaded(auto, folder)
    except _OF_TRANSFORMERS as error:
        return Outcome("not read again", _in_short(error))
    if loading["missing_keys"]:
        return Outcome("not read again", f"{len(loading['missing_keys'])} keys are missing")
    try:
        model = CausalLM.open(folder, device="cpu")
        ours = model.forward(PROMPTS)
    except LayerscopeError as error:
        return Outcome("refused", str(error))
    theirs = [_seen(resident, model.architecture.blocks, prompt) for prompt in PROMPTS]
    for i, (prompt, reference) in enumerate(zip(PROMPTS, theirs, strict=True)):
        _close(ours.values[i, :, : len(prompt)], reference.residuals, f"residuals of prompt {i}")
        _close(ours.logits[i], reference.logits[-1], f"logits of prompt {i}")
    last = torch.stack([ours.values[i, -1, len(prompt) - 1] for i, prompt in enumerate(PROMPTS)])
    if not check_identity(model.unembedding, last, ours.logits).ok:
        return Outcome("runs without identity")
    return Outcome("runs")


def _saved(auto: Any, config: PreTrainedConfig, folder: Path) -> None:
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32, attn_implementation="eager")
    randomise(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def _refused_too(config: PreTrainedConfig | None, folder: Path) -> str | None:
    """What layerscope says of a config that Transformers cannot build; None where there is no config.

    Raises:
        AssertionError: it opens the model.
    """
    if config is None:
        return None
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    try:
        CausalLM.open(folder, device="cpu")
    except LayerscopeError as error:
        return str(error)
    raise AssertionError(f"layerscope opens a '{config.model_type}' model that Transformers cannot build")


def _loaded(auto: Any, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    model, loading = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    return model.eval(), loading


def _seen(model: PreTrainedModel, blocks: str, token_ids: list[int]) -> Reference:
    """One prompt through Transformers' resident model.

    Raises:
        AssertionError: a block does not read what the one before it has written, or this is no state that Transformers
            itself calls hidden.
    """
    read: list[Tensor] = []
    written: list[Tensor] = []
    handles = []
    for block in model.get_submodule(blocks):
        before, after = (lambda _, a, k: read.append((a[0] if a else k["hidden_states"]).clone())), _keep(written)
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after))
    try:
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([token_ids]), use_cache=False, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    assert all(map(torch.equal, read[1:], written[:-1]))
    hidden = output.hidden_states
    assert all(any(torch.equal(state, other) for other in hidden) for state in written[:-1])
    return Reference(torch.cat([read[0], *written]), output.logits[0])


def _keep(written: list[Tensor]) -> Any:
    return lambda _, args, output: written.append((output[0] if isinstance(output, tuple | list) else output).clone())


def _close(actual: Tensor, expected: Tensor, what: str) -> None:
    atol = TOLERANCE * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
