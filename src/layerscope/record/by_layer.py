"""Numbers of a record that stand by layer."""

from typing import TypeAlias

ByLayer: TypeAlias = tuple[float | None, ...]
"""A number for each layer 0 to n_layers; null where it is undefined."""
CountByLayer: TypeAlias = tuple[int | None, ...]
