"""Rows to numbers: one sweep over the unembedding, and what follows from it without another."""
