"""What a probe and a look begin with: the model, and the names of lenses."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from layerscope.errors import ModelError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.options import OpenOptions


def opened(model: str | Path | CausalLM, options: OpenOptions) -> CausalLM:
    """The model; one that is open already is taken as it is.

    Raises:
        LayerscopeError: it cannot be opened, or is open and the options say otherwise how.
    """
    opening = {option.name: getattr(options, option.name) for option in fields(OpenOptions)}
    if not isinstance(model, CausalLM):
        return CausalLM.open(model, **opening)
    if opening != vars(OpenOptions()):
        raise ModelError(
            "An open model has its device, dtype, memory, revision, code and BOS already; give those to CausalLM.open."
        )
    return model


def lens_names(lenses: str | Sequence[str]) -> tuple[str, ...]:
    """One by one, of names in a sequence or between commas."""
    return tuple(name.strip() for name in lenses.split(",")) if isinstance(lenses, str) else tuple(lenses)
