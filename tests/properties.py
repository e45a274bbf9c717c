"""How many examples a property is tried with: few in every run, many where all is tested (HYPOTHESIS_PROFILE)."""

import os
from typing import Any

from hypothesis import settings

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
"""Whether properties are tried at length."""


def examples(n: int, **options: Any) -> settings:
    """Settings of a property that is worth `n` examples, of which a short run tries a quarter."""
    return settings(max_examples=n if THOROUGH else max(5, n // 4), deadline=None, **options)
