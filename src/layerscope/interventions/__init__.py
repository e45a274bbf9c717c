"""What a model does with residuals that are not its own: the causal test of what a lens reads."""
