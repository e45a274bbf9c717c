"""What each family calls its blocks and norms, what it does to its logits, and whether it wants a BOS: one table."""

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from layerscope.errors import TokenizerError

Bos: TypeAlias = Literal["always", "never", "tokenizer"]
BosSource: TypeAlias = Literal["tokenizer", "family", "option"]


@dataclass(frozen=True)
class BosRule:
    """Whether a prompt starts with BOS, and who says so."""

    rule: Bos
    source: BosSource
    """The tokenizer, the table below, or the user."""
    family_rule: Bos | None
    """What the table says of the model; None where it does not know it."""


@dataclass(frozen=True)
class Family:
    """How to find one family's parts; attribute paths start at the causal model or, for norms, at a block."""

    model_type: str
    """The config's `model_type`."""
    blocks: str = "model.layers"
    final_norm: str | None = "model.norm"
    input_norm: str | None = "input_layernorm"
    """The norm through which a block reads the stream; several names are tried in order, None where it reads it raw."""
    second_norm: str | None = "post_attention_layernorm"
    """The norm through which a block's MLP reads the stream; None where it has none of its own."""
    bos: Bos = "never"
    """Whether a prompt starts with BOS; `tokenizer` leaves it to the tokenizer's default."""
    scale: str | None = None
    """Config field that logits are multiplied by; here and below, several names are tried in order."""
    divisor: str | None = None
    """Config field that logits are divided by."""
    softcap: str | None = None
    """Config field c of `c * tanh(z / c)`."""
    projection: str | None = None
    """A linear map between final norm and head, where some members have one."""
    published: str = ""
    """Published models of the family, for people."""


_TABLE = (
    Family("qwen2", published="Qwen2.5-72B"),
    Family("qwen3", published="Qwen3-8B, Qwen3-14B"),
    Family("llama", bos="always", published="Llama-3-8B, Llama-3-70B, Yi-34B"),
    Family("mistral", bos="always", published="Mistral-7B, Mistral-Small-24B"),
    Family(
        "gemma2",
        second_norm="pre_feedforward_layernorm",
        bos="always",
        softcap="final_logit_softcapping",
        published="Gemma-2-9B, Gemma-2-27B",
    ),
    Family("gemma3_text", second_norm="pre_feedforward_layernorm", bos="always", softcap="final_logit_softcapping"),
    Family("gpt2", blocks="transformer.h", final_norm="transformer.ln_f", input_norm="ln_1", second_norm="ln_2"),
    Family("gptj", blocks="transformer.h", final_norm="transformer.ln_f", input_norm="ln_1", second_norm=None),
    Family("gpt_neox", blocks="gpt_neox.layers", final_norm="gpt_neox.final_layer_norm"),
    Family("olmo2", input_norm=None, second_norm=None),
    Family("olmo3", input_norm=None, second_norm=None),
    Family("phi", final_norm="model.final_layernorm", second_norm=None),
    Family("phi3", bos="tokenizer"),
    Family("cohere", second_norm=None, bos="always", scale="logit_scale"),
    Family("granite", divisor="logits_scaling"),
    Family("starcoder2"),
    Family("stablelm"),
    Family(
        "falcon",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        input_norm="ln_attn|input_layernorm",
        second_norm="ln_mlp|post_attention_layernorm",
    ),
    Family(
        "opt",
        blocks="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        input_norm="self_attn_layer_norm",
        second_norm="final_layer_norm",
        bos="always",
        projection="model.decoder.project_out",
    ),
    Family("bloom", blocks="transformer.h", final_norm="transformer.ln_f"),
    Family("mixtral", bos="always"),
    Family("qwen3_moe"),
)
FAMILIES = {family.model_type: family for family in _TABLE}
"""Every family that a test compares with Transformers' own hidden states and logits (tests/test_families.py)."""

VERIFIED_BY = "tests/test_families.py"

_GUESS = Family(
    "",
    second_norm=None,  # its names are too many to tell a norm in front of an MLP from one behind it
    bos="tokenizer",
    scale="logit_scale|lm_head_multiplier",
    divisor="logits_scaling",
    softcap="final_logit_softcapping|logits_soft_cap|output_logit_soft_cap",
)


def family_of(config: Any) -> tuple[Family, bool]:
    """The family of a Transformers config, and whether it is one of the verified ones.

    For any other model the common names are tried, the identity check being the judge. A model that wraps a verified
    one (a language model beside a vision tower) keeps its BOS and head, but its parts are looked for.
    """
    known = FAMILIES.get(config.model_type)
    if known is None:
        inner = FAMILIES.get(config.get_text_config().model_type)
        if inner is None:
            return _GUESS, False
        head = {"bos": inner.bos, "scale": inner.scale, "divisor": inner.divisor, "softcap": inner.softcap}
        return replace(_GUESS, **head), False  # type: ignore[arg-type]
    # The oldest OPT members put their norm after the sum: their blocks read the stream as it is.
    if known.model_type == "opt" and not config.do_layer_norm_before:
        return replace(known, input_norm=None, second_norm=None), True
    return known, True


def family_bos(config: Any) -> Bos | None:
    """What the table says of a Transformers config, or of the language model inside it; None where it knows neither."""
    known = FAMILIES.get(config.model_type) or FAMILIES.get(config.get_text_config().model_type)
    return None if known is None else known.bos


def bos_rule(bos: str, family_rule: Bos | None) -> BosRule:
    """The user's rule, or the tokenizer's own: it adds what the model was trained to read.

    Raises:
        TokenizerError: a word that is not `auto`, `yes` or `no`.
    """
    match bos:
        case "auto":
            return BosRule("tokenizer", "tokenizer", family_rule)
        case "yes":
            return BosRule("always", "option", family_rule)
        case "no":
            return BosRule("never", "option", family_rule)
    raise TokenizerError(f"'{bos}' does not say whether prompts start with BOS; choose auto, yes or no.")


def rule_of_table(rule: BosRule) -> BosRule:
    """The table's rule where the user has none, as protocol `published` has it; the tokenizer's where it has none."""
    if rule.source == "option" or rule.family_rule is None:
        return rule
    return BosRule(rule.family_rule, "family", rule.family_rule)
