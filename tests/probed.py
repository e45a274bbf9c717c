"""Runs of the bundled model that several files of tests look at, each probed once in a process."""

from functools import cache

import layerscope
from layerscope.run import Run


@cache
def probed(suite: str, lenses: str = "logit,next_norm,raw", **options: str) -> Run:
    """What `layerscope.probe` gives, for a test that asks for nothing out of the ordinary; nobody may change it."""
    return layerscope.probe(suite=suite, lenses=lenses, **options)
