"""Lenses: functions from a residual and its layer to the row that is unembedded."""

from layerscope.lens_record import FITTED_NAMES
from layerscope.lenses.binding import bind_lenses
from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.lens import LENS_NAMES, Lens
from layerscope.lenses.lens_folder import (
    FittedLens,
    find_lens_folders,
    find_lens_of,
    read_fitted_lens,
    write_fitted_lens,
)
from layerscope.lenses.logit_lens import LogitLens, NextNormLens, RawLens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.tuned_lens import Translator, TunedLens

__all__ = [
    "FITTED_NAMES",
    "LENS_NAMES",
    "FittedLens",
    "JacobianLens",
    "Lens",
    "LogitLens",
    "NextNormLens",
    "PrismLens",
    "RawLens",
    "Translator",
    "TunedLens",
    "bind_lenses",
    "find_lens_folders",
    "find_lens_of",
    "read_fitted_lens",
    "write_fitted_lens",
]
