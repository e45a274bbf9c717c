"""What ties a fitted lens to a model: sizes, and a fingerprint of final norm and head."""

from layerscope.lens_record import FittedModel
from layerscope.model.causal_lm import CausalLM


def model_signature(model: CausalLM) -> FittedModel:
    """The model as a sidecar names it."""
    return FittedModel(
        id=model.id,
        commit=model.source.commit,
        family=model.family,
        n_layers=model.n_layers,
        d_model=model.d_model,
        d_vocab=model.d_vocab,
        fingerprint=model.fingerprint,
        blocks_fingerprint=model.blocks_fingerprint,
        tokenizer_sha256=model.tokens.sha256,
    )
