"""Words by which fitted lenses are told apart, for options as well as for records."""

from typing import Literal, TypeAlias

Placement: TypeAlias = Literal["raw", "normed"]
"""What a translator is applied to: the residual before the final norm, or the normed vector after it."""
