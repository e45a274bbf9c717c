"""A language model inside a larger one, such as one of pictures and text: what text does not need is let go."""

from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from layerscope.errors import ModelError


def classes(mapping: Any) -> frozenset[str]:
    """Names of the classes of one of Transformers' mappings."""
    return frozenset(name for names in mapping.values() for name in ([names] if isinstance(names, str) else names))


def is_wrapped(config: Any) -> bool:
    """Whether a config describes a model of text and pictures around a language model.

    Some types stand in both of Transformers' mappings; the class that the checkpoint was saved from decides.
    """
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return False
    saved_from = set(config.architectures or ())
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    return bool(saved_from) and not saved_from & classes(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def head_of(model: Any) -> Any:
    """The unembedding, which some models leave to the whole language model inside them; None where there is none."""
    head = model.get_output_embeddings()
    if head is None and is_wrapped(model.config):
        decoder = model.get_decoder()
        return None if decoder is None or decoder is model else decoder.get_output_embeddings()
    return head


def keep_language_model(model: Any) -> tuple[str, ...]:
    """Let go of all parts beside the way from the ids to the logits, and say which; their weights are never read.

    Raises:
        ModelError: the language model cannot be told from the rest.
    """
    decoder, head = model.get_decoder(), head_of(model)
    paths = {id(module): path for path, module in model.named_modules()}
    if decoder is None or head is None or id(decoder) not in paths or decoder is model:
        raise ModelError(
            f"A '{model.config.model_type}' model does not say which of its parts is the language model, so nothing "
            "can be decoded; give the language model alone."
        )
    kept = {id(module) for module in (*decoder.modules(), *head.modules())}
    embedding = model.get_input_embeddings()
    if id(embedding) not in kept:
        where = paths.get(id(embedding), "nothing")
        raise ModelError(
            f"A '{model.config.model_type}' model reads its tokens through '{where}', which is no part of its language "
            f"model '{paths[id(decoder)]}', so that this cannot be read alone; give a model whose language model is "
            "whole."
        )
    dropped: list[str] = []
    ancestors = paths[id(decoder)].split(".")
    for depth in range(len(ancestors)):
        parent: nn.Module = model.get_submodule(".".join(ancestors[:depth]))
        for name, child in list(parent.named_children()):
            if name != ancestors[depth] and id(child) not in kept and any(True for _ in child.parameters()):
                parent._modules[name] = None
                dropped.append(".".join((*ancestors[:depth], name)))
    return tuple(dropped)
