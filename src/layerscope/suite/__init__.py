"""What is asked of a model: facts in all their variants, controls, accepted answers, and texts to go with them."""

from layerscope.suite.load import SuiteSource, builtin_suites, load_suite
from layerscope.suite.suite import Chat, Message, Prompt, Suite

__all__ = ["Chat", "Message", "Prompt", "Suite", "SuiteSource", "builtin_suites", "load_suite"]
