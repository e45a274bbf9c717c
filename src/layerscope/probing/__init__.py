"""One model and one suite: prompts, forward passes, sweep, rows and record."""
