"""What is asked of a model: facts in all their variants, controls, accepted answers, and texts to go with them."""

from layerscope.suite.suite import Prompt, Suite, builtin_suites, load_suite

__all__ = ["Prompt", "Suite", "builtin_suites", "load_suite"]
