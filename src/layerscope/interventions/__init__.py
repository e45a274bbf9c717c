"""What a model does with residuals that are not its own: the causal test of what a lens reads."""

from typing import Literal, TypeAlias

Positions: TypeAlias = Literal["default", "all"]
"""Where residuals are written: the subject's last token and the prompt's last one, or everywhere behind the first
difference."""
Directions: TypeAlias = Literal["both", "difference"]
"""The span of both answers' directions under a lens, or the one direction of their difference."""
