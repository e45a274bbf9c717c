"""A causal language model whose layers can be visited one at a time, without ever being loaded."""

from layerscope.model.causal_lm import CausalLM, Forward
from layerscope.model.identity import Identity, check_identity

__all__ = ["CausalLM", "Forward", "Identity", "check_identity"]
