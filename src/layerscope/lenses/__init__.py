"""Lenses: functions from a residual and its layer to the row that is unembedded."""

from layerscope.lenses.lens import Lens, lens_names
from layerscope.lenses.logit_lens import LogitLens, NextNormLens, RawLens, bind_lenses

__all__ = ["Lens", "LogitLens", "NextNormLens", "RawLens", "bind_lenses", "lens_names"]
