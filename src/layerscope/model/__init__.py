"""A causal language model whose layers can be visited one at a time, without ever being loaded."""
