"""Charts of runs, each with its data and a text alternative; it is importing this that loads Altair."""

from layerscope.report.charts.chart_spec import ChartSpec
from layerscope.report.charts.facts import facts
from layerscope.report.charts.grid import grid
from layerscope.report.charts.metrics import METRICS
from layerscope.report.charts.models import across_models
from layerscope.report.charts.theme import config
from layerscope.report.charts.trajectories import trajectories
from layerscope.report.charts.trust import LENS_TRUST, lens_trust

__all__ = [
    "LENS_TRUST",
    "METRICS",
    "ChartSpec",
    "across_models",
    "config",
    "facts",
    "grid",
    "lens_trust",
    "trajectories",
]
