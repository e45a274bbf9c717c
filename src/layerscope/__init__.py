"""layerscope: where in a language model's depth an answer becomes readable, and how far that may be trusted.

    import layerscope

    run = layerscope.probe("Qwen/Qwen3-8B", suite="capitals")
    run.rows                      # a polars frame: one row for each prompt, lens, layer and position
    run.show()                    # a page, in a notebook; run.plot("answer_rank") is one chart of it
    run.save("runs/qwen3-8b")
    layerscope.Run.read("runs/qwen3-8b")

Names load on first use, so that reading a run needs no tensor library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerscope.errors import LayerscopeError
    from layerscope.model.causal_lm import CausalLM
    from layerscope.model.residuals import Residuals
    from layerscope.probing.probe import probe
    from layerscope.run import Run
    from layerscope.suite import Prompt, Suite, builtin_suites, load_suite

_HOMES = {
    "CausalLM": "layerscope.model.causal_lm",
    "LayerscopeError": "layerscope.errors",
    "Prompt": "layerscope.suite",
    "Residuals": "layerscope.model.residuals",
    "Run": "layerscope.run",
    "Suite": "layerscope.suite",
    "builtin_suites": "layerscope.suite",
    "load_suite": "layerscope.suite",
    "probe": "layerscope.probing.probe",
}

__all__ = [
    "CausalLM",
    "LayerscopeError",
    "Prompt",
    "Residuals",
    "Run",
    "Suite",
    "builtin_suites",
    "load_suite",
    "probe",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'layerscope' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
