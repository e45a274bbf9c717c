"""Weights as checkpoints keep them: one class for each kind of storage, which gives rows as floats on demand."""
