"""Charts of runs, each with its data and a text alternative; it is importing this that loads Altair."""

from layerscope.view.charts.chart_spec import ChartSpec
from layerscope.view.charts.facts import facts
from layerscope.view.charts.grid import grid
from layerscope.view.charts.metrics import METRICS
from layerscope.view.charts.models import across_models
from layerscope.view.charts.patching import PATCHING, patching
from layerscope.view.charts.theme import config
from layerscope.view.charts.trajectories import trajectories
from layerscope.view.charts.trust import LENS_TRUST, lens_trust
from layerscope.view.charts.write_effects import write_effects
from layerscope.view.charts.writers import writer_shares

__all__ = [
    "LENS_TRUST",
    "METRICS",
    "PATCHING",
    "ChartSpec",
    "across_models",
    "config",
    "facts",
    "grid",
    "lens_trust",
    "patching",
    "trajectories",
    "write_effects",
    "writer_shares",
]
