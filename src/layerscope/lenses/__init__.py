"""Lenses: functions from a residual and its layer to the row that is unembedded."""

from layerscope.lenses.binding import bind_lenses
from layerscope.lenses.lens import FITTED_NAMES, LENS_NAMES, Lens, lens_names
from layerscope.lenses.lens_folder import FoundSidecar, Sidecar, find_sidecars, matching, read_sidecar, write_sidecar
from layerscope.lenses.logit_lens import LogitLens, NextNormLens, RawLens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.tuned_lens import Translator, TunedLens

__all__ = [
    "FITTED_NAMES",
    "LENS_NAMES",
    "FoundSidecar",
    "Lens",
    "LogitLens",
    "NextNormLens",
    "PrismLens",
    "RawLens",
    "Sidecar",
    "Translator",
    "TunedLens",
    "bind_lenses",
    "find_sidecars",
    "lens_names",
    "matching",
    "read_sidecar",
    "write_sidecar",
]
