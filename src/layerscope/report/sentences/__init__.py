"""Sentences about a verdict: one wording for terminal, page, evaluation, synthesis and brief, which lay them out."""
