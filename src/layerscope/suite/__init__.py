"""What is asked of a model: facts in all their variants, controls, accepted answers, and texts to go with them.

What reads files loads on first use, for it brings a library of its own that help need not wait for.
"""

from typing import TYPE_CHECKING, Any

from layerscope.suite.suite import Chat, Message, Prompt, Suite, SuiteSource

if TYPE_CHECKING:
    from layerscope.suite.load import builtin_suites, load_suite

__all__ = ["Chat", "Message", "Prompt", "Suite", "SuiteSource", "builtin_suites", "load_suite"]


def __getattr__(name: str) -> Any:
    if name in ("builtin_suites", "load_suite"):
        from layerscope.suite import load

        return getattr(load, name)
    raise AttributeError(f"module 'layerscope.suite' has no attribute '{name}'")
