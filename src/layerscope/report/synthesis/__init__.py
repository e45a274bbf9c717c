"""The synthesis: what the runs of several models say together, and what they do not."""

from layerscope.report.synthesis.whole import synthesis

__all__ = ["synthesis"]
