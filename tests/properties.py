"""What is tested at length where all is tested, and briefly in every run: properties and parameters."""

import os
from typing import Any

import pytest
from hypothesis import settings

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
"""Whether properties are tried at length."""


def examples(n: int, **options: Any) -> settings:
    """Settings of a property that is worth `n` examples, of which a short run tries a quarter."""
    return settings(max_examples=n if THOROUGH else max(5, n // 4), deadline=None, **options)


def slow(*values: object) -> Any:
    """A set of a test's parameters that is left to where all is tested, since the others run the same lines."""
    return pytest.param(*values, marks=pytest.mark.slow)


def checks_every_type(request: pytest.FixtureRequest) -> bool:
    """Whether all annotations are checked at run time, so that a wrong word does not come as far as its refusal."""
    return "layerscope," in str(request.config.getoption("--jaxtyping-packages"))
