"""A model's own forward tells what becomes of its logits, without a weight being read."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from layerscope.errors import ModelError
from layerscope.model.families import FAMILIES
from layerscope.model.head_transform import observed_transform, transform_of
from layerscope.unembedding import HeadTransform

SIZES = {
    "vocab_size": 307,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "head_dim": 8,
}


def built(family: str, **more: Any) -> Any:
    with torch.device("meta"):  # nothing can be read
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SIZES | more)))


@pytest.mark.parametrize(
    ("family", "more", "scale", "softcap"),
    [
        ("llama", {}, None, None),
        ("granite", {"logits_scaling": 2.5}, 0.4, None),
        ("cohere", {"logit_scale": 0.25}, 0.25, None),
        ("gemma2", {"final_logit_softcapping": 3.0}, None, 3.0),
    ],
)
def test_what_the_code_does_is_what_the_config_declares(family: str, more: dict[str, Any], scale, softcap):
    seen = observed_transform(built(family, **more))
    assert seen is not None
    assert seen.scale == (None if scale is None else pytest.approx(scale, rel=1e-6))
    assert seen.softcap == (None if softcap is None else pytest.approx(softcap, rel=1e-6))


def test_what_is_declared_and_done_is_kept_as_it_is_declared():
    model = built("granite", logits_scaling=2.5)
    assert transform_of(model, FAMILIES["granite"], known=False) == HeadTransform(1 / 2.5, None)


def test_what_is_declared_and_not_done_does_not_count():
    model = built("llama", logit_scale=0.25)
    assert transform_of(model, FAMILIES["cohere"], known=False) == HeadTransform()
    assert transform_of(model, FAMILIES["cohere"], known=True) == HeadTransform(0.25)


def test_a_scale_in_front_of_the_head_is_seen():
    sizes = {"logits_mup_width_multiplier": 24.0, "unpadded_vocab_size": 307}
    seen = observed_transform(built("inkling_text", **sizes))
    assert seen is not None and seen.scale == pytest.approx(1 / 24, rel=1e-6)


def test_fewer_logits_than_the_head_has_rows_are_refused():
    with pytest.raises(ModelError, match="gives 300 logits, fewer than the 307 rows"):
        observed_transform(built("inkling_text", unpadded_vocab_size=300))


def test_a_head_with_further_layers_is_not_explained():
    assert observed_transform(built("modernbert-decoder", pad_token_id=0)) is None
