"""What ties a fitted lens to a model: sizes, and a fingerprint of final norm and head."""

from layerscope.lens_record import FittedModel
from layerscope.model.causal_lm import CausalLM


def model_signature(model: CausalLM) -> FittedModel:
    """The model as a lens folder names it."""
    return FittedModel.of(model, commit=model.source.commit, tokenizer_sha256=model.tokens.sha256)
